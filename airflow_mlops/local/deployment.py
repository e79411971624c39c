"""Start and stop everything on one machine: Airflow, MLflow and the model server below one directory, without questions."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx

from airflow_mlops.artifacts import canonical_json, write_atomically
from airflow_mlops.exceptions import MlopsError
from airflow_mlops.local.lock import only_one
from airflow_mlops.local.processes import Session, command_line, marked, send
from airflow_mlops.local.services import MARKER, USERS, Settings, commands, environment
from airflow_mlops.results import from_data

START_SECONDS = 180.0  # Airflow's first start migrates its database and takes half a minute on two cores


class LocalDeployment:
    """A deployment below the directory `home`, running the DAGs in `dags`; `variables` are further ones of its processes' environment."""

    def __init__(self, home: Path, dags: Path, variables: Mapping[str, str] | None = None) -> None:
        self.home, self.dags, self._variables = home, dags, dict(variables or {})
        self.settings = Settings.of(home)

    @property
    def env(self) -> dict[str, str]:
        """The environment variables of all its processes."""
        return {**environment(self.home, self.dags, self.settings), **self._variables}

    @property
    def inbox(self) -> Path:
        return self.home / "inbox"

    def start(self, say: Callable[[str], None]) -> None:
        """Start whatever does not run and return when all services answer.

        :raises MlopsError: a service does not answer, whose log the message names; or another process starts this deployment now.
        """
        with only_one(self.home, "start"), _for_nobody_else():
            self.settings = Settings.of(self.home)  # another one may have made them since
            if not _supervisors(self.home):
                end_processes(self.home)  # what a killed supervisor left would hold the ports
                self.settings = self.settings.store(self.home)
                self._prepare(say)
                write_atomically(self.home / "services.json", canonical_json(commands(self.home, self.settings)), mode=0o600)
                self._supervise()
            self._wait_until_healthy(say)

    def _supervise(self) -> None:
        with (self.home / "logs" / "supervisor.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "airflow_mlops.local.supervisor", str(self.home)],
                env=self._process_env(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _process_env(self) -> dict[str, str]:
        # Settings of another Airflow in the caller's shell must not reach this one.
        inherited = {name: value for name, value in os.environ.items() if not name.lstrip("_").startswith("AIRFLOW")}
        # The services speak to each other on loopback, which the caller's proxy cannot reach.
        direct = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1")))
        return {**inherited, "no_proxy": direct, "NO_PROXY": direct, **self.env}

    def pids(self) -> dict[str, int]:
        """Return the process id of each service as the supervisor last wrote it."""
        return {name: session.pid for name, session in _sessions(self.home).items()}

    def _prepare(self, say: Callable[[str], None]) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o700)
        for name in ("airflow", "inbox", "logs", "models", "mlflow-artifacts", "workspace"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
        (self.home / "models.config").touch()
        write_atomically(self.home / "airflow" / "passwords.json", canonical_json(dict.fromkeys(USERS, self.settings.password)), mode=0o600)
        # Not the mark: `stop` would end whatever was started in a shell that has read the file, itself included.
        lines = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(self.env.items()) if name != MARKER)
        write_atomically(self.home / "env", lines.encode(), mode=0o600)
        say("preparing Airflow's database")
        self._migrate()

    def _migrate(self) -> None:
        command = [sys.executable, "-m", "airflow", "db", "migrate"]
        with (self.home / "logs" / "migrate.log").open("wb") as log:
            code = subprocess.run(command, env=self._process_env(), stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        if code != 0:
            raise MlopsError(f"Airflow's database could not be prepared (exit code {code}). See {self.home}/logs/migrate.log.")

    def _wait_until_healthy(self, say: Callable[[str], None]) -> None:
        waiting: dict[str, Callable[[], bool]] = {
            "Airflow": self._airflow_is_healthy,
            "MLflow": lambda: httpx.get(f"{self.settings.url('mlflow')}/health", timeout=5, trust_env=False).is_success,
            # Any answer will do: the server has no model yet, so it says 404.
            "model server": lambda: httpx.get(f"{self.settings.url('serving_rest')}/v1/models/none", timeout=5, trust_env=False).status_code < 500,
        }
        deadline = time.monotonic() + START_SECONDS
        while waiting:
            for name, answers in list(waiting.items()):
                with contextlib.suppress(httpx.HTTPError):
                    if answers():
                        del waiting[name]
                        say(f"{name} is up")
            if time.monotonic() > deadline:
                raise MlopsError(f"{', '.join(waiting)} did not answer within {START_SECONDS:.0f} s. See the logs in {self.home}/logs.")
            time.sleep(0.5)

    def _airflow_is_healthy(self) -> bool:
        answer = httpx.get(f"{self.settings.url('airflow')}/api/v2/monitor/health", timeout=10, trust_env=False)
        parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        return answer.is_success and all(answer.json()[part]["status"] == "healthy" for part in parts)


def stop(home: Path) -> int:
    """End the deployment in `home` and say so; return 0, or 1 if a process would not end."""
    left = end_processes(home)
    print(f"{len(left)} processes could not be ended: {left}" if left else f"Nothing of {home} runs any more.")
    return 1 if left else 0


def end_processes(home: Path) -> list[int]:
    """End every process of the deployment in `home`, and only those; return the ids of those that are still there."""
    send(_supervisors(home), signal.SIGTERM)  # it ends its services in good order
    _wait(lambda: not _supervisors(home), seconds=15.0)
    send(processes(home), signal.SIGKILL)
    _wait(lambda: not processes(home), seconds=5.0)
    return processes(home)


@contextlib.contextmanager
def _for_nobody_else() -> Iterator[None]:
    """Make what is written inside readable by its owner only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _wait(done: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.1)


def _sessions(home: Path) -> dict[str, Session]:
    path = home / "processes.json"
    return {name: from_data(Session, data) for name, data in json.loads(path.read_bytes()).items()} if path.exists() else {}


def processes(home: Path) -> list[int]:
    """Return all processes of the deployment in `home`, but this one."""
    members = [pid for session in _sessions(home).values() for pid in session.members()]
    return sorted({*marked(f"{MARKER}={home}"), *members})


def _supervisors(home: Path) -> list[int]:
    return [pid for pid in marked(f"{MARKER}={home}") if "airflow_mlops.local.supervisor" in command_line(pid)]
