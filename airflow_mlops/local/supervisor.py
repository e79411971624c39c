"""Keeps the services of a one-machine deployment running: ``python -m airflow_mlops.local.supervisor HOME``.

Each service is a session of its own, so that it can be ended with all it started. A service that ends is started again; one that ends again
and again is started less and less often, up to once in `MAX_PAUSE` seconds. The scheduler is started again, too, when nothing leaves Airflow's queue.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from airflow_mlops.artifacts import canonical_json, write_atomically
from airflow_mlops.local.api import AirflowApi
from airflow_mlops.local.lock import only_one
from airflow_mlops.local.processes import Session, send
from airflow_mlops.local.services import Settings
from airflow_mlops.local.stall import Queue, Watch
from airflow_mlops.results import to_data

MAX_PAUSE = 30.0
STABLE_SECONDS = 60.0  # a service that ran this long starts with a clean slate
GRACE_SECONDS = 8.0
log = logging.getLogger(__name__)


class Service:
    """One process that should always run; its output is appended to ``logs/<name>.log``."""

    def __init__(self, name: str, command: list[str], logs: Path) -> None:
        self.name, self.command = name, command
        self._log_path = logs / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.session: Session | None = None
        self._started_at = 0.0
        self._pause = 0.0

    def keep_running(self, now: float) -> None:
        """Start the process if it does not run and its pause is over; `now` is in seconds of a monotonic clock."""
        if self._process is not None and self._process.poll() is not None:
            log.info("%s ended with exit code %s", self.name, self._process.returncode)
            self.kill()  # what it started must not live on beside its successor
            self._pause = 1.0 if now - self._started_at > STABLE_SECONDS else min(2 * self._pause or 1.0, MAX_PAUSE)
            self._started_at = now
            self._process = None
        if self._process is None and now - self._started_at >= self._pause:
            with self._log_path.open("ab") as output:
                self._process = subprocess.Popen(
                    self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            self.session = Session.of(self._process.pid)
            self._started_at = now
            log.info("%s started as process %d", self.name, self._process.pid)

    def end(self) -> None:
        """Ask the service to end."""
        if self._process is not None:
            send([self._process.pid], signal.SIGTERM)

    def kill(self) -> None:
        """Kill the service and all it started."""
        if self.session is not None:
            send(self.session.members(), signal.SIGKILL)

    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None


def supervise(home: Path) -> int:
    """Run the services that ``HOME/services.json`` names until SIGTERM, then end them all; raise `MlopsError` if another process does that."""
    with only_one(home, "supervisor"):
        os.umask(0o077)  # what services write is for this user alone
        commands: dict[str, list[str]] = json.loads((home / "services.json").read_bytes())
        _supervise(home, [Service(name, command, home / "logs") for name, command in commands.items()])
    return 0


def _supervise(home: Path, services: list[Service]) -> None:
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    (home / "logs").mkdir(parents=True, exist_ok=True)
    watch = _watch(home) if any(service.name == "scheduler" for service in services) else None
    while not stopping.is_set():
        before = [service.session for service in services]
        for service in services:
            if service.name == "scheduler" and watch and watch.stalled():
                log.warning(
                    "Nothing leaves Airflow's queue: the scheduler is started again. A worker that was killed may have kept the queue's lock."
                )
                service.kill()
            service.keep_running(time.monotonic())
        if before != [service.session for service in services]:
            sessions = {service.name: to_data(service.session) for service in services if service.session}
            write_atomically(home / "processes.json", canonical_json(sessions), mode=0o600)
        time.sleep(0.5)
    _end(services)


def _watch(home: Path) -> Watch:
    settings = Settings.of(home)
    return Watch(Queue(lambda: AirflowApi(settings.url("airflow"), "admin", settings.password)).look)


def _end(services: list[Service]) -> None:
    for service in services:
        service.end()
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and not all(service.ended() for service in services):
        time.sleep(0.1)
    for service in services:
        service.kill()


if __name__ == "__main__":
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the queue is asked for all day
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    raise SystemExit(supervise(Path(sys.argv[1])))
