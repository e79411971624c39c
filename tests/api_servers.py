"""A real API server of Airflow, without scheduler: SimpleAuthManager or FAB, with or without a path before it, and the users of the role matrix."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from sqlalchemy.orm import Session

from airflow_mlops.local.services import WANTED_PORTS, Settings, environment, free_port

START_SECONDS = 240.0  # on two busy cores the API server takes half a minute
PASSWORD = "a-password-of-the-tests"
SIMPLE = {"admin": "admin", "op": "op", "user": "user", "viewer": "viewer", "none": ""}
FAB = {"admin": "Admin", "op": "Op", "user": "User", "viewer": "Viewer", "none": "Empty", "alpha": "OnlyAlpha"}
FAB_MANAGER = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
DAGS = """
from airflow.sdk import DAG
from airflow_mlops.gates import ApprovalPolicy
from airflow_mlops.operators.approval import ApproveReleaseOperator

for name in ("alpha_release", "beta_release"):
    with DAG(name, schedule=None):
        ApproveReleaseOperator(task_id="approve", model={}, policy=ApprovalPolicy(), subject="Release?", body="Look at it first.")
"""


class ApiServer:
    """The server below `home`; `url` is the address that people use, with its path.

    :param manager: ``simple`` or ``fab``, where users have numbers as ids.
    :param prefix: path of ``[api] base_url``.
    :param public_url: where people reach it, when it is not its own address: that of a proxy.
    """

    def __init__(self, home: Path, manager: str, *, prefix: str = "", public_url: str = "") -> None:
        self.home, self.manager, self.prefix = home, manager, prefix
        self.settings = Settings({name: free_port() for name in WANTED_PORTS}, PASSWORD, "s" * 64, _fernet_key())
        self.upstream = self.settings.url("airflow")
        self.url = (public_url or self.upstream) + prefix
        self.users = FAB if manager == "fab" else SIMPLE
        for name in ("airflow", "dags", "workspace"):
            (home / name).mkdir(parents=True)
        (home / "dags" / "releases.py").write_text(DAGS)
        self.env = self._environment()
        self.ids: dict[str, str] = {}  # FAB's, by name

    def _environment(self) -> dict[str, str]:
        import os

        inherited = {name: value for name, value in os.environ.items() if not name.lstrip("_").startswith("AIRFLOW")}
        env = {**inherited, **environment(self.home, self.home / "dags", self.settings), "no_proxy": "127.0.0.1"}
        env["AIRFLOW__API__BASE_URL"] = self.url
        env["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] = f"{self.upstream}{self.prefix}/execution/"
        if self.manager == "fab":
            env["AIRFLOW__CORE__AUTH_MANAGER"] = FAB_MANAGER
        else:
            env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] = ",".join(f"{user}:{role}" for user, role in SIMPLE.items())
            (self.home / "airflow" / "passwords.json").write_text(json.dumps(dict.fromkeys(SIMPLE, PASSWORD)))
        return env

    def start(self) -> None:
        """Make database, DAGs and users, start the server and return when it answers."""
        self._airflow("db migrate", "dags reserialize")
        if self.manager == "fab":
            self.ids = self.script(_MAKE_USERS, {"users": FAB, "password": PASSWORD})
        with (self.home / "api-server.log").open("wb") as log:
            command = [sys.executable, "-m", "airflow", "api-server", "--workers", "1"]
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < end, (self.home / "api-server.log").read_text()[-5000:]
            time.sleep(0.3)

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @contextlib.contextmanager
    def client(self, user: str | None) -> Iterator[httpx.Client]:
        """Yield a client with the login of `user`, or without any."""
        with httpx.Client(base_url=self.upstream + self.prefix, timeout=60, trust_env=False) as client:
            if user is not None:
                answer = client.post("/auth/token", json={"username": user, "password": PASSWORD})
                client.headers["Authorization"] = f"Bearer {answer.raise_for_status().json()['access_token']}"
            yield client

    def trigger(self, user: str, dag_id: str, run_id: str) -> dict[str, Any]:
        """Start a run by hand as `user`; nothing schedules its tasks."""
        with self.client(user) as client:
            body = {"logical_date": None, "dag_run_id": run_id}
            return dict(client.post(f"/api/v2/dags/{dag_id}/dagRuns", json=body).raise_for_status().json())

    def park(self, dag_id: str, run_id: str, **detail: Any) -> None:
        """Have the task `approve` of a run wait for a person, as the worker does through the execution API."""
        from airflow.models.hitl import HITLDetail
        from airflow.models.taskinstance import TaskInstance

        with closing_engine(f"sqlite:///{self.home}/airflow/airflow.db") as engine, Session(engine) as session, session.begin():
            (task,) = session.query(TaskInstance).filter_by(dag_id=dag_id, run_id=run_id, task_id="approve").all()
            task.state, task.next_method, task.next_kwargs, task.try_number = "awaiting_input", "execute_complete", {}, 1
            old = session.get(HITLDetail, task.id)
            if old is not None:
                session.delete(old)
                session.flush()
            session.add(HITLDetail(ti_id=task.id, **json.loads(json.dumps(detail))))

    def script(self, code: str, about: dict[str, Any]) -> Any:
        """Run Python code with Airflow's database, with `about` as JSON on its input, and return the JSON on its last line."""
        done = subprocess.run([sys.executable, "-c", code], env=self.env, input=json.dumps(about), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    def _airflow(self, *commands: str) -> None:
        """Run commands of Airflow one after the other, in one process: most of each is importing Airflow."""
        done = subprocess.run([sys.executable, "-c", _COMMANDS, *commands], env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.upstream}{self.prefix}/api/v2/version", timeout=5, trust_env=False).status_code == 200
        return False


@contextlib.contextmanager
def closing_engine(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


@contextlib.contextmanager
def api_server(home: Path, manager: str, *, prefix: str = "", public_url: str = "") -> Iterator[ApiServer]:
    """Yield a running server that ends with the block."""
    server = ApiServer(home, manager, prefix=prefix, public_url=public_url)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _fernet_key() -> str:
    from cryptography.fernet import Fernet

    return Fernet.generate_key().decode()


_MAKE_USERS = textwrap.dedent("""
    import json, sys
    about = json.load(sys.stdin)
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
    from airflow.providers.fab.www.security import permissions as p
    with get_application_builder() as builder:
        manager = builder.sm
        manager.sync_roles()
        manager.add_role("Empty")
        alpha = manager.add_role("OnlyAlpha")
        wanted = [(p.ACTION_CAN_READ, p.RESOURCE_DAG_RUN), (p.ACTION_CAN_READ, p.RESOURCE_TASK_INSTANCE), (p.ACTION_CAN_READ, "DAG:alpha_release")]
        for action, resource in wanted:
            manager.add_permission_to_role(alpha, manager.create_permission(action, resource))
        ids = {}
        for number, (user, role) in enumerate(about["users"].items()):
            made = manager.add_user(user, user.title(), "Person", f"{user}@example.org", manager.find_role(role), about["password"])
            ids[user] = str(made.id)
    print(json.dumps(ids))
""")
_COMMANDS = textwrap.dedent("""
    import sys
    from airflow.__main__ import main
    for command in sys.argv[1:]:
        sys.argv = ["airflow", *command.split()]
        main()
""")
