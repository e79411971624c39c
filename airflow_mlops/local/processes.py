"""Processes of a deployment, found again whatever they call themselves.

A service and all it starts are one session. Airflow's processes overwrite their command line and their environment, start process groups of
their own, and outlive their parents; they never leave their session.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from airflow_mlops.results import STRICT

PROC = Path("/proc")


@STRICT
@dataclass(frozen=True)
class Session:
    """The session that process `pid` leads: `started` is its start in clock ticks since the boot called `boot`."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Session:
        """Return the session that the running process `pid` leads."""
        return cls(pid, _Stat.of(pid).started, _boot())

    def members(self) -> list[int]:
        """Return the processes of this session that still run.

        A number that the system has given to somebody else since is not mistaken for ours: while one member lives the leader's number is not
        given away, another leader has another start, and members run this interpreter.
        """
        if self.boot != _boot():
            return []
        with contextlib.suppress(OSError):
            if _Stat.of(self.pid).started != self.started:
                return []
        ours = Path(sys.executable).resolve()
        return [pid for pid in pids() if _belongs(pid, self, ours)]


class _Stat(NamedTuple):
    """What ``/proc/PID/stat`` says (proc(5)): fields 6 and 22, and 3."""

    session: int
    started: int
    state: str

    @classmethod
    def of(cls, pid: int) -> _Stat:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()  # the name before it may hold anything
        return cls(int(fields[3]), int(fields[19]), fields[0])


def _belongs(pid: int, session: Session, interpreter: Path) -> bool:
    with contextlib.suppress(OSError):  # it ended while we looked, or is not ours to read
        stat = _Stat.of(pid)
        same = stat.session == session.pid and stat.started >= session.started and stat.state != "Z"
        return same and (PROC / str(pid) / "exe").resolve() == interpreter
    return False


def _boot() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def pids() -> list[int]:
    """Return every process of this machine but this one."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit() and int(entry.name) != os.getpid()]


def marked(mark: str) -> list[int]:
    """Return the processes that were started with ``mark`` (``NAME=value``) in their environment and have not overwritten it."""
    found = []
    for pid in pids():
        with contextlib.suppress(OSError):
            if mark.encode() in (PROC / str(pid) / "environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def command_line(pid: int) -> str:
    """Return the command line of a process, empty if it is gone."""
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def send(processes: Iterable[int], how: signal.Signals) -> None:
    """Send a signal to each process that still runs."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
