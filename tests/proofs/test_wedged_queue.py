"""A worker of the LocalExecutor that is killed while it waits takes the queue's lock with it: the supervisor sees that, and work continues."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.deployments import deployed, wait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DAG = """
from datetime import timedelta

from airflow.sdk import dag, task


@dag(schedule=None, default_args={"retries": 5, "retry_delay": timedelta(seconds=1)})
def small():
    @task
    def work():
        return 1

    work()

small()
"""


def holder(scheduler: int) -> int | None:
    """Return the idle worker that reads the queue's pipe, and so holds its lock, once all the others wait for that."""
    workers = [child.pid for child in psutil.Process(scheduler).children() if "worker" in " ".join(child.cmdline())]
    reading = [pid for pid in workers if "pipe" in Path(f"/proc/{pid}/wchan").read_text()]
    return reading[0] if len(reading) == 1 and len(workers) > 1 else None


def test_a_queue_whose_lock_was_lost_with_its_holder_has_the_scheduler_started_again(tmp_path: Path) -> None:
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "small.py").write_text(DAG)
    (tmp_path / "home").mkdir()
    with deployed(tmp_path / "home", tmp_path / "dags", unpaused=["small"]) as story:
        first = story.api.trigger("small")
        assert story.finished("small", first) == "success"
        before = story.deployment.pids()["scheduler"]
        os.kill(wait("a worker holds the lock", lambda: holder(before)), signal.SIGKILL)
        second = story.api.trigger("small")
        wait("the supervisor starts another scheduler", lambda: story.deployment.pids()["scheduler"] != before, seconds=400.0)
        assert story.finished("small", second) == "success"
        assert "Nothing leaves Airflow's queue" in (story.home / "logs" / "supervisor.log").read_text()
        private = [
            path for path in story.home.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o077 and "site-packages" not in path.parts
        ]
        assert private == [], "what a running deployment writes is for its owner only"
