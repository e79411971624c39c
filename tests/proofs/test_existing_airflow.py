"""docs/install.md, followed literally: PostgreSQL, Celery, FAB, a path before the API server, and an environment for each process."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from airflow_mlops.local.api import AirflowApi
from airflow_mlops.local.digits import publish_digits
from airflow_mlops.local.services import free_port
from airflow_mlops.serving import config
from airflow_mlops.serving.config import ServerConfig
from tests.deployments import wait
from tests.postgresql import PostgresqlServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
GUIDE = (ROOT / "docs" / "install.md").read_text()
# What this Airflow had before the guide: its executor, its users, its database; Celery as the constraints of Airflow have it.
BEFORE = ["apache-airflow-providers-celery", "apache-airflow-providers-fab", "apache-airflow-providers-postgres", "asyncpg", "celery<5.7", "redis"]
USERS = {"ann": "Op", "ben": "Op"}
PATH = "/team/airflow"


def installed_by(process: str) -> str:
    """Return what the guide's table installs for a process."""
    (words,) = re.findall(rf"^\| [^|]*\b{process}\b[^|]* \| `pip install '?([^'`]+)'?` \|$", GUIDE.replace("where stages", "~"), flags=re.MULTILINE)[
        :1
    ]
    return str(words)


@dataclass(frozen=True)
class Site:
    """Where everything is, and the processes that run."""

    home: Path
    environment: Mapping[str, str]
    running: list[subprocess.Popen[bytes]]

    def binary(self, process: str, name: str) -> Path:
        return self.home / "venvs" / process / "bin" / name

    def run(self, process: str, *command: str) -> str:
        done = subprocess.run(
            [self.binary(process, command[0]), *command[1:]], env=self.environment, capture_output=True, text=True, check=False, cwd=self.home
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def start(self, process: str, *command: str) -> None:
        with (self.home / f"{command[0]}-{command[1]}.log").open("wb") as log:
            self.running.append(
                subprocess.Popen(
                    [self.binary(process, command[0]), *command[1:]],
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    cwd=self.home,
                    start_new_session=True,
                )
            )


def install(home: Path) -> None:
    """Make an environment for each process: what this Airflow had, and the guide's line for it with the wheel in the package's place."""
    subprocess.run([UV, "build", "--quiet", "--wheel", "--out-dir", home / "dist", ROOT], check=True)
    (wheel,) = (home / "dist").glob("*.whl")
    constraints = home / "constraints.txt"
    pins = re.findall(r"^([\w.-]+==[^\\\n]+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    constraints.write_text("\n".join(pins))
    for process, words in {"scheduler": "scheduler", "api": "API server", "triggerer": "triggerer", "worker": "worker"}.items():
        place, wanted = home / "venvs" / process, installed_by(words).replace("airflow-mlops", f"airflow-mlops @ {wheel.as_uri()}", 1)
        wanted = re.sub(r"^airflow-mlops @ (\S+?)(\[[\w,-]+\])?$", r"airflow-mlops\2 @ \1", wanted)
        subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, place], check=True)
        subprocess.run(
            [UV, "pip", "install", "--quiet", "--python", place / "bin" / "python", "--constraint", constraints, *BEFORE, wanted], check=True
        )


def environment_of(home: Path, database: str, ledger: str, redis_port: int, ports: Mapping[str, int]) -> dict[str, str]:
    """Return this Airflow's environment with the guide's settings, their examples replaced by what is here."""
    (block,) = re.findall(r'^```bash title="mlops.env"\n(.*?)^```$', GUIDE, flags=re.MULTILINE | re.DOTALL)
    base_url = f"http://127.0.0.1:{ports['api']}{PATH}"
    for example, here in {
        "/srv/mlops": str(home / "mlops"),
        "https://airflow.example.org/team/airflow": base_url,
        "https://mlflow.example.org": f"http://127.0.0.1:{ports['mlflow']}",
        "serving.example.org:8500": f"127.0.0.1:{ports['serving']}",
        "mlops-ledger://mlops_airflow:another-long-one@db.example.org:5432/mlops": ledger,
    }.items():
        assert example in block
        block = block.replace(example, here)
    guide = dict(line.split("=", 1) for line in block.splitlines())
    before = {
        "CORE__EXECUTOR": "CeleryExecutor",
        "CORE__AUTH_MANAGER": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
        "CORE__DAGS_FOLDER": str(home / "dags"),
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__EXECUTION_API_SERVER_URL": f"{base_url}/execution/",
        "CORE__FERNET_KEY": "",
        "DATABASE__SQL_ALCHEMY_CONN": database,
        "CELERY__BROKER_URL": f"redis://127.0.0.1:{redis_port}/0",
        "CELERY__RESULT_BACKEND": database.replace("postgresql", "db+postgresql", 1),
        "CELERY__WORKER_CONCURRENCY": "2",
        "API__HOST": "127.0.0.1",
        "API__PORT": str(ports["api"]),
        "API__SECRET_KEY": secrets.token_hex(32),
        "API_AUTH__JWT_SECRET": secrets.token_hex(48),
        "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        "LOGGING__WORKER_LOG_SERVER_PORT": str(ports["worker_logs"]),
        "LOGGING__TRIGGER_LOG_SERVER_PORT": str(ports["trigger_logs"]),
    }
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "MLFLOW", "VIRTUAL_ENV", "PYTHON"))}
    mine = {"AIRFLOW_HOME": str(home / "airflow"), "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return {**outside, **{f"AIRFLOW__{name}": value for name, value in before.items()}, **guide, **mine}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("site")
    install(home)
    for name in ("mlops/inbox", "mlops/workspace", "mlops/models", "redis"):
        (home / name).mkdir(parents=True)
    shutil.copytree(ROOT / "dags", home / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    config.write(home / "mlops" / "models.config", ServerConfig(()))
    ports = {name: free_port() for name in ("api", "mlflow", "serving", "rest", "redis", "worker_logs", "trigger_logs")}
    with PostgresqlServer() as server, server.database() as database, server.database() as ledger:
        ledger = ledger.replace("postgresql+psycopg2", "mlops-ledger", 1)
        environment = environment_of(home, database, ledger, ports["redis"], ports)
        running: list[subprocess.Popen[bytes]] = []
        site = Site(home, environment, running)
        try:
            redis = ["redis-server", "--port", str(ports["redis"]), "--bind", "127.0.0.1", "--save", "", "--dir", str(home / "redis")]
            running.append(subprocess.Popen(redis, stdout=subprocess.DEVNULL, start_new_session=True))
            site.run("api", "airflow", "db", "migrate")
            for user, role in USERS.items():
                words = ["-u", user, "-p", f"{user}-secret", "-f", user, "-l", user, "-e", f"{user}@example.org", "-r", role]
                site.run("api", "airflow", "users", "create", *words)
            mlflow = ["--host", "127.0.0.1", "--port", str(ports["mlflow"]), "--workers", "1", "--backend-store-uri", f"sqlite:///{home}/mlflow.db"]
            site.start("worker", "mlflow", "server", *mlflow, "--artifacts-destination", str(home / "artifacts"))
            serving = ["--port", str(ports["serving"]), "--rest_api_port", str(ports["rest"])]
            site.start("worker", "airflow-mlops", "serve", *serving, "--model_config_file", str(home / "mlops" / "models.config"))
            for process, *command in [
                ("api", "api-server"),
                ("scheduler", "scheduler"),
                ("scheduler", "dag-processor"),
                ("triggerer", "triggerer"),
                ("worker", "celery", "worker"),
            ]:
                site.start(process, "airflow", *command)
            yield site
        finally:
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
            time.sleep(3)
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)


def api(site: Site, user: str) -> AirflowApi:
    return AirflowApi(site.environment["AIRFLOW__API__BASE_URL"], user, f"{user}-secret")


def test_each_environment_is_complete_and_holds_no_more_than_its_process_needs(site: Site) -> None:
    for process, name in {"scheduler": "scheduler", "api": "webserver", "triggerer": "triggerer", "worker": "worker"}.items():
        assert site.run(process, "airflow-mlops", "doctor", name) == f"{name}: ready\n"
    assert not list((site.home / "venvs" / "scheduler").glob("lib/python*/site-packages/tensorflow"))
    assert not list((site.home / "venvs" / "scheduler").glob("lib/python*/site-packages/mlflow"))


def test_a_version_arrives_is_trained_approved_by_another_person_and_served(site: Site) -> None:
    base_url = site.environment["AIRFLOW__API__BASE_URL"]
    wait("Airflow is up", lambda: httpx.get(f"{base_url}/api/v2/monitor/health", timeout=30).status_code == 200, seconds=300)
    ann, ben = api(site, "ann"), api(site, "ben")
    wait(
        "the DAGs are known", lambda: {"digits_on_dataset", "digits_release"} <= {d["dag_id"] for d in ann.call("GET", "/dags")["dags"]}, seconds=300
    )
    for dag_id in ("digits_on_dataset", "digits_release"):
        ann.unpause(dag_id)
    publish_digits(site.home / "mlops" / "inbox", "v1", num_rows=1000, seed=1)
    (trained,) = wait("a run of the version", lambda: ann.runs("digits_on_dataset"), seconds=300)
    wait("the training ends", lambda: ann.run_state("digits_on_dataset", trained["dag_run_id"]) == "success", seconds=900)
    (released,) = wait("a release", lambda: ann.runs("digits_release"), seconds=300)
    run_id = released["dag_run_id"]
    wait("it is asked for", lambda: ann.tasks("digits_release", run_id)["approve"]["state"] == "awaiting_input", seconds=300)
    time.sleep(5)  # Airflow loses an answer that comes before its scheduler has noticed that the task waits
    ben.approve("digits_release", run_id, "approve", comment="looks right")
    wait("the release ends", lambda: ann.run_state("digits_release", run_id) == "success", seconds=900)

    token = httpx.post(f"{base_url}/auth/token", json={"username": "ann", "password": "ann-secret"}).json()["access_token"]
    page = httpx.get(f"{base_url}/mlops/", headers={"Authorization": f"Bearer {token}"}, timeout=60)
    assert page.status_code == 200, page.text
    assert "digits" in page.text
    icon = re.findall(r'href="([^"]*style.css[^"]*)"', page.text)
    assert icon and httpx.get(httpx.URL(f"{base_url}/mlops/").join(icon[0])).status_code == 200
    ledger = site.environment["AIRFLOW_CONN_MLOPS_LEDGER_DEFAULT"].replace("mlops-ledger", "postgresql+psycopg2", 1)
    said = site.run("worker", "airflow-mlops", "audit", "why", "digits@1", "--ledger", ledger)
    assert "ben" in said and "promoted" in said
