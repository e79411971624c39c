"""Airflow's REST API as a person uses it: log in, look, trigger, answer."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import httpx

from airflow_mlops.exceptions import MlopsError


class AirflowApi:
    """A logged-in user of the API server at `url`."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=60.0, trust_env=False)
        self._login = {"username": user, "password": password}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Return the JSON answer of ``/api/v2<path>``; raise `MlopsError` with the server's words when it refuses.

        A server that is being restarted is asked again for a minute.
        """
        deadline = time.monotonic() + 60.0
        while True:
            try:
                if "Authorization" not in self._client.headers:
                    token = self._ask("POST", "/auth/token", self._login)["access_token"]
                    self._client.headers["Authorization"] = f"Bearer {token}"
                return self._ask(method, f"/api/v2{path}", body)
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)

    def _ask(self, method: str, path: str, body: Any) -> Any:
        answer = self._client.request(method, path, json=body)
        if answer.is_error:
            raise MlopsError(f"Airflow refused {method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    def unpause(self, dag_id: str) -> None:
        self.call("PATCH", f"/dags/{dag_id}", {"is_paused": False})

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        """Start a run by hand and return its id."""
        return str(self.call("POST", f"/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf or {}})["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the runs of a DAG, oldest first."""
        return list(self.call("GET", f"/dags/{dag_id}/dagRuns?order_by=id&limit=100")["dag_runs"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        return str(self.call("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id)}")["state"])

    def causes(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the asset events that started a run."""
        return list(self.call("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id)}/upstreamAssetEvents")["asset_events"])

    def tasks(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """Return the task instances of a run by task id."""
        answer = self.call("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances")
        return {task["task_id"]: task for task in answer["task_instances"]}

    def xcom(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """Return what a task returned."""
        return self.call("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/{task_id}/xcomEntries/return_value")["value"]

    def errors(self, dag_id: str, run_id: str, task_id: str, try_number: int) -> list[str]:
        """Return the messages of the exceptions in a task's log, outermost first."""
        answer = self.call("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/{task_id}/logs/{try_number}")
        details = [error for line in answer["content"] if isinstance(line, dict) for error in line.get("error_detail") or ()]
        return [str(error["exc_value"]) for error in details]

    def approve(self, dag_id: str, run_id: str, task_id: str, answer: str = "Approve", comment: str = "") -> None:
        """Answer a task that waits for a person."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id)}/taskInstances/{task_id}/-1/hitlDetails"
        self.call("PATCH", path, {"chosen_options": [answer], "params_input": {"comment": comment}})
