"""Records as stages would leave them, and the little of Airflow's context that operators ask for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow_mlops.artifacts import Artifact, canonical_json, file_digest, write_atomically
from airflow_mlops.records import SCHEMA_VERSION, Record, ResultRef
from airflow_mlops.results import DatasetVersion, DefectRate, EvaluationResult, Finding, RobustnessResult, TrainingResult, ValidationResult, to_data
from airflow_mlops.splits import JudgedRows, SplitDefinition
from airflow_mlops.usage import Usage

if TYPE_CHECKING:
    import pytest

    from airflow_mlops.ledger.store import Store

SPLIT = SplitDefinition(("a", "b"), (2,), 10, "label", 1.0, 0.2, 0.2)
USAGE = Usage(wall_seconds=1800.0, cpu_seconds=3600.0, peak_memory_bytes=2**30)


def connection(environment: pytest.MonkeyPatch, conn_id: str, conn_type: str, **fields: Any) -> None:
    """Make an Airflow connection of the fields given."""
    environment.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({"conn_type": conn_type, **fields}))


def artifact(path: Path, content: bytes = b"content") -> Artifact:
    """Write a file and return its artefact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return Artifact.of(path)


def dataset_version(name: str = "v1", **changes: Any) -> DatasetVersion:
    return dataclasses.replace(DatasetVersion("digits", name, f"sha256:{name}", f"/inbox/{name}"), **changes)


def validation(directory: Path, **changes: Any) -> ValidationResult:
    docs = artifact(directory / "data_docs" / "index.html", b"<html>").path.parent
    finding = Finding("expect_column_mean_to_be_between", "pixel_3", "The mean of pixel_3 is 9, expected at most 8.")
    return dataclasses.replace(ValidationResult(dataset_version(), 100, 5, (), (finding,), Artifact.of(docs)), **changes)


def training(directory: Path, **changes: Any) -> TrainingResult:
    artifact(directory / "saved_model" / "saved_model.pb", b"graph")
    result = TrainingResult(
        dataset=dataset_version(),
        model=artifact(directory / "model.keras", b"keras"),
        saved_model=Artifact.of(directory / "saved_model"),
        golden=artifact(directory / "golden.json", b"{}"),
        mlflow_run_id="r1",
        mlflow_source="file:///runs/r1",
        metrics={"train_accuracy": 0.9},
        params={"epochs": 3, "rate": 0.1, "name": "adam", "shuffle": True, "decay": None},
        seed=1,
        code_version="abc+dirty",
        packages={"keras": "3.15.1"},
        num_train_rows=80,
        num_held_out_rows=20,
        split=SPLIT,
        warm_started_from=None,
        code_authors=("Ann Lee <ann@example.org>",),
    )
    return dataclasses.replace(result, **changes)


def evaluation(**changes: Any) -> EvaluationResult:
    champion = {"accuracy": 0.95, "macro_f1": 0.93}
    result = EvaluationResult(200, "sha256:rows", {"accuracy": 0.95, "macro_f1": 0.94}, "3", champion, JudgedRows(200, 250))
    return dataclasses.replace(result, **changes)


def robustness(directory: Path, **changes: Any) -> RobustnessResult:
    rates = {"noise": DefectRate(100, 10, 0.1, 0.05, 0.18), "rotate": DefectRate(100, 50, 0.5, 0.4, 0.6)}
    page, recipes = artifact(directory / "report.html", b"<html>"), artifact(directory / "recipes.jsonl", b"{}")
    return dataclasses.replace(RobustnessResult(20, 400, 60, 7, {"kmnc": 0.4}, rates, 0.3, "sha256:ledger", page, recipes), **changes)


def leave_record(directory: Path, stage: str, result: Any, **inputs: ResultRef) -> ResultRef:
    """Write the result record of `stage`, made from the records `inputs`, and return the reference that its operator would return."""
    path = directory / stage / "result.json"
    write_atomically(path, canonical_json(to_data(Record(SCHEMA_VERSION, stage, "sha256:spec", result=to_data(result), inputs=inputs, usage=USAGE))))
    return ResultRef(stage, str(path), file_digest(path))


def leave_records(directory: Path, trained: TrainingResult | None = None, measured: EvaluationResult | None = None) -> dict[str, ResultRef]:
    """Leave the records of all stages in a directory, about one training; return the references by stage."""
    validated = leave_record(directory, "validate", validation(directory))
    train = leave_record(directory, "train", trained or training(directory), validation=validated)
    return {
        "validate": validated,
        "train": train,
        "evaluate": leave_record(directory, "evaluate", measured or evaluation(), training=train),
        "robustness": leave_record(directory, "robustness", robustness(directory), training=train),
    }


@dataclass
class FakeTaskInstance:
    """What operators ask of a task instance; `pushed` holds its XComs."""

    dag_id: str = "digits_on_dataset"
    run_id: str = "manual__2026-01-01T00:00:00+00:00"
    task_id: str = "train"
    map_index: int = -1
    try_number: int = 1
    max_tries: int = 0
    pushed: dict[str, Any] = field(default_factory=dict)
    active: Collection[str] = ()  # runs that have not ended, "DAG id/run id"

    def get_dr_count(self, dag_id: str, run_ids: list[str], states: list[str]) -> int:
        assert set(states) == {"queued", "running"}
        return sum(f"{dag_id}/{run_id}" in self.active for run_id in run_ids)

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


class Task:
    """What operators ask of a task and its DAG: who is before it."""

    def __init__(self, before: Mapping[str, Any] = {}) -> None:
        self._before, self.upstream_task_ids, self.dag = before, frozenset(before), self

    def get_direct_relatives(self, *, upstream: bool) -> list[Any]:
        return []

    def get_task(self, task_id: str) -> Any:
        return self._before[task_id]

    def get_flat_relative_ids(self, *, upstream: bool) -> frozenset[str]:
        return self.upstream_task_ids


def handed_over(store: Store, *values: Any, ti: FakeTaskInstance | None = None, task_id: str = "before") -> Task:
    """Let a task of the run hand over each value, as Airflow would store it; return a task that comes after all of them.

    A value that is a list is that of a mapped task.
    """
    from airflow_mlops.hooks.handovers import HandsOver
    from airflow_mlops.ledger import handovers

    ti = ti or FakeTaskInstance()
    before = {}
    for number, value in enumerate(values):
        source = task_id if number == 0 else f"{task_id}-{number}"
        before[source] = type("Before", (HandsOver,), {"task_id": source, "get_flat_relative_ids": lambda self, upstream: frozenset()})()
        for index, one in enumerate(value) if isinstance(value, list) else [(-1, value)]:
            handovers.hand_over(store, f"{ti.dag_id}/{ti.run_id}", handovers.Task(source, index), one)
    return Task(before)


def context(ti: FakeTaskInstance | None = None, *, extras: Sequence[dict[str, Any]] = (), **more: Any) -> Any:
    """Return a task's context; `extras` are those of the asset events that started the run, from the oldest to the newest."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    events = [SimpleNamespace(extra=extra, timestamp=start + timedelta(seconds=i)) for i, extra in enumerate(extras)]
    run = SimpleNamespace(triggering_user_name=None)
    about = {"ti": ti or FakeTaskInstance(), "task": Task(), "dag_run": run}
    return {**about, "triggering_asset_events": {"asset": events} if events else {}, **more}


def after(*values: Any, ti: FakeTaskInstance | None = None) -> Task:
    """Return a task that comes after one which handed each value over, as JSON, in the ledger that the connection names."""
    from airflow_mlops.hooks.ledger import MlopsLedgerHook

    with MlopsLedgerHook().get_conn() as store:
        return handed_over(store, *map(to_data, values), ti=ti)
