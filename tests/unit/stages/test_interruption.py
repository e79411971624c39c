"""A training that is told to stop, runs out of time, hangs or forks: no half-trained model, no lost work, no process that nobody waits for."""

from __future__ import annotations

import json
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import pytest

from airflow_mlops.exceptions import TrainingTimeout
from airflow_mlops.records import Record, ResultRef, read_record, result_of
from airflow_mlops.stages import stop, train, validate
from airflow_mlops.stages.runner import run_stage, spec_data, spec_digest
from airflow_mlops.stages.stop import Stop, checkpoints_of, listening
from airflow_mlops.training.checkpoints import CheckpointManager

from .conftest import Workshop


@dataclass(frozen=True)
class Task:
    """The tries of one task, each in a directory of its own."""

    home: Path
    spec: train.Spec

    def try_(self, number: int, *, stop_at: int | None = None) -> tuple[int, Record | None]:
        """Run a try as its process does; it is sent SIGTERM after the batch `stop_at`."""
        out_dir = self.home / f"try-{number}"
        out_dir.mkdir(parents=True)
        (out_dir / "spec.json").write_text(json.dumps(spec_data(self.spec)))
        if stop_at is not None:
            (out_dir / "stop_at").write_text(str(stop_at))
        code = run_stage("train", out_dir / "spec.json", out_dir / "result.json")
        there = (out_dir / "result.json").exists()
        return code, read_record(out_dir / "result.json", stage="train", spec_digest=spec_digest(self.spec)) if there else None

    def result(self, number: int) -> Any:
        code, record = self.try_(number)
        assert code == 0
        assert record is not None
        return result_of(record, train.Result)

    def error(self, number: int) -> Exception:
        code, record = self.try_(number)
        assert code == 1
        assert record is not None
        assert record.error is not None
        return record.error.exception()

    @property
    def checkpoints(self) -> list[Path]:
        return sorted(self.home.glob("checkpoints/*/*.safetensors"))


@pytest.fixture(scope="module")
def validation(request: pytest.FixtureRequest, workshop: Workshop) -> ResultRef:
    return workshop.run("validate", validate.Spec(workshop.v1, str(workshop.suite)), f"validated-for-{request.module.__name__}")[0]


@pytest.fixture(scope="module")
def patient(workshop: Workshop, validation: ResultRef) -> train.Spec:
    return workshop.training_spec(validation, function="patient", params={"epochs": 3})


def test_a_training_that_is_told_to_stop_leaves_no_record_and_the_next_try_ends_in_the_same_model(patient: train.Spec, tmp_path: Path) -> None:
    whole = Task(tmp_path / "whole", patient).result(1)
    assert (whole.resumed_from_step, whole.stopped_early) == (None, False)
    task = Task(tmp_path / "task", patient)
    assert task.try_(1, stop_at=6) == (stop.EXIT_CODE, None)
    assert [path.name for path in task.checkpoints] == ["step-000000000006.safetensors"]
    resumed = task.result(2)
    assert resumed.resumed_from_step == 6
    assert resumed.weights_digest == whole.weights_digest
    assert task.checkpoints == []


def test_when_the_time_is_over_the_model_as_it_is_counts(patient: train.Spec, tmp_path: Path) -> None:
    result = Task(tmp_path, patient._replace(params={"epochs": 100_000}, max_seconds=0.5)).result(1)
    assert result.stopped_early
    assert result.metrics["train_loss"] > 0


def test_what_interrupted_attempts_have_trained_counts_as_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    checkpoints = CheckpointManager(tmp_path, "request")
    assert stop.deadline(60.0, checkpoints) == 1060.0
    checkpoints.save(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), 3, seconds=45.0)
    assert stop.deadline(60.0, checkpoints) == 1015.0
    assert stop.deadline(0.0, checkpoints) is None


def test_a_function_that_hangs_ends_with_the_place_where_it_hangs(
    workshop: Workshop, validation: ResultRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "HANG_SECONDS", 0.5)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)
    error = Task(tmp_path, workshop.training_spec(validation, function="hangs", max_seconds=0.5)).error(1)
    assert isinstance(error, TrainingTimeout)
    assert not error.retryable
    assert "user_code.py" in str(error)
    assert "in hangs. Look at context.should_stop()" in str(error)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_process_that_the_function_forks_leaves_no_second_result(workshop: Workshop, validation: ResultRef, tmp_path: Path) -> None:
    result = Task(tmp_path, workshop.training_spec(validation, function="forks")).result(1)
    assert result.metrics == {"exit_code_of_the_child": 1.0}


def test_each_request_has_checkpoints_of_its_own(patient: train.Spec, tmp_path: Path) -> None:
    origin = {"code_version": "abc", "dataset_digest": "sha256:1"}
    first = checkpoints_of(patient, origin, tmp_path / "try-1")
    assert checkpoints_of(patient._replace(max_seconds=9.0, tracking_uri="elsewhere"), origin, tmp_path / "try-2") == first
    for other in (
        checkpoints_of(patient, {**origin, "code_version": "abd"}, tmp_path / "try-2"),
        checkpoints_of(patient._replace(params={"epochs": 4}), origin, tmp_path / "try-2"),
    ):
        assert other.place != first.place
        assert other.identity != first.identity
    named = [checkpoints_of(patient._replace(checkpoints=str(tmp_path / "mine"), params={"epochs": each}), origin, tmp_path) for each in (3, 4)]
    assert {each.place.parent for each in named} == {tmp_path / "mine"}
    assert named[0].place != named[1].place


def test_outside_the_main_thread_nothing_listens_and_nothing_fails() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), list[Any]()

    def look() -> None:
        with listening(Stop(None)):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]
