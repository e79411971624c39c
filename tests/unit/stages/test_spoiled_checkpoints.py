"""A stage that finds a checkpoint which is cut off, or of something else, never goes on from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import pytest

from airflow_mlops.exceptions import CheckpointMismatch
from airflow_mlops.stages import stop, train
from airflow_mlops.training.checkpoints import CheckpointManager

from .test_interruption import Task, patient, validation

__all__ = ["patient", "validation"]


@pytest.fixture(scope="module")
def once(patient: train.Spec, tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A training that was stopped after its sixth batch, and has a checkpoint of that."""
    task = Task(tmp_path_factory.mktemp("once"), patient)
    assert task.try_(1, stop_at=6) == (stop.EXIT_CODE, None)
    return task


@pytest.fixture
def stopped(once: Task, tmp_path: Path) -> Task:
    """That training's files, for the test alone."""
    return Task(Path(shutil.copytree(once.home, tmp_path / "task")), once.spec)


def leave_another(task: Task, identity: str | None = None) -> None:
    """Leave a newer checkpoint of another model; its marker names the same request, or the one that `identity` says."""
    (mine,) = task.checkpoints
    own = json.loads(mine.with_name(f"{mine.name}.json").read_bytes())["identity"]
    CheckpointManager(mine.parent, identity or own).save(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), 9, histories=[])


def test_of_two_checkpoints_the_one_before_is_used_when_the_newest_is_cut_off(stopped: Task) -> None:
    assert stopped.try_(2, stop_at=12) == (stop.EXIT_CODE, None)
    before, newest = stopped.checkpoints
    assert (before.name, newest.name) == ("step-000000000006.safetensors", "step-000000000012.safetensors")
    newest.write_bytes(newest.read_bytes()[:-100])
    assert stopped.result(3).resumed_from_step == 6
    assert newest.with_name(f"{newest.name}.quarantined").is_file()


def test_a_training_whose_only_checkpoint_is_cut_off_begins_anew(stopped: Task) -> None:
    (only,) = stopped.checkpoints
    only.write_bytes(only.read_bytes()[:-100])
    assert stopped.result(2).resumed_from_step is None


def test_a_checkpoint_of_another_request_fails_the_stage_with_what_to_do(stopped: Task) -> None:
    leave_another(stopped, "another")
    error = stopped.error(2)
    assert isinstance(error, CheckpointMismatch)
    assert not error.retryable
    assert "is of another request" in str(error)
    assert "Give another directory, or remove this one to begin anew." in str(error)


def test_a_checkpoint_of_another_model_fails_the_stage_with_what_differs(stopped: Task) -> None:
    leave_another(stopped)
    error = stopped.error(2)
    assert isinstance(error, CheckpointMismatch)
    assert "step-000000000009" in str(error)
    assert "dense" in str(error)
