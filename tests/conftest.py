"""Airflow reads its home and its settings when it is first imported: each test process gets a home of its own before that.

Airflow itself is not imported here, so that the tests of the core start at once.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import psutil

    from airflow_mlops.ledger.store import Store
    from tests.conformance.serving_target import Target
    from tests.postgresql import PostgresqlServer
    from tests.servers import EmbeddedServer

HOME = Path(tempfile.mkdtemp(prefix="airflow-mlops-tests-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
(HOME / "dags").mkdir()

for _name in [name for name in os.environ if name.startswith(("AIRFLOW_", "_AIRFLOW_")) and not name.startswith("AIRFLOW_MLOPS_")]:
    del os.environ[_name]  # what the developer's own Airflow is told must not reach the tests; AIRFLOW_MLOPS_ is what they themselves are told

os.environ.update(
    {
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__CORE__DAGS_FOLDER": str(HOME / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW__MLOPS__WORKSPACE": str(HOME / "mlops"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The stage ``scripted``, known to this process and to every stage's process it starts."""
    from airflow_mlops.stages import STAGES

    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here / 'scripted'}{os.pathsep}{here.parent}")  # the code under test, wherever it was copied to
    monkeypatch.syspath_prepend(here / "scripted")
    module = importlib.import_module("scripted_stage")
    monkeypatch.setitem(STAGES, "scripted", module)
    return module


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of all runs, of this test alone."""
    monkeypatch.setenv("AIRFLOW__MLOPS__WORKSPACE", str(tmp_path / "workspace"))
    return tmp_path / "workspace"


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make an Airflow connection of the fields given."""
    from tests.fakes import connection

    return functools.partial(connection, monkeypatch)


@pytest.fixture(scope="session")
def ledger_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty ledger on SQLite, to be copied: its tables take longer to make than most tests."""
    from airflow_mlops.ledger.store import Store

    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    Store(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def ledger(tmp_path: Path, connect: Callable[..., None], ledger_file: Path) -> Iterator[Store]:
    """An empty ledger, which the connection ``mlops_ledger_default`` names."""
    from airflow_mlops.ledger.store import Store

    shutil.copyfile(ledger_file, tmp_path / "ledger.db")
    connect("mlops_ledger_default", "mlops_ledger", schema=str(tmp_path / "ledger.db"), extra={"driver": "sqlite"})
    store = Store(f"sqlite:///{tmp_path}/ledger.db")
    yield store
    store.close()


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow without content on SQLite, to be copied: its tables take seconds to make."""
    from airflow_mlops.registry.mlflow import MlflowRegistry

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowRegistry(f"sqlite:///{path}").models()
    return path


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """The SQLite file of an MLflow for the tests of one module."""
    return Path(shutil.copy(empty_mlflow, tmp_path_factory.mktemp("mlflow")))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """A PostgreSQL server for all tests of this process that ask for one, each with databases of its own."""
    from tests.postgresql import PostgresqlServer

    with PostgresqlServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path, ledger_file: Path) -> Iterator[str]:
    """Where an empty ledger is, on each database that keeps one."""
    if request.param == "sqlite":
        shutil.copyfile(ledger_file, tmp_path / "ledger.db")
        yield f"sqlite:///{tmp_path}/ledger.db"
    else:
        with request.getfixturevalue("postgresql").ledger() as url:
            yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_server(request: pytest.FixtureRequest) -> list[str]:
    """The last argument of `tests.promotions`: none for a ledger on SQLite, or the address of a server."""
    return [] if request.param == "sqlite" else [request.getfixturevalue("postgresql").url.render_as_string(hide_password=False)]


@pytest.fixture(scope="session")
def starting_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A model server for all tests of this process, each under model names of its own; it imports TensorFlow while the test does."""
    from tests.servers import EmbeddedServer

    server = EmbeddedServer(tmp_path_factory.mktemp("server") / "models.config")
    server.start(wait=False)
    yield server
    if server.process.poll() is None:
        server.stop()


@pytest.fixture(scope="session")
def building_models(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """The directory of the SavedModels for tests of serving, and the process that builds them, once for all processes of the session."""
    from tests import serving_models

    base = tmp_path_factory.getbasetemp()
    home = (base.parent if hasattr(pytestconfig, "workerinput") else base) / "serving-models"
    building = serving_models.start_building(home)
    yield home, building
    building.kill()
    building.wait()


@pytest.fixture(scope="session")
def serving_models(building_models: tuple[Path, subprocess.Popen[bytes]]) -> Path:
    """The directory of the SavedModels of `tests.serving_models`, all of them built."""
    home, building = building_models
    assert building.wait(300) == 0, (home / "build.log").read_text()
    return home


@pytest.fixture(scope="session")
def fuzzed(building_models: object, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Target]:
    """A model server of its own for requests that nobody meant to send."""
    from tests.conformance.serving_target import Target
    from tests.servers import EmbeddedServer

    home = tmp_path_factory.mktemp("fuzzed")
    (home / "models.config").write_text("model_config_list {}")
    server = EmbeddedServer(home / "models.config")
    server.start(wait=False)
    target = Target(server.grpc_address, server.rest_url, home, request.getfixturevalue("serving_models"))
    try:
        server.wait_ready()
        target.publish("linear", {1: "linear1", 2: "linear2"})
        for name in ("two", "many", "examples1"):
            target.publish(name, {1: name})
        linear = target.config("linear", policy="all {}")
        target.reload(linear, *(target.config(name) for name in ("two", "many", "examples1")))
        target.await_states("linear", {1: "AVAILABLE", 2: "AVAILABLE"})
        for name in ("two", "many", "examples1"):
            target.await_states(name, {1: "AVAILABLE"})
        target.reload(target.config("linear", policy="all {}", labels={"stable": 1, "canary": 2}))
        target.process_id = server.process.pid
        yield target
        assert server.process.poll() is None, server.log.read_text()[-5000:]
    finally:
        target.close()
        server.kill()


@pytest.fixture(scope="session")
def fuzzed_processes(fuzzed: Target) -> set[psutil.Process]:
    """All processes of the server ``fuzzed``, none of which may end."""
    import psutil

    front = psutil.Process(fuzzed.process_id)
    return {front, *front.children(recursive=True)}
