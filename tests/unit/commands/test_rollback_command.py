"""The command starts the rollback's DAG as a user, waits for it, and prints the result in the task's own words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from airflow_mlops.cli import main
from tests.servers import free_port

RUN = "/api/v2/dags/digits_rollback/dagRuns/run-1"
REASON = ["--reason", "it errs on sevens"]


class FakeAirflow(BaseHTTPRequestHandler):
    """An API server that knows one user and one DAG, whose run has the states of `states`, one at each look."""

    states: tuple[str, ...] = ()
    asked: Any = None

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/auth/token":
            self._answer(
                *((201, {"access_token": "t"}) if body == {"username": "ann", "password": "secret"} else (401, {"detail": "Invalid credentials"}))
            )
        elif self.path == "/api/v2/dags/digits_rollback/dagRuns" and self.headers["Authorization"] == "Bearer t":
            type(self).asked = body["conf"]
            self._answer(200, {"dag_run_id": "run-1"})
        else:
            self._answer(403, {"detail": "Forbidden"})

    def do_GET(self) -> None:
        tasks = {"task_instances": [{"task_id": "roll_back", "try_number": 1, "state": "failed"}]}
        logs = {"content": ["a line", {"event": "failed", "error_detail": [{"exc_value": "RollbackRefused: Version 9 never was champion"}]}]}
        answers = {
            f"{RUN}/taskInstances": tasks,
            f"{RUN}/taskInstances/roll_back/logs/1": logs,
            f"{RUN}/taskInstances/roll_back/xcomEntries/return_value": {"value": {"headline": "digits version 1 is the champion again"}},
        }
        if self.path == RUN:
            state, *rest = self.states
            type(self).states = (*rest,) or (state,)
            self._answer(200, {"state": state})
        else:
            self._answer(200, answers[self.path])

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def airflow(*states: str) -> Iterator[tuple[type[FakeAirflow], str]]:
    """Yield a server whose run goes through these states, and its address."""
    handler = type("Handler", (FakeAirflow,), {"states": states})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever).start()
    try:
        yield handler, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_mlops.commands.rollback._LOOK_SECONDS", 0.01)
    monkeypatch.setenv("AIRFLOW_MLOPS_PASSWORD", "secret")


@pytest.mark.parametrize(("arguments", "version"), [([], None), (["--to", "1"], 1)])
def test_it_starts_the_dag_as_the_user_and_says_what_came_of_it(
    arguments: list[str], version: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with airflow("queued", "running", "success") as (handler, url):
        assert main(["rollback", "digits", *arguments, *REASON, "--airflow", url, "--user", "ann"]) == 0
    assert handler.asked == {"version": version, "reason": "it errs on sevens"}
    assert capsys.readouterr().out.splitlines() == ["Started digits_rollback run-1 as ann.", "digits version 1 is the champion again"]


def test_a_refusal_is_printed_in_the_tasks_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    with airflow("running", "failed") as (_, url):
        assert main(["rollback", "digits", "--to", "9", *REASON, "--airflow", url, "--user", "ann"]) == 1
    assert "digits_rollback run-1 failed: RollbackRefused: Version 9 never was champion" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "user", "words"),
    [("digits", "bob", "401 .*Invalid credentials"), ("letters", "ann", "403 .*Forbidden")],
    ids=["unknown user", "no right"],
)
def test_airflow_decides_who_may(model: str, user: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    with airflow("success") as (handler, url):
        assert main(["rollback", model, *REASON, "--airflow", url, "--user", user]) == 1
    assert re.search(f"Airflow refused POST .*{words}", capsys.readouterr().err) and handler.asked is None


def test_a_rollback_that_takes_too_long_continues_without_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with airflow("running") as (_, url):
        assert main(["rollback", "digits", *REASON, "--airflow", url, "--user", "ann", "--wait-seconds", "0"]) == 1
    assert "is still running. It continues: watch it in Airflow." in capsys.readouterr().err


@pytest.mark.parametrize("reason", ["", "  "])
def test_an_empty_reason_starts_nothing(reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with airflow("success") as (handler, url):
        assert main(["rollback", "digits", "--reason", reason, "--airflow", url, "--user", "ann"]) == 1
    assert handler.asked is None and "--reason is empty" in capsys.readouterr().err


def test_a_directory_without_a_deployment_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollback", "digits", *REASON, "--home", str(tmp_path)]) == 1
    assert "holds no deployment" in capsys.readouterr().err


def test_an_airflow_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("airflow_mlops.local.api.time.monotonic", iter([0.0, 100.0]).__next__)
    assert main(["rollback", "digits", *REASON, "--airflow", f"http://127.0.0.1:{free_port()}", "--user", "ann"]) == 1
    assert "Airflow does not answer" in capsys.readouterr().err
