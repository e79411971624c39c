"""A played container: the command of a pod as a local process, with its log, its volumes as directories and what it leaves behind ended."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self, cast

GUARD = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    os.killpg(group, signal.SIGKILL)
"""


class Guard:
    """Kills every container that still runs when the test's process is gone, by ``kill -9`` too, and whatever those started."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-I", "-S", "-c", GUARD]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, bufsize=1, start_new_session=True)
        self._lock = threading.Lock()
        return self

    def __exit__(self, *_: object) -> None:
        cast(IO[str], self._process.stdin).close()
        self._process.wait(10)

    def tell(self, sign: str, group: int) -> None:
        """Say that a process group lives, by ``+``, or is about to be no more, by ``-``."""
        with self._lock:
            cast(IO[str], self._process.stdin).write(f"{sign}{group}\n")


class Log:
    """The lines of one try of a container with their times; several may read them while they come."""

    def __init__(self) -> None:
        self._lines: list[tuple[datetime, bytes]] = []
        self._changed, self._closed = threading.Condition(), False

    def copy(self, stream: IO[bytes]) -> None:
        """Take every line of a stream."""
        with stream:
            for line in stream:
                with self._changed:
                    self._lines.append((datetime.now(UTC), line))
                    self._changed.notify_all()

    def close(self) -> None:
        """Say that no further line comes: those who follow are told once the API server knows that the container ended, as by a kubelet."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def lines(self) -> list[tuple[datetime, bytes]]:
        """Return what stands there now."""
        with self._changed:
            return list(self._lines)

    def follow(self, first: int) -> Iterator[tuple[datetime, bytes]]:
        """Yield the lines from number `first` on, and wait for more until the container ended."""
        while True:
            with self._changed:
                while len(self._lines) <= first and not self._closed:
                    self._changed.wait()
                new = self._lines[first:]
            if not new:
                return
            yield from new
            first += len(new)


@dataclass
class Container:
    """One try of a container.

    :param command: the words, as the container would see them.
    :param env: its whole environment.
    :param home: its working directory.
    :param guard: who ends it when nobody else can.
    """

    command: list[str]
    env: Mapping[str, str]
    home: Path
    guard: Guard
    log: Log = field(default_factory=Log)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended: datetime | None = None
    code: int | None = None
    reason: str = ""
    message: str = ""
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; a command that does not exist ends as it does on a node, with 128."""
        if not self.command or shutil.which(self.command[0], path=self.env["PATH"]) is None:
            self.message = f"exec: {self.command[:1]}: executable file not found in $PATH"
            self.end(128, "StartError")
            return
        self._process = subprocess.Popen(
            self.command,
            executable=shutil.which(self.command[0], path=self.env["PATH"]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(self.env),
            cwd=self.home,
            start_new_session=True,
        )
        self.guard.tell("+", self._process.pid)
        self._reader = threading.Thread(target=self.log.copy, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def end(self, code: int, reason: str) -> None:
        """Let it have ended for a reason of the node's, such as ``OOMKilled``; the first reason stays."""
        if self.code is None:
            self.code, self.reason, self.ended = code, reason, datetime.now(UTC)
            self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
                os.killpg(self._process.pid, number)

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs. When its first process ends, all others do."""
        process = self._process
        if process is not None and process.returncode is None and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            self.signal(signal.SIGKILL)
            self.guard.tell("-", process.pid)  # its number may be another's once it is reaped
            code = process.wait()
            self._reader.join()
            self.end(code if code >= 0 else 128 - code, "Error" if code else "Completed")
        return self.code if process is None or process.returncode is not None else None

    def kill(self) -> None:
        """End it at once and wait until it is no more."""
        self.signal(signal.SIGKILL)
        while self.poll() is None:
            threading.Event().wait(0.01)


def environment(pod: Any, container: Any, core: Any, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a container: what its image brings, then what the pod says, from wherever it says it."""
    env, namespace = dict(base), pod.metadata.namespace
    for source in container.env_from or []:
        reference = source.secret_ref or source.config_map_ref
        found = _values(core, namespace, "secret" if source.secret_ref else "config_map", reference.name)
        env.update({f"{source.prefix or ''}{name}": value for name, value in found.items()})
    for variable in container.env or []:
        env[variable.name] = expanded(variable.value or "", env) if variable.value_from is None else _value(pod, variable.value_from, core)
    return env


def _value(pod: Any, source: Any, core: Any) -> str:
    if source.field_ref is not None:
        return _field(pod, source.field_ref.field_path)
    kind = "secret" if source.secret_key_ref is not None else "config_map"
    reference = source.secret_key_ref or source.config_map_key_ref
    return _values(core, pod.metadata.namespace, kind, reference.name)[reference.key]


def _field(pod: Any, path: str) -> str:
    known = {
        "metadata.name": pod.metadata.name,
        "metadata.namespace": pod.metadata.namespace,
        "metadata.uid": pod.metadata.uid,
        "spec.nodeName": pod.spec.node_name,
        "spec.serviceAccountName": pod.spec.service_account_name,
        "status.podIP": "127.0.0.1",
        "status.hostIP": "127.0.0.1",
    }
    for kind in ("labels", "annotations"):
        known.update({f"metadata.{kind}['{name}']": value for name, value in (getattr(pod.metadata, kind) or {}).items()})
    return str(known[path])


def _values(core: Any, namespace: str, kind: str, name: str) -> dict[str, str]:
    data = getattr(core, f"read_namespaced_{kind}")(name, namespace).data or {}
    return {key: base64.b64decode(value).decode() if kind == "secret" else value for key, value in data.items()}


def expanded(text: str, env: Mapping[str, str]) -> str:
    """Return a text with every ``$(NAME)`` replaced by what the environment says; unknown names stay."""
    return re.sub(r"\$\((\w+)\)", lambda found: env.get(found[1], found[0]), text)


def volumes(pod: Any, core: Any, home: Path) -> dict[str, Path]:
    """Return the directory of each volume: of the host, of a claim's volume on the host, or one of the pod's own."""
    places = {}
    for volume in pod.spec.volumes or []:
        own = home / volume.name
        own.mkdir(parents=True)
        if volume.host_path is not None:
            own = Path(volume.host_path.path)
        elif volume.persistent_volume_claim is not None:
            claim = core.read_namespaced_persistent_volume_claim(volume.persistent_volume_claim.claim_name, pod.metadata.namespace)
            own = Path(core.read_persistent_volume(claim.spec.volume_name).spec.host_path.path)
        elif volume.config_map is not None or volume.secret is not None:
            kind, name = ("config_map", volume.config_map.name) if volume.config_map is not None else ("secret", volume.secret.secret_name)
            for key, value in _values(core, pod.metadata.namespace, kind, name).items():
                (own / key).write_text(value)
        places[volume.name] = own
    return places


def mounted(text: str, mounts: Iterable[Any], places: Mapping[str, Path]) -> str:
    """Return a text in which paths below these mounts are those of this machine: nothing is mounted there."""
    for mount in sorted(mounts, key=lambda mount: -len(mount.mount_path)):
        place = places[mount.name] / (mount.sub_path or "")
        text = re.sub(rf"(?<![\w./-]){re.escape(mount.mount_path)}(?![\w.-])", str(place).replace("\\", r"\\"), text)
    return text
