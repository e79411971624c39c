"""Faults around stages' pods under the real scheduler and triggerer, on a real control plane whose pods are processes of this machine.

A schedule is a run of one task, whose program is drawn; several run beside each other, while faults from outside are drawn, too: of the tasks'
processes, of Airflow's services, of pods, of nodes and of the API server. ``AIRFLOW_MLOPS_AIRFLOW_SCHEDULES`` says how many schedules are wanted;
with ``-s`` what happened is printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any

import pytest
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException

from airflow_mlops.records import ResultRef, load
from airflow_mlops.results import from_data
from tests.deployments import ROOT, Story, deployed, wait
from tests.kubernetes.conftest import api, cluster, control_plane, core, kubelet, namespace
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.kubelet import Kubelet

__all__ = ["api", "cluster", "control_plane", "core", "kubelet", "namespace"]
pytestmark = [pytest.mark.slow, pytest.mark.kubernetes, pytest.mark.timeout(7200)]
NUMBER = int(os.environ.get("AIRFLOW_MLOPS_AIRFLOW_SCHEDULES", "50"))
SEED, BESIDE = 1, 4
PAUSES = (3.0, 8.0)  # seconds between two faults, from and to
RUN_SECONDS = 900.0  # a run that has not ended by then hangs

PROGRAMS = {
    "good": {"action": "tell_lines", "text": "2", "number": 200.0},  # works for four seconds
    "fails": {"action": "crash"},
    "silent": {"action": "leave_silently"},
    "spoiled": {"action": "spoil_file"},
}
DAGS = """
from datetime import timedelta

from airflow.sdk import DAG

from airflow_mlops.operators.pod import StagePodOperator
from airflow_mlops.stages.pod import PodSpec

pod = PodSpec("stages", {namespace!r}, cpu="100m", memory="64Mi", max_interruptions=50, grace_seconds=2)
often = {{"retries": 20, "retry_delay": timedelta(seconds=1), "poll_interval": 1, "startup_check_interval_seconds": 1}}
for name, spec in {programs!r}.items():
    for deferrable in (False, True):
        with DAG(f"{{name}}_deferred" if deferrable else name, schedule=None, max_active_runs=8):
            StagePodOperator(task_id="t", stage="scripted", spec=spec, pod_spec=pod, deferrable=deferrable, **often)
"""
IDS = [f"{name}{how}" for name in PROGRAMS for how in ("", "_deferred")]


@pytest.fixture
def story(kubelet: Kubelet, namespace: str, tmp_path: Path) -> Iterator[Story]:
    """A deployment with a DAG for each program, deferred and not, whose pods run on one node."""
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "schedules.py").write_text(DAGS.format(namespace=namespace, programs=PROGRAMS))
    modules = os.pathsep.join([str(ROOT / "tests" / "scripted"), str(ROOT)])
    kubelet._env["PYTHONPATH"] = modules
    kubelet.add_node("node-0")
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(kubelet.cluster.kubeconfig), "in_cluster": False}}
    variables = {
        "PYTHONPATH": modules,
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(connection),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    }
    with deployed(tmp_path, tmp_path / "dags", variables, IDS) as story:
        yield story


class Watcher:
    """Sees every pod of a namespace from its creation to its end, and who has two at once."""

    def __init__(self, cluster: ControlPlane, namespace: str) -> None:
        self.created: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self.duplicates: list[list[str]] = []
        self._alive: dict[str, tuple[tuple[str, str], str]] = {}
        self._cluster, self._namespace, self._stopped = cluster, namespace, Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self._watch)
            try:
                yield
            finally:
                self._stopped.set()
                future.result()

    def _watch(self) -> None:
        with self._cluster.client() as api:
            pods = client.CoreV1Api(api)
            stream, version = watch.Watch(), pods.list_namespaced_pod(self._namespace).metadata.resource_version
            while not self._stopped.is_set():
                for event in stream.stream(pods.list_namespaced_pod, self._namespace, resource_version=version, timeout_seconds=2):
                    version = event["object"].metadata.resource_version
                    self._note(event["type"], event["object"])

    def _note(self, kind: str, pod: Any) -> None:
        about = pod.metadata
        run = (about.labels["dag_id"], about.labels["run_id"])
        self.created[run].add(about.uid)
        if kind == "DELETED" or pod.status.phase not in ("Pending", "Running"):
            self._alive.pop(about.uid, None)
            return
        self._alive[about.uid] = (run, about.name)
        beside = [name for other, name in self._alive.values() if other == run]
        if len(beside) > 1:
            self.duplicates.append(beside)


class Faults:
    """What goes wrong from outside, at random."""

    def __init__(self, story: Story, kubelet: Kubelet, core: client.CoreV1Api, namespace: str, chance: random.Random) -> None:
        self.story, self.kubelet, self.core, self.namespace, self.chance = story, kubelet, core, namespace, chance
        self.counts: Counter[str] = Counter()
        self._nodes = 1

    def strike(self) -> None:
        """Let one thing go wrong, if there is something that it can happen to."""
        kinds = {
            self.evict: 4,
            self.delete: 4,
            self.lose_node: 2,
            self.kill_task: 4,
            self.stop_api_server: 2,
            self.kill_triggerer: 1,
            self.kill_scheduler: 1,
        }
        (kind,) = self.chance.choices(list(kinds), list(kinds.values()))
        self.counts[kind.__name__] += kind()

    def evict(self) -> bool:
        running = [one for one in self.kubelet._played() if any(tries[-1].poll() is None for tries in one.tries.values())]
        if running:
            self.chance.choice(running).evict("Evicted", "The node was low on resource: memory.")
        return bool(running)

    def delete(self) -> bool:
        pods = self.core.list_namespaced_pod(self.namespace).items
        return bool(pods) and self._delete(self.chance.choice(pods), 2)

    def lose_node(self) -> bool:
        """Lose the node with all its pods, which somebody gives up three seconds later, and get another one."""
        lost, self._nodes = f"node-{self._nodes - 1}", self._nodes + 1
        self.kubelet.add_node(f"node-{self._nodes - 1}")
        self.kubelet.lose_node(lost)
        time.sleep(3.0)
        on_it = [pod for pod in self.core.list_namespaced_pod(self.namespace).items if pod.spec.node_name == lost]
        return sum(self._delete(pod, 0) for pod in on_it) > 0

    def kill_task(self) -> bool:
        running = [pid for pid, words in self._scheduled() if words.startswith(b"airflow worker -- ") and b"LocalExecutor" not in words]
        if running:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(self.chance.choice(running), signal.SIGKILL)
        return bool(running)

    def stop_api_server(self) -> bool:
        """Freeze it for four seconds: whoever asks waits, or gives up."""
        home = str(self.kubelet.cluster.home).encode()
        (pid,) = [pid for pid, words in processes() if b"/kube-apiserver\0" in words and home in words]
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(4.0)
        finally:
            os.kill(pid, signal.SIGCONT)
        return True

    def kill_triggerer(self) -> bool:
        self.story.kill("triggerer")
        return True

    def kill_scheduler(self) -> bool:
        self.story.kill("scheduler")
        return True

    def _scheduled(self) -> Iterator[tuple[int, bytes]]:
        """Yield the processes of the scheduler's session: tasks among them, which overwrite their environment."""
        leader = self.story.deployment.pids()["scheduler"]
        for pid, words in processes():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == leader:
                    yield pid, words

    def _delete(self, pod: Any, grace_seconds: int) -> bool:
        try:
            self.core.delete_namespaced_pod(pod.metadata.name, self.namespace, grace_period_seconds=grace_seconds)
        except ApiException as error:
            if error.status != 404:
                raise
            return False
        return True


def processes() -> Iterator[tuple[int, bytes]]:
    """Yield the ids and command lines of all processes."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                yield int(entry.name), (entry / "cmdline").read_bytes()


def verified(story: Story, scripted: ModuleType, dag_id: str, run_id: str) -> bool:
    """Whether a run that succeeded was one that could, and returned a record whose file and digests hold."""
    answer = story.api.xcom(dag_id, run_id, "t")
    return dag_id.startswith("good") and load(from_data(ResultRef, answer), scripted.Result).number == PROGRAMS["good"]["number"]


def played(story: Story, faults: Faults, chance: random.Random) -> dict[tuple[str, str], str]:
    """Play the schedules, and return in which state each run ended."""
    waiting = [f"{program}{how}" for program, how in ((draw(chance), chance.choice(("", "_deferred"))) for _ in range(NUMBER))]
    active: dict[tuple[str, str], float] = {}
    ended: dict[tuple[str, str], str] = {}
    next_fault = time.monotonic()
    while waiting or active:
        while waiting and len(active) < BESIDE:
            dag_id = waiting.pop()
            active[dag_id, story.api.trigger(dag_id)] = time.monotonic()
        for run, since in list(active.items()):
            state = story.api.run_state(*run)
            if state in ("success", "failed"):
                ended[run] = state
                del active[run]
                print(f"\n{len(ended)} of {NUMBER}: {run[0]} {state} after {time.monotonic() - since:.0f} s; {dict(faults.counts)}", flush=True)
            assert time.monotonic() - since < RUN_SECONDS, (run, state)
        if time.monotonic() > next_fault:
            faults.strike()
            next_fault = time.monotonic() + chance.uniform(*PAUSES)
        time.sleep(0.5)
    return ended


def draw(chance: random.Random) -> str:
    return chance.choices(list(PROGRAMS), [7, 1, 1, 1])[0]


def test_whatever_fails_around_it_a_run_ends_in_a_verified_record_or_a_failure(
    story: Story, kubelet: Kubelet, core: client.CoreV1Api, namespace: str, control_plane: ControlPlane, scripted: ModuleType
) -> None:
    chance = random.Random(SEED)
    faults, watcher = Faults(story, kubelet, core, namespace, chance), Watcher(control_plane, namespace)
    with watcher.watching():
        ended = played(story, faults, chance)
        wait("no pod is left", lambda: core.list_namespaced_pod(namespace).items == [])
    pods = sum(map(len, watcher.created.values()))
    print(f"\n{len(ended)} schedules, {pods} pods, faults: {dict(faults.counts)}, ended: {dict(Counter(ended.values()))}", flush=True)
    assert watcher.duplicates == []
    assert [run for run, state in ended.items() if state == "success" and not verified(story, scripted, *run)] == []
    assert [run for run, state in ended.items() if state == "failed" and run[0].startswith("good")] == []
    assert pods > len(ended), "faults that cost no pod prove nothing"
