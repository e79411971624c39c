"""Whether tasks still leave Airflow's queue: a LocalExecutor worker that is killed while it waits takes the queue's lock with it, and silently no
other one ever gets work. The decision is pure; `Watch` observes, in a thread of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import httpx

from airflow_mlops.exceptions import MlopsError
from airflow_mlops.local.api import AirflowApi

LOOK_SECONDS = 10.0
STALL_SECONDS = 120.0  # a worker takes a task in a second, on a machine that is busy in half a minute
BUSY_STALL_SECONDS = 900.0  # while tasks run, which a restart interrupts
log = logging.getLogger(__name__)


class Seen(NamedTuple):
    """The ids of the task instances that are queued, and how many run."""

    queued: frozenset[str]
    running: int


class Stall:
    """Decides from one observation after the other whether the queue is stalled."""

    def __init__(self, *, stall_seconds: float = STALL_SECONDS, busy_seconds: float = BUSY_STALL_SECONDS) -> None:
        self._stall_seconds, self._busy_seconds = stall_seconds, busy_seconds
        self._queued: frozenset[str] = frozenset()
        self._since = 0.0

    def stands(self, seen: Seen | None, now: float) -> bool:
        """Return whether nothing has left the queue for too long at `now` (monotonic seconds); None was seen when Airflow did not answer.

        After True the count begins again: what was restarted has its time.
        """
        if seen is None:
            self._queued = frozenset()  # it may have been restarted meanwhile
            return False
        moved = not self._queued or bool(self._queued - seen.queued)
        if moved or not seen.queued:
            self._since = now
        self._queued = seen.queued
        if not seen.queued or now - self._since < (self._busy_seconds if seen.running else self._stall_seconds):
            return False
        self._queued = frozenset()
        return True


class Queue:
    """What Airflow's REST API says of its queue; `log_in` makes a user of it, again after anything went wrong."""

    def __init__(self, log_in: Callable[[], AirflowApi]) -> None:
        self._log_in = log_in
        self._api: AirflowApi | None = None

    def look(self) -> Seen | None:
        """Return what is queued and runs now, None if Airflow does not say."""
        try:
            self._api = self._api or self._log_in()
            found = self._api.call("GET", "/dags/~/dagRuns/~/taskInstances?state=queued&state=running&limit=1000")["task_instances"]
        except (MlopsError, httpx.HTTPError) as error:
            self._api = None  # a login expires
            log.info("Airflow does not say what is queued: %s", error)
            return None
        states = [(str(task["id"]), task["state"]) for task in found]
        return Seen(frozenset(key for key, state in states if state == "queued"), sum(state == "running" for _, state in states))


class Watch:
    """Looks every `LOOK_SECONDS` in a thread, and remembers until it is asked that the queue was stalled."""

    def __init__(self, observe: Callable[[], Seen | None], *, stall: Stall | None = None, look_seconds: float = LOOK_SECONDS) -> None:
        self._observe, self._stall, self._look_seconds = observe, stall or Stall(), look_seconds
        self._stalled = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="watch of the queue").start()

    def stalled(self) -> bool:
        """Return whether the queue was stalled since this was last asked."""
        stalled = self._stalled.is_set()
        self._stalled.clear()
        return stalled

    def _run(self) -> None:
        while True:
            time.sleep(self._look_seconds)
            if self._stall.stands(self._observe(), time.monotonic()):
                self._stalled.set()
