"""One pod on a played node: its containers run as local processes, and the API server hears what became of them, as from a kubelet."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes.client.exceptions import ApiException

from tests.kubernetes import mounts
from tests.kubernetes.containers import Container, Guard, Log, environment, expanded, mounted, volumes

BACK_OFF_SECONDS = 0.5  # before a container is started again: a kubelet begins with 10 s


@dataclass(frozen=True)
class Image:
    """What stands for an image: its containers run on this machine.

    :param entrypoint: runs where a container names no command of its own.
    :param env: variables that the image brings.
    :param pull_error: why it cannot be pulled, such as ``ImagePullBackOff``; its containers never start.
    :param failure: the reason that a node gives when its container does not end with 0, such as ``OOMKilled``.
    """

    entrypoint: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pull_error: str = ""
    failure: str = "Error"


class PlayedPod:
    """A pod from the moment it is bound to the node until its containers ended; `run` returns then, and the rest is said from other threads.

    :param pod: what the API server said of it.
    :param core: the API.
    :param images: what each image is; others bring nothing.
    :param home: an empty directory of its own.
    :param hidden: directories of this machine that are empty for its containers.
    """

    def __init__(self, pod: Any, core: Any, images: Mapping[str, Image], home: Path, guard: Guard, hidden: Sequence[Path] = ()) -> None:
        self.pod, self.core, self.images, self.home, self.guard, self.hidden = pod, core, images, home, guard, hidden
        self.tries: dict[str, list[Container]] = {}
        self._grace: float | None = None  # seconds, once it is to stop
        self._told, self._stop, self._started = {"phase": ""}, threading.Event(), datetime.now(UTC)
        self._verdict: dict[str, str] = {}
        self._lacks = ""  # what it names and is not there
        self.silent = False  # the node is lost: nobody hears of it any more

    def log(self, container: str, previous: bool) -> Log | None:
        """Return the log of a container's last try, or of the one before."""
        tries = self.tries.get(container, [])
        return tries[-1 - previous].log if len(tries) > previous else None

    def stop(self, grace_seconds: float) -> None:
        """Ask its containers to end, and end them when the time is over; 0 ends them at once."""
        self._grace = min(grace_seconds, self._grace if self._grace is not None else grace_seconds)
        self._stop.set()

    def evict(self, reason: str, message: str) -> None:
        """Let the node end the pod: it fails with a reason, such as ``Evicted``."""
        self._verdict = {"reason": reason, "message": message}
        self.stop(0)

    def end(self, container: str, code: int, reason: str) -> None:
        """Let the node end a container for a reason such as ``OOMKilled``."""
        self.tries[container][-1].end(code, reason)

    def run(self) -> None:
        """Run the pod to its end; whatever happens, no container outlives this."""
        try:
            self._run()
        finally:
            for container in [one for tries in self.tries.values() for one in tries]:
                container.kill()
                container.log.close()

    def _run(self) -> None:
        spec = self.pod.spec
        for one in [*(spec.init_containers or []), *spec.containers]:
            error = self._image(one).pull_error
            if error:
                self._never_start(error, "Failed", f'Failed to pull image "{one.image}": {error}')
                return
        self._tell("Pending", waiting="PodInitializing" if spec.init_containers else "ContainerCreating")
        with self._looking():
            self._places = volumes(self.pod, self.core, self.home / "volumes")
        if self._lacks:  # which a node says in an event only
            why, self._lacks = self._lacks, ""
            self._never_start("ContainerCreating", "FailedMount", f"MountVolume.SetUp failed: {why}")
            return
        with self._looking():
            for one in [*(spec.init_containers or []), *spec.containers]:
                environment(self.pod, one, self.core, {})
        if self._lacks:
            self._never_start("CreateContainerConfigError", "Failed", f"Error: {self._lacks}")
            return
        for one in spec.init_containers or []:
            self._until_ended([one], again=spec.restart_policy != "Never", always=False)
            if self._stop.is_set() or self.tries[one.name][-1].code:
                self._finish()
                return
        self._until_ended(spec.containers, again=spec.restart_policy != "Never", always=spec.restart_policy == "Always")
        self._finish()

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        try:
            yield
        except ApiException as error:
            if error.status != 404:
                raise
            self._lacks = json.loads(error.body)["message"].replace("s ", " ", 1)  # a node writes: secret "x" not found

    def _never_start(self, waiting: str, reason: str, message: str) -> None:
        self._tell("Pending", waiting=waiting)
        self._event(reason, message)
        self._stop.wait()
        self._finish()

    def _until_ended(self, specs: list[Any], *, again: bool, always: bool) -> None:
        """Run containers until all ended for good, or the pod is to stop; those that may are started again."""
        for one in specs:
            self._start(one)
        due: dict[str, float] = {}
        while not self._stop.wait(0.03):
            running = [one for one in specs if self.tries[one.name][-1].poll() is None]
            ended = [one for one in specs if one not in running and again and (always or self.tries[one.name][-1].code)]
            for one in ended:
                if time.monotonic() >= due.setdefault(one.name, time.monotonic() + BACK_OFF_SECONDS * len(self.tries[one.name])):
                    self._start(one)
                    del due[one.name]
            if not running and not ended:
                return
            self._tell("Running" if specs is self.pod.spec.containers else "Pending", waiting="PodInitializing", restarting={*due})
        self._end_gently()

    def _start(self, one: Any) -> None:
        image = self._image(one)
        env = environment(self.pod, one, self.core, {**image.env, "HOSTNAME": self.pod.metadata.name})
        made = mounts.real(self.pod, one, self._places, self.hidden)
        told = [mount for mount in one.volume_mounts or [] if mount not in made]
        env = {name: mounted(value, told, self._places) for name, value in env.items()}
        words = [*(one.command or image.entrypoint), *(one.args or [])]
        command = [mounted(expanded(word, env), told, self._places) for word in words]
        if command and shutil.which(command[0], path=env["PATH"]):  # else it ends as on a node
            hold = Path(tempfile.mkdtemp(prefix="mounts-", dir=self.home))
            command = mounts.wrapped(command, self.pod, made, self._places, self.hidden, hold)
        container = Container(command, env, self.home, self.guard)
        container.start()
        self.tries.setdefault(one.name, []).append(container)

    def _end_gently(self) -> None:
        containers, began = [tries[-1] for tries in self.tries.values()], time.monotonic()
        for container in containers:
            container.signal(signal.SIGTERM)
        while [one for one in containers if one.poll() is None] and time.monotonic() - began < (self._grace or 0):
            time.sleep(0.03)
        for container in containers:
            container.kill()

    def _finish(self) -> None:
        names = [one.name for one in self.pod.spec.containers]
        good = all(name in self.tries and self.tries[name][-1].code == 0 for name in names)
        self._tell("Succeeded" if good and not self._verdict else "Failed", waiting="PodInitializing")
        if self._verdict:
            self._event(self._verdict["reason"], self._verdict["message"])

    def _image(self, one: Any) -> Image:
        return self.images.get(one.image, Image())

    def _tell(self, phase: str, *, waiting: str, restarting: set[str] | None = None) -> None:
        """Tell the API server what is new, and then those who follow a log that it ended."""
        ended = [container for tries in self.tries.values() for container in tries if container.poll() is not None]
        spec, ready = self.pod.spec, phase == "Running"
        every = [("initContainerStatuses", spec.init_containers or []), ("containerStatuses", spec.containers)]
        status: dict[str, Any] = {kind: [self._status(one, waiting, restarting or set()) for one in specs] for kind, specs in every if specs}
        ready = ready and all(one["ready"] for one in status["containerStatuses"])
        states = {"Initialized": waiting != "PodInitializing" or phase != "Pending", "Ready": ready, "ContainersReady": ready}
        status["conditions"] = [{"type": name, "status": str(value)} for name, value in states.items()]
        status |= {"phase": phase, "hostIP": "127.0.0.1", "podIP": "127.0.0.1", "startTime": _time(self._started), **self._verdict}
        if status != self._told and not self.silent:
            self._told = status
            name, namespace = self.pod.metadata.name, self.pod.metadata.namespace
            _unless_gone(self.core.patch_namespaced_pod_status, name, namespace, {"metadata": {"uid": self.pod.metadata.uid}, "status": status})
        for container in ended:
            container.log.close()

    def _status(self, one: Any, waiting: str, restarting: set[str]) -> dict[str, Any]:
        tries = self.tries.get(one.name, [])
        states = [self._state(one, container, f"played://{self.pod.metadata.uid}/{one.name}/{num}") for num, container in enumerate(tries)]
        now = (
            {"waiting": {"reason": "CrashLoopBackOff"}}
            if one.name in restarting
            else states[-1]
            if states
            else {"waiting": {"reason": waiting, "message": self._lacks}}
        )
        last = states[-1] if one.name in restarting else states[-2] if len(states) > 1 else {}
        running = "running" in now
        about = {"name": one.name, "image": one.image, "imageID": one.image, "containerID": f"played://{self.pod.metadata.uid}/{one.name}"}
        return {**about, "ready": running, "started": running, "restartCount": max(0, len(tries) - 1), "state": now, "lastState": last}

    def _state(self, one: Any, container: Container, container_id: str) -> dict[str, Any]:
        code, started = container.poll(), _time(container.started)
        if code is None:
            return {"running": {"startedAt": started}}
        reason = self._image(one).failure if container.reason == "Error" else container.reason
        ended = {"finishedAt": _time(container.ended or container.started), "message": _last_words(one, container), "containerID": container_id}
        return {"terminated": {"exitCode": code, "reason": reason, "startedAt": started, **ended}}

    def _event(self, reason: str, message: str) -> None:
        about = self.pod.metadata
        involved = {"apiVersion": "v1", "kind": "Pod", "name": about.name, "namespace": about.namespace, "uid": about.uid}
        times = {"firstTimestamp": _time(datetime.now(UTC)), "lastTimestamp": _time(datetime.now(UTC)), "count": 1}
        body = {"metadata": {"generateName": f"{about.name}."}, "involvedObject": involved, "type": "Warning", "reason": reason, "message": message}
        _unless_gone(self.core.create_namespaced_event, about.namespace, {**body, **times, "source": {"component": "kubelet"}})


def _last_words(one: Any, container: Container) -> str:
    """Return why a container ended, as a kubelet has it: the end of the log, at most 80 lines and 2048 bytes, where it failed and asks for that."""
    if container.message or not container.code or one.termination_message_policy != "FallbackToLogsOnError":
        return container.message
    return b"".join(line for _, line in container.log.lines()[-80:])[-2048:].decode(errors="replace")


def _unless_gone(call: Any, *arguments: Any) -> None:
    """Call the API about a pod that somebody may have deleted meanwhile, or with its namespace."""
    try:
        call(*arguments)
    except ApiException as error:
        if error.status not in (403, 404, 409):
            raise


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
