"""A registry in a SQLite file, and a finished run with something to register."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_mlops.ledger import champions
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.store import Store
from airflow_mlops.registry.mlflow import MlflowRegistry

NAMES = (f"promoted-{number}" for number in count())


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_mlflow, tmp_path_factory.mktemp('mlflow'))}"


@pytest.fixture(scope="session")
def registry(tracking_uri: str) -> MlflowRegistry:
    return MlflowRegistry(tracking_uri)


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what a training leaves: `model.keras`, `saved_model/` and `golden.json`."""
    directory = tmp_path_factory.mktemp("model")
    (directory / "model.keras").write_bytes(b"keras" * 1000)
    (directory / "saved_model" / "variables").mkdir(parents=True)
    (directory / "saved_model" / "saved_model.pb").write_bytes(b"graph")
    (directory / "saved_model" / "variables" / "variables.index").write_bytes(b"index")
    (directory / "golden.json").write_text('{"inputs": [[0.5]], "outputs": [[1.0]]}')
    return directory


@pytest.fixture(scope="session")
def log_run(model_files: Path) -> Callable[[MlflowRegistry], SimpleNamespace]:
    """A function that logs one finished run with the model files and returns its `run_id` and `artifact_uri`."""

    def log(registry: MlflowRegistry) -> SimpleNamespace:
        with registry.start_run("digits", name="nightly", tags={"seed": "1"}) as opened:
            opened.log_params({"epochs": 3, "optimizer": None})
            for step, value in enumerate((0.5, 0.75)):
                opened.log_metric("accuracy", value, step)
            opened.set_tags({"dataset.digest": "sha256:d"})
            opened.log_dict({"keras": "3.15.1"}, "packages.json")
            for name in ("model.keras", "saved_model", "golden.json"):
                opened.log_artifact(model_files / name)
        return SimpleNamespace(run_id=opened.run_id, artifact_uri=opened.artifact_uri)

    return log


@pytest.fixture(scope="session")
def run(registry: MlflowRegistry, log_run: Callable[[MlflowRegistry], SimpleNamespace]) -> SimpleNamespace:
    return log_run(registry)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A ledger for all tests, each of which has a model of its own."""
    opened = Store(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db")
    yield opened
    opened.close()


@pytest.fixture
def new_name() -> str:
    return next(NAMES)


@pytest.fixture
def name(registry: MlflowRegistry, run: SimpleNamespace, store: Store, new_name: str) -> str:
    """A model with versions 1 to 3: 1 was champion, 2 is, 3 is the candidate."""
    for version in ("1", "2", "3"):
        registry.register(new_name, run.run_id, run.artifact_uri, tags={"model_digest": f"sha256:{version}"}, idempotency_key=version)
    champions.crown(store, Claim(f"{new_name} 1", new_name, 1, None, digest="sha256:1"))
    champions.crown(store, Claim(f"{new_name} 2", new_name, 2, 1, digest="sha256:2"))
    for alias, holder in {"previous": 1, "champion": 2, "candidate": 3}.items():
        registry.set_alias(new_name, alias, holder)
    return new_name
