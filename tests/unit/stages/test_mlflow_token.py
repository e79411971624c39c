"""An MLflow that lets only those in who bring its token: each stage that asks it does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_mlops.exceptions import RegistryError
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.records import ResultRef, read_any, result_of
from airflow_mlops.results import EvaluationResult, TrainingResult
from airflow_mlops.stages import evaluate
from airflow_mlops.stages.process import StageProcess
from tests.fakes import leave_record
from tests.mlflow_server import Proxy, proxy, running_server

from .conftest import Workshop

TOKEN = "s3cret-of-the-guard"


@pytest.fixture
def guarded(tmp_path: Path, connect: Callable[..., None], empty_mlflow: Path) -> Iterator[Proxy]:
    """A server that requires the token of the connection ``mlflow_default``."""
    with running_server(tmp_path, empty_mlflow) as server, proxy(server.port) as guard:
        guard.token = TOKEN
        connect("mlflow_default", "mlflow", host=guard.uri, password=TOKEN)
        yield guard


def test_training_and_evaluation_register_and_compare_with_it(guarded: Proxy, workshop: Workshop, tmp_path: Path) -> None:
    validated, _ = workshop.validate(workshop.v1)

    without = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}

    def run(name: str, spec: object, **more: str) -> ResultRef:
        out_dir = tmp_path / f"{name}-{len(more)}"
        out_dir.mkdir()
        process = StageProcess(name, spec, out_dir, env={**without, **more})
        record = process.run(print)
        if record.error is not None:
            raise record.error.exception()
        return leave_record(out_dir, name, result_of(record, {"train": TrainingResult, "evaluate": EvaluationResult}[name]))

    spec = workshop.training_spec(validated)._replace(tracking_uri=guarded.uri, params={"epochs": 1})
    with pytest.raises(RegistryError, match="401"):
        run("train", spec)
    environment = MlflowHook().environment()
    trained = run("train", spec, **environment)
    training = result_of(read_any(Path(trained.uri)), TrainingResult)
    registry = MlflowHook().get_conn()
    version = registry.register("digits", training.mlflow_run_id, training.mlflow_source, tags={"model_digest": training.model.digest})
    registry.set_alias("digits", "champion", version.version)
    compared = run("evaluate", evaluate.Spec(trained, "digits", guarded.uri), **environment)
    assert result_of(read_any(Path(compared.uri)), EvaluationResult).champion_version == str(version.version)
    assert TOKEN not in "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.json"))
