"""A real one-machine deployment for tests: started, asked, hurt and ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_mlops.artifacts import canonical_json
from airflow_mlops.exceptions import MlopsError
from airflow_mlops.ledger import chain
from airflow_mlops.ledger.store import Store
from airflow_mlops.local.api import AirflowApi
from airflow_mlops.local.deployment import LocalDeployment, end_processes
from airflow_mlops.local.services import WANTED_PORTS, Settings, free_port

ROOT = Path(__file__).parents[1]
RETRAIN, RELEASE = "digits_on_dataset", "digits_release"


def wait(what: str, look: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if found := look():
                return found
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(0.3)


class Story:
    """The deployment of the DAG files in `dags` and what the tests ask of it."""

    def __init__(self, home: Path, dags: Path = ROOT / "dags", variables: Mapping[str, str] | None = None) -> None:
        settings = Settings.of(home)
        ports = {name: free_port() for name in WANTED_PORTS}
        (home / "settings.json").write_bytes(canonical_json({**vars(settings), "ports": ports}))
        self.home = home
        self.deployment = LocalDeployment(home, dags, variables)
        self.deployment.start(print)
        self.settings = self.deployment.settings
        self.api = AirflowApi(self.settings.url("airflow"), "admin", self.settings.password)
        self.reviewer = AirflowApi(self.settings.url("airflow"), "reviewer", self.settings.password)

    def kill(self, service: str) -> None:
        """Kill a service the hard way and wait until another process has taken its place."""
        pid = self.deployment.pids()[service]
        os.kill(pid, signal.SIGKILL)
        wait(f"{service} runs again", lambda: self.deployment.pids()[service] not in (pid, None))

    def events(self) -> list[dict[str, Any]]:
        """Return the events of the digits' arrival; Airflow 3.3 answers 500 while a run that one of them made has not started."""

        def ask() -> list[Any] | None:
            with contextlib.suppress(MlopsError):
                return [self.api.call("GET", "/assets/events?limit=100")["asset_events"]]
            return None

        return [event for event in wait("Airflow lists its events", ask)[0] if event["name"] == "digits_dataset"]

    def answer(self, run_id: str, api: AirflowApi, comment: str, expected: str) -> None:
        """Answer a release as a person would until its trail ends with the event `expected`.

        Airflow 3.3 asks again when an answer comes before its scheduler has noticed that the task waits; a person then answers again.
        """

        def answered() -> bool:
            if self.trail(run_id)[-1:] == [expected]:
                return True
            if self.task(RELEASE, run_id, "approve")["state"] == "awaiting_input":
                time.sleep(3.0)
                with contextlib.suppress(MlopsError):  # answered already, and not yet noticed
                    api.approve(RELEASE, run_id, "approve", comment=comment)
            return False

        wait(f"the release {run_id} is answered", answered)

    def trail(self, run_id: str) -> list[str]:
        """Return the kinds of the audit events about the approval of a release."""
        with Store(f"sqlite:///{self.home}/ledger.db") as store:
            return [event.kind for event in chain.events(store) if event.details.get("release") == f"{RELEASE}/{run_id}"]

    def finished(self, dag_id: str, run_id: str) -> str:
        return str(wait(f"{dag_id} ends", lambda: (s := self.api.run_state(dag_id, run_id)) in ("success", "failed") and s, seconds=240.0))

    def task(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        return self.api.tasks(dag_id, run_id)[task_id]

    def predict(self, inputs: Any) -> Any:
        url = f"{self.settings.url('serving_rest')}/v1/models/digits/labels/stable:predict"
        return httpx.post(url, json={"instances": inputs}, timeout=10).raise_for_status().json()["predictions"]

    def golden(self, run_id: str) -> dict[str, Any]:
        """Return inputs and the offline answers of the model that a run trained."""
        record = json.loads(Path(self.api.xcom(RETRAIN, run_id, "train")["uri"]).read_bytes())
        return dict(json.loads(Path(record["result"]["golden"]["uri"]).read_bytes()))


@contextlib.contextmanager
def deployed(
    home: Path, dags: Path = ROOT / "dags", variables: Mapping[str, str] | None = None, unpaused: Sequence[str] = (RETRAIN, RELEASE)
) -> Iterator[Story]:
    """Start a deployment with the digits' DAGs unpaused; no process of it is left at the end."""
    try:
        story = Story(home, dags, variables)
        for dag_id in unpaused:
            wait(f"{dag_id} is known", lambda dag_id=dag_id: dag_id in {dag["dag_id"] for dag in story.api.call("GET", "/dags")["dags"]})
            story.api.unpause(dag_id)
        yield story
    finally:
        assert end_processes(home) == []


def stage_process(name: str, home: Path) -> int | None:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if b"stage" in words and name.encode() in words and any(str(home).encode() in word for word in words):
                return int(entry.name)
    return None
