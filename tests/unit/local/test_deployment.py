"""What a deployment hands to its processes and to the shells of those who look at it."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from airflow_mlops.exceptions import MlopsError
from airflow_mlops.local.api import AirflowApi
from airflow_mlops.local.deployment import LocalDeployment, end_processes
from airflow_mlops.local.services import MARKER
from tests.servers import free_port


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalDeployment:
    monkeypatch.setattr(LocalDeployment, "_migrate", lambda self: None)
    return LocalDeployment(tmp_path / "home", tmp_path / "dags")


def test_what_runs_in_a_shell_that_read_the_environment_file_is_not_ended_with_the_deployment(deployment: LocalDeployment) -> None:
    deployment._prepare(print)
    script = f'. "{deployment.home}/env"; test -n "$AIRFLOW_HOME" && echo ready && exec sleep 60'
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as bystander:
        assert bystander.stdout is not None and bystander.stdout.readline() == "ready\n"
        left, ended = end_processes(deployment.home), bystander.poll()
        bystander.kill()
    assert (left, ended) == ([], None)


def test_what_a_start_writes_is_for_its_owner_only(deployment: LocalDeployment, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment.home.mkdir(mode=0o755)
    for name in ("_supervise", "_wait_until_healthy"):
        monkeypatch.setattr(LocalDeployment, name, lambda *_: None)
    deployment.start(print)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in (deployment.home, *deployment.home.rglob("*"))}
    assert len(found) > 10
    assert {path.name: oct(mode) for path, mode in found.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}
    assert os.umask(os.umask(0o022)) != 0o077, "the caller's own files are as before"


def test_a_process_that_bears_the_mark_is_ended(deployment: LocalDeployment) -> None:
    with subprocess.Popen(["sleep", "60"], env={MARKER: str(deployment.home)}) as process:
        threading.Thread(target=process.wait).start()  # a child that nobody waits for would stay
        assert end_processes(deployment.home) == []
        assert process.wait(5) != 0


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_the_processes_reach_each_other_without_the_caller_s_proxy(deployment: LocalDeployment, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for either in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(either, raising=False)
    assert deployment._process_env()["no_proxy"] == "127.0.0.1"
    monkeypatch.setenv(name, "example.org")
    env = deployment._process_env()
    assert env["no_proxy"] == env["NO_PROXY"] == "example.org,127.0.0.1"


class Refusing(BaseHTTPRequestHandler):
    """An API server that knows nobody."""

    def do_POST(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"Invalid credentials")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def refusing_server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_login_that_is_refused_says_so_and_no_proxy_is_asked(refusing_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(MlopsError, match="Airflow refused POST /auth/token: 401 Invalid credentials"):
        AirflowApi(refusing_server, "admin", "wrong").call("GET", "/dags")
