"""Schedules of faults for a stage in a pod, and the world in which one is played: its time passes with every request, so nothing waits.

A schedule says what the stage's program does, what becomes of each pod that is created, at which requests the worker or the triggerer dies, and
which requests the API server answers with an error or loses. Whoever died sends nothing more: what it would clean up stays. What the schedule
ends in is counted, and the counts are what is promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes.client.rest
import kubernetes_asyncio.client.rest
import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from airflow_mlops.artifacts import Artifact, canonical_json, write_atomically
from airflow_mlops.operators.pod import StagePodOperator
from airflow_mlops.records import SCHEMA_VERSION, Record
from airflow_mlops.results import to_data
from airflow_mlops.stages.runner import parse_spec, spec_digest
from airflow_mlops.triggers.pod import StagePodTrigger
from tests.fakes import FakeTaskInstance, context
from tests.kubernetes.fake_api import PODS, FakeApi, Fault, Request
from tests.kubernetes.fake_store import Json, Key, now

NUM_STEPS, CHECKPOINT_EVERY = 7, 2
RETRIES = 2  # the user's
TASK_CALLS = 30  # how long a task may take, when its program hangs
MOST_CALLS = 400  # nobody needs so many: who does goes round for ever

PROGRAMS = ("good", "good", "good", "good", "fails", "out of memory", "silent", "spoiled", "hangs")
FATES = ("evicted", "deleted", "pre-empted", "node lost", "collected")
FAULTS = (Fault(429), Fault(500), Fault(503), Fault(500, applied=True), Fault(0), Fault(0, applied=True), Fault(410))


@dataclass(frozen=True)
class Schedule:
    """What goes wrong.

    * `program`: ``good``, ``fails`` (exit code 1), ``out of memory`` (with the first pod's memory), ``silent`` (ends well and leaves no record) or
      ``spoiled`` (leaves a record whose file was changed) or ``hangs`` (until Airflow's time for the task is over).
    * `fates`: of the pods, in the order of their creation: what becomes of it, and after how many looks at it; later pods are left alone.
    * `late`: for how many looks a pod that ended is still seen running.
    * `deaths`: the request at which the worker (or, while the task is deferred, the triggerer) dies; True: when it was answered, else before.
    * `faults`: the request that goes wrong, and how.
    """

    program: str
    deferrable: bool
    late: int
    fates: tuple[tuple[str, int], ...]
    deaths: Mapping[int, bool]
    faults: Mapping[int, Fault]


_REQUESTS = st.integers(1, 40)
SCHEDULES = st.builds(
    Schedule,
    program=st.sampled_from(PROGRAMS),
    deferrable=st.booleans(),
    late=st.integers(0, 3),
    fates=st.lists(st.tuples(st.sampled_from(FATES), st.integers(1, 14)), max_size=3).map(tuple),
    deaths=st.dictionaries(_REQUESTS, st.booleans(), max_size=2),
    faults=st.dictionaries(_REQUESTS, st.sampled_from(FAULTS), max_size=3),
)


@dataclass
class Counts:
    """What a schedule ended in; every figure but the first two shall be 0."""

    succeeded: int = 0
    steps_again: int = 0  # of the training, made by one pod and made again by the next
    silent_successes: int = 0  # success without a verified record of this request
    duplicates: int = 0  # two pods ran at once
    orphans: int = 0  # a pod ran on when the task had ended
    retries_spent: int = 0  # of the user's, by what was no fault of the program's
    failed_again: int = 0  # pods after one whose program had failed
    lost_runs: int = 0  # a good program's task that failed
    garbled_logs: int = 0  # pods whose lines stand twice in the log of a try, or in another order, or not all up to the last one
    lost_work: int = 0  # interruptions after which more was made again than lies between two checkpoints
    endless: int = 0  # it went on asking, and nothing became of it

    def broken(self) -> dict[str, int]:
        """Return what is not 0 and shall be."""
        return {name: count for name, count in vars(self).items() if count and name not in ("succeeded", "steps_again")}


class Died(BaseException):
    """The process is gone: nothing catches this, and no request of it is sent any more."""


class TimeUp(BaseException):
    """The task's ``execution_timeout`` is over."""


class Endless(BaseException):
    """An operator goes round for ever."""


@dataclass
class Played:
    """A pod and the process that it is."""

    key: Key
    fate: tuple[str, int]
    ticks: int = 0
    begun: int = 0  # the step of the checkpoint that it began with
    steps: int = 0
    running: bool = True
    since_end: int = 0
    end: Json = field(default_factory=dict)  # the state that its container ended in
    failed: bool = False


class World:
    """A namespace of `api` while one schedule is played there."""

    def __init__(self, api: FakeApi, namespace: str, schedule: Schedule) -> None:
        self.api, self.namespace, self.schedule = api, namespace, schedule
        self.counts, self.calls, self.dead = Counts(), 0, False
        self.pods: dict[str, Played] = {}  # by uid
        self.told: dict[str, list[tuple[str, int]]] = {}  # by pods' names: by whom the log of this try was told which step
        self.saved: dict[Path, int] = {}  # the steps of the newest checkpoints, by their directories
        self.fault: Fault | None = None
        self.time_up_at = TASK_CALLS
        api.before, api.logs = self._before, self._log

    def alive(self) -> list[Played]:
        return [one for one in self.pods.values() if one.running]

    def send(self, path: str) -> Callable[[], None]:
        """Note a request that is about to be sent, and return what is to be called when it was answered."""
        if self.dead:
            raise Died
        if "/pods" not in path:
            return lambda: None
        self.calls += 1
        if self.calls > MOST_CALLS:
            raise Endless
        if self.schedule.program == "hangs" and self.calls > self.time_up_at:
            self.time_up_at = self.calls + TASK_CALLS
            raise TimeUp
        dies = self.schedule.deaths.get(self.calls)
        if dies is False:
            self._die()
        self.fault = self.schedule.faults.get(self.calls)
        return self._die if dies else lambda: None

    def _die(self) -> None:
        self.dead = True
        raise Died

    def _before(self, request: Request) -> Fault | None:
        if request.namespace != self.namespace or request.kind != PODS:
            return None
        self._pass_time()
        fault, self.fault = self.fault, None
        return fault

    def _log(self, _: str, name: str) -> list[str]:
        steps = [range(one.begun, one.steps) for one in self.pods.values() if one.key.name == name]
        return [f"2026-01-01T00:00:00.{step:09d}Z {name} step {step}" for step in steps[-1]] if steps else []

    def hear(self, by: str, line: str) -> None:
        """Note a line of the task's log: `by` is ``worker`` or ``triggerer``."""
        again, step = re.match(r"The log of pod (\S+), again", line), re.match(r"(\S+) step (\d+)$", line)
        if again:
            self.told.pop(again[1])
        if step:
            self.told.setdefault(step[1], []).append((by, int(step[2])))

    def deferred(self) -> None:
        """Begin the triggerer's part of a try's log anew, as Airflow's triggerer does."""
        self.told = {name: [one for one in lines if one[0] == "worker"] for name, lines in self.told.items()}

    def end_try(self) -> None:
        """Count what is wrong with the log of a try that ends."""
        for lines in self.told.values():
            self.counts.garbled_logs += any(after[1] != before[1] + 1 for before, after in pairwise(lines))
        self.told = {}

    def _pass_time(self) -> None:
        """Let one step pass for every pod, those included that were created since."""
        for data in self.api.store.list(PODS, self.namespace):
            name, uid = data["metadata"]["name"], data["metadata"]["uid"]
            if uid not in self.pods:
                number = len(self.pods)
                fate = self.schedule.fates[number] if number < len(self.schedule.fates) else ("", 0)
                self.counts.failed_again += any(one.failed for one in self.pods.values())
                self.pods[uid] = Played(Key(PODS, self.namespace, name), fate)
            self._step(self.pods[uid], data)
        there = {data["metadata"]["uid"] for data in self.api.store.list(PODS, self.namespace)}
        for uid, pod in self.pods.items():
            pod.running = pod.running and uid in there  # a pod that no node had is gone as soon as it is deleted
        self.counts.duplicates += len(self.alive()) > 1

    def look_on(self) -> None:
        """Let what was told to stop do so."""
        there = {data["metadata"]["uid"]: data["metadata"] for data in self.api.store.list(PODS, self.namespace)}
        for uid, pod in self.pods.items():
            pod.running = pod.running and uid in there and "deletionTimestamp" not in there[uid]

    def _step(self, pod: Played, data: Json) -> None:
        pod.ticks += 1
        if data["metadata"].get("deletionTimestamp"):
            self._stop(pod, data)
        elif pod.ticks == pod.fate[1] and self._meet(pod, data):
            return
        elif pod.running and pod.ticks == 2:
            self._begin(pod, data)
        elif pod.running and pod.ticks > 2:
            self._train(pod, data)
        elif pod.end:
            pod.since_end += 1
            if pod.since_end > self.schedule.late and data["status"]["phase"] == "Running":
                self._tell(pod, "Succeeded" if pod.end["exitCode"] == 0 else "Failed", {"terminated": pod.end})
                pod.failed = self.schedule.program in ("fails", "silent", "spoiled")

    def _meet(self, pod: Played, data: Json) -> bool:
        """Let its fate come over a pod; return whether it made a difference: what has ended can only be deleted or collected."""
        fate, pending, ended = pod.fate[0], data["status"]["phase"] == "Pending", bool(pod.end)
        if fate in ("deleted", "collected") or (fate == "pre-empted" and pending):
            if fate == "deleted" and not pending and not ended:
                self.api.store.delete(pod.key, {})
            else:
                pod.running = pod.failed = False  # nobody can have seen how it ended
                self.api.store.remove(pod.key)
            return True
        if pending or ended or fate == "pre-empted":
            return False
        pod.running = False
        if fate == "evicted":
            self._tell(pod, "Failed", _terminated(137, "Error"), reason="Evicted", message="The node was low on resource: memory.")
        else:  # its node is lost: seen as running until somebody gives the node up
            self.api.store.delete(pod.key, {})
        return True

    def _begin(self, pod: Played, data: Json) -> None:
        """Let the training begin with its newest checkpoint, as stage ``train`` does."""
        pod.begun = pod.steps = self.saved.get(checkpoints(data), 0)
        again = max(one.steps for one in self.pods.values()) - pod.begun
        self.counts.steps_again += again
        self.counts.lost_work += again > CHECKPOINT_EVERY
        self._tell(pod, "Running", {"running": {"startedAt": now()}}, nodeName="node")

    def _stop(self, pod: Played, data: Json) -> None:
        """Let a pod that is to go end, with a last checkpoint where it trains, be seen so, and go."""
        if pod.running:
            pod.running = False
            if pod.steps:
                self.saved[checkpoints(data)] = pod.steps
            self._tell(pod, "Failed", _terminated(143, "Error"))
        elif data["status"]["phase"] == "Running" and pod.since_end < 2:
            pod.since_end += 1
        else:
            self.api.store.remove(pod.key)

    def _train(self, pod: Played, data: Json) -> None:
        program = self.schedule.program
        if program == "hangs" and pod.steps == NUM_STEPS - 1:
            return
        pod.steps += 1
        if pod.steps < NUM_STEPS:
            if pod.steps % CHECKPOINT_EVERY == 0:
                self.saved[checkpoints(data)] = pod.steps
            return
        pod.running = False
        words = data["spec"]["containers"][0]["command"]
        if program == "out of memory" and data["spec"]["containers"][0]["resources"]["limits"]["memory"] == "64Mi":
            pod.end = _terminated(137, "OOMKilled")["terminated"]
        elif program == "fails":
            pod.end = _terminated(1, "Error")["terminated"]
        else:
            pod.end = _terminated(0, "Completed")["terminated"]
            if program != "silent":
                leave_record(words, spoiled=program == "spoiled")

    def _tell(self, pod: Played, phase: str, state: Json, nodeName: str = "", **more: str) -> None:
        def told(data: Json) -> Json:
            status = {
                "name": data["spec"]["containers"][0]["name"],
                "image": "stages",
                "imageID": "",
                "ready": False,
                "restartCount": 0,
                "state": state,
            }
            data["status"] |= {"phase": phase, "containerStatuses": [status], **more}
            data["spec"] |= {"nodeName": nodeName} if nodeName else {}
            return data

        self.api.store.change(pod.key, told)


def checkpoints(data: Json) -> Path:
    """Return where the training of a pod keeps its checkpoints: beside the directories of the attempts, as `airflow_mlops.stages.stop` says."""
    asked = dict(pairwise(data["spec"]["containers"][0]["command"]))
    return Path(asked["--result"]).parent.parent / "checkpoints"


def leave_record(command: list[str], *, spoiled: bool) -> None:
    """Do what the stage's command does when it ends well: leave its record, of a result with a file."""
    asked = dict(pairwise(command))
    path = Path(asked["--result"])
    spec = parse_spec("scripted", json.loads(Path(asked["--spec"]).read_text()))
    (path.parent / "model").write_text("weights")
    result = import_module("scripted_stage").Result(1.0, Artifact.of(path.parent / "model"))
    if spoiled:
        (path.parent / "model").write_text("wEights")
    write_atomically(path, canonical_json(to_data(Record(SCHEMA_VERSION, "scripted", spec_digest(spec), result=to_data(result)))))


class StateStore(dict[str, Any]):
    """Where Airflow lets an operator remember something for its next try."""

    set = dict.__setitem__


Make = Callable[[World], Any]


def play(world: World, make: Make) -> Counts:
    """Run the task of the operator that `make` returns as Airflow does, with new processes for those that died, and count."""
    schedule, counts, states = world.schedule, world.counts, StateStore()
    tries, retries, event = 1, 0, None
    while True:
        world.dead = False
        ti = FakeTaskInstance(task_id="t", try_number=tries, run_id=world.namespace)
        about: Any = context(ti, run_id=ti.run_id, dag=SimpleNamespace(parent_dag=None), task_state_store=states)
        try:
            task = make(world)
            task.execute(about) if event is None else task.trigger_reentry(about, event)
            counts.succeeded = 1
            break
        except TaskDeferred as deferred:
            world.deferred()
            event = _triggered(world, deferred.trigger)
            continue
        except TimeUp:
            tries += 1
            with contextlib.suppress(Died):
                task.on_kill()
                retries += 1
            if retries > RETRIES:
                break
        except Died:
            tries += 1  # the scheduler sees that the worker is gone; the user's retries are enough for that
        except Endless:
            counts.endless = 1
            break
        except AirflowFailException:
            break
        except Exception:  # whatever it is, Airflow tries again
            counts.retries_spent += schedule.program in ("good", "out of memory")
            tries, retries = tries + 1, retries + 1
            if retries > RETRIES:
                break
        event = None
        world.end_try()
    world.end_try()
    good = schedule.program in ("good", "out of memory")
    counts.silent_successes = int(bool(counts.succeeded) and not good)
    counts.silent_successes |= int(bool(counts.succeeded) and not any(one.steps == NUM_STEPS for one in world.pods.values()))
    counts.lost_runs = int(good and not counts.succeeded)
    world.look_on()
    counts.orphans = len(world.alive())
    return counts


def _triggered(world: World, trigger: Any) -> dict[str, Any]:
    """Return the event of a trigger, by a new triggerer where one died."""

    async def first(one: Any) -> Any:
        return (await anext(one.run())).payload

    while True:
        world.dead = False
        path, arguments = trigger.serialize()
        module, _, name = path.rpartition(".")
        try:
            return dict(asyncio.run(first(getattr(import_module(module), name)(**arguments))))
        except TimeUp:
            about = {"name": trigger.pod_name, "namespace": trigger.pod_namespace}
            return {"status": "timeout", "message": "too long", "last_log_time": None, **about}
        except Died:
            continue


@contextlib.contextmanager
def playing(api: FakeApi) -> Iterator[Callable[[Schedule, Make], Counts]]:
    """Yield what plays a schedule; meanwhile no pause of this process takes time, and every request to a pod goes through the world."""
    worlds: list[World] = []
    sync_request, async_request = kubernetes.client.rest.RESTClientObject.request, kubernetes_asyncio.client.rest.RESTClientObject.request
    real_sleep = asyncio.sleep

    def request(self: Any, method: str, url: str, *arguments: Any, **named: Any) -> Any:
        answered = worlds[-1].send(url)
        try:
            return sync_request(self, method, url, *arguments, **named)
        finally:
            answered()

    async def request_async(self: Any, method: str, url: str, *arguments: Any, **named: Any) -> Any:
        answered = worlds[-1].send(url)
        try:
            return await async_request(self, method, url, *arguments, **named)
        finally:
            answered()

    def one(schedule: Schedule, make: Make) -> Counts:
        worlds.append(World(api, f"run-{len(worlds)}", schedule))
        return play(worlds[-1], make)

    with pytest.MonkeyPatch.context() as patch:
        for kind, by in ((StagePodOperator, "worker"), (StagePodTrigger, "triggerer")):
            patch.setattr(kind, "log", _listening(lambda line, by=by: worlds[-1].hear(by, line)))
        patch.setattr(kubernetes.client.rest.RESTClientObject, "request", request)
        patch.setattr(kubernetes_asyncio.client.rest.RESTClientObject, "request", request_async)
        trust = ssl.create_default_context()  # the triggers' client reads all certificates anew for each look, and nothing here is encrypted
        patch.setattr(ssl, "create_default_context", lambda *_, **__: trust)
        patch.setattr(logging.Manager, "_clear_cache", lambda _: None)  # their clients set the level of a logger for each look, of Airflow's hundreds
        patch.setattr(time, "sleep", lambda _: None)
        patch.setattr(asyncio, "sleep", lambda _, result=None: real_sleep(0, result))
        yield one


def _listening(hear: Callable[[str], None]) -> logging.Logger:
    class Ear(logging.Logger):
        """Hears everything, also where the tests keep logs quiet."""

        def isEnabledFor(self, level: int) -> bool:
            return True

        def handle(self, record: logging.LogRecord) -> None:
            hear(record.getMessage())

    return Ear("of one process")


def drawn(number: int) -> list[Schedule]:
    """Return about so many schedules, the same ones every time."""
    found: list[Schedule] = []

    @settings(max_examples=number, derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(SCHEDULES)
    def collect(schedule: Schedule) -> None:
        found.append(schedule)

    collect()
    return found


def _terminated(code: int, reason: str) -> Json:
    return {"terminated": {"exitCode": code, "reason": reason, "startedAt": now(), "finishedAt": now()}}
