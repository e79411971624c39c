"""A service's session is found again whatever its processes call themselves and whoever their parent is by now."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_mlops.local.processes import Session, marked, send

# A leader and a child in a process group of its own; both hide behind another title, as Airflow's processes do.
SERVICE = """
import os, sys, time
import setproctitle
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
setproctitle.setproctitle("somebody else " * 200)
os.write(1, b"ready\\n")  # one write: the lines of both do not mix
time.sleep(60)
"""


@pytest.fixture
def service() -> Iterator[subprocess.Popen[str]]:
    env = {**os.environ, "MLOPS_TEST_MARK": "here"}
    with subprocess.Popen([sys.executable, "-c", SERVICE], env=env, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        yield process
        for pid in of_session(process.pid):
            os.kill(pid, signal.SIGKILL)


def of_session(leader: int) -> list[int]:
    """Return the live members of a session, asked of the system call."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == leader and ") Z" not in (entry / "stat").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def test_the_members_are_found_though_they_overwrote_their_environment(service: subprocess.Popen[str]) -> None:
    assert len(of_session(service.pid)) == 2
    assert sorted(Session.of(service.pid).members()) == of_session(service.pid)
    assert marked("MLOPS_TEST_MARK=here") == [], "the mark alone would find nobody"


def test_a_killed_leader_leaves_members_that_are_still_found_and_ended(service: subprocess.Popen[str]) -> None:
    session = Session.of(service.pid)
    service.kill()
    service.wait()
    (orphan,) = session.members()
    send([orphan], signal.SIGKILL)
    deadline = time.monotonic() + 5.0
    while session.members() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert session.members() == of_session(service.pid) == []


def test_a_number_that_was_given_to_somebody_else_is_not_ours(service: subprocess.Popen[str]) -> None:
    session = Session.of(service.pid)
    assert replace(session, started=session.started - 1).members() == []
    assert replace(session, boot="another boot").members() == []


def test_a_signal_to_a_process_that_is_gone_is_no_error(service: subprocess.Popen[str]) -> None:
    service.kill()
    service.wait()
    send([service.pid], signal.SIGTERM)
