"""The DAG files as Airflow's DAG processor sees them."""

from __future__ import annotations

import datetime
import itertools
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import TimeRestriction
from airflow.utils.file import list_py_file_paths

DAGS = Path(__file__).parents[2] / "dags"
RETRAINING = ["claim", "validate", "train", "evaluate", "robustness", "gate", "register"]
STAGES = ("validate", "train", "evaluate", "attack", "robustness")
RELEASE = ["select", "approve", "publish", "roll_out", "promote", "evidence"]


@pytest.fixture(scope="module")
def bag() -> DagBag:
    return DagBag(DAGS, bundle_name="dags-folder")


def edges(dag: DAG) -> set[tuple[str, str]]:
    return {(task.task_id, follower) for task in dag.tasks for follower in task.downstream_task_ids}


def test_every_file_parses(bag: DagBag) -> None:
    assert bag.import_errors == {}
    assert set(bag.dags) == {"digits_on_dataset", "digits_nightly", "digits_release", "digits_rollback", "reconcile_models"}


def test_airflow_finds_the_dag_files_and_leaves_the_model_code_alone() -> None:
    assert (DAGS / "digits_model.py").is_file()
    assert sorted(Path(path).name for path in list_py_file_paths(DAGS, safe_mode=True)) == [
        "digits.py",
        "digits_gpu.py",
        "reconcile_models.py",
    ]


def test_where_an_image_is_named_every_stage_is_a_pod_and_the_training_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__MLOPS__STAGE_IMAGE", "stages:cpu")
    monkeypatch.setenv("AIRFLOW__MLOPS__STAGE_IMAGE_CUDA", "stages:cuda")
    bag = DagBag(DAGS / "digits_gpu.py", bundle_name="dags-folder")
    assert bag.import_errors == {} and {dag_id.removeprefix("digits_gpu_") for dag_id in bag.dags} == {
        "on_dataset",
        "nightly",
        "release",
        "rollback",
    }
    dag = bag.dags["digits_gpu_on_dataset"]
    pods = {task.task_id: task.partial_kwargs["pod_spec"] if task.is_mapped else task.pod_spec for task in dag.tasks if task.task_id in STAGES}
    assert {name: (pod.image, pod.num_gpus) for name, pod in pods.items()} == {
        "validate": ("stages:cpu", 0),
        "train": ("stages:cuda", 1),
        "evaluate": ("stages:cpu", 0),
        "attack": ("stages:cpu", 0),
        "robustness": ("stages:cpu", 0),
    }
    assert dag.get_task("attack").is_mapped and edges(dag) >= {("train", "attack"), ("attack", "robustness"), ("robustness", "gate")}


@pytest.mark.parametrize("dag_id", ["digits_on_dataset", "digits_nightly"])
def test_nothing_is_registered_that_was_not_validated_trained_measured_attacked_and_decided_about(bag: DagBag, dag_id: str) -> None:
    dag = bag.dags[dag_id]
    assert sorted(dag.task_ids) == sorted(RETRAINING)
    chain = {("claim", "validate"), ("validate", "train"), ("train", "evaluate"), ("train", "robustness"), ("gate", "register")}
    assert chain | {("evaluate", "gate"), ("robustness", "gate")} <= edges(dag)


def test_nothing_is_published_before_a_person_said_yes(bag: DagBag) -> None:
    dag = bag.dags["digits_release"]
    assert sorted(dag.task_ids) == sorted(RELEASE)
    assert set(itertools.pairwise(RELEASE)) <= edges(dag)
    assert "approve" in dag.get_task("publish").get_flat_relative_ids(upstream=True)


def test_the_two_retrainings_start_from_different_weights(bag: DagBag) -> None:
    tasks: dict[str, Any] = {dag_id: bag.dags[dag_id].get_task("train") for dag_id in ("digits_on_dataset", "digits_nightly")}
    starts = {dag_id: task.spec.start for dag_id, task in tasks.items()}
    assert starts == {"digits_on_dataset": "champion", "digits_nightly": "scratch"}


@pytest.mark.parametrize("dag_id", ["digits_on_dataset", "digits_nightly", "digits_release"])
def test_the_trigger_form_can_be_sent_as_it_is(bag: DagBag, dag_id: str) -> None:
    bag.dags[dag_id].params.validate()


def test_every_parameter_of_the_train_function_is_a_field_of_the_form(bag: DagBag) -> None:
    params = bag.dags["digits_on_dataset"].params
    assert (params["epochs"], params["learning_rate"]) == (15, 0.002)


@pytest.mark.parametrize(
    ("dag_id", "name", "value"),
    [
        ("digits_on_dataset", "epochs", "many"),
        ("digits_on_dataset", "epochs", 1.5),
        ("digits_on_dataset", "learning_rate", "fast"),
        ("digits_on_dataset", "repeat", "yes"),
        ("digits_on_dataset", "seed", -1),
        ("digits_nightly", "dataset_version", 7),
        ("digits_release", "version", 0),
        ("digits_release", "version", "newest"),
        ("digits_rollback", "version", 0),
        ("digits_rollback", "version", "newest"),
        ("digits_rollback", "reason", ""),
        ("digits_rollback", "reason", "  "),
        ("digits_rollback", "reason", None),
    ],
)
def test_impossible_values_are_refused_before_a_run_starts(bag: DagBag, dag_id: str, name: str, value: Any) -> None:
    param = bag.dags[dag_id].params.get_param(name)
    with pytest.raises(ParamValidationError):
        param.resolve(value)


def test_a_rollback_is_one_task_that_needs_a_reason_and_can_be_started_at_once(bag: DagBag) -> None:
    dag = bag.dags["digits_rollback"]
    assert dag.task_ids == ["roll_back"] and dag.is_paused_upon_creation is False and not dag.timetable.can_be_scheduled
    with pytest.raises(ParamValidationError):
        dag.params.validate()
    assert dag.params.get_param("version").resolve() is None and dag.params.get_param("reason").resolve("it errs") == "it errs"


@pytest.mark.parametrize("clock", ["00:00:00", "01:59:59", "02:00:01", "02:04:00", "12:00:00"])
def test_the_nightly_retraining_never_starts_at_once_when_it_is_unpaused(bag: DagBag, clock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first run for the tick that is past would train at noon, when somebody only wanted to switch it on."""
    now = datetime.datetime.fromisoformat(f"2026-03-05T{clock}+00:00")
    monkeypatch.setattr("airflow.timetables.trigger.utcnow", lambda: now)
    dag = DagSerialization.from_dict(DagSerialization.to_dict(bag.dags["digits_nightly"]))  # the scheduler's own view
    first = dag.timetable.next_dagrun_info(last_automated_data_interval=None, restriction=TimeRestriction(None, None, catchup=dag.catchup))
    assert first is not None
    assert now < first.run_after <= now + datetime.timedelta(days=1)
    assert (first.run_after.hour, first.run_after.minute) == (2, 0)


@pytest.mark.parametrize("dag_id", ["digits_on_dataset", "digits_nightly", "digits_release", "digits_rollback", "reconcile_models"])
def test_two_runs_of_one_dag_never_work_at_the_same_time(bag: DagBag, dag_id: str) -> None:
    assert (bag.dags[dag_id].max_active_runs, bag.dags[dag_id].catchup) == (1, False)


def test_the_reconciliation_looks_every_quarter_of_an_hour_and_tells_people_when_it_fails(bag: DagBag) -> None:
    dag = bag.dags["reconcile_models"]
    assert sorted(dag.task_ids) == ["deliver", "reconcile"]
    assert DagSerialization.to_dict(dag)["dag"]["timetable"]["__var"]["expression"] == "*/15 * * * *"
    for task in dag.tasks:
        (callback,) = task.on_failure_callback
        assert (callback.channel, task.retries * task.retry_delay) == ("#mlops", datetime.timedelta(hours=1))
