"""Several processes train one model together, and none of them is ever left alone."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest

from airflow_mlops.exceptions import SpecError, StageKilled, StageStopped
from airflow_mlops.records import read_record, result_of
from airflow_mlops.results import TrainingResult
from airflow_mlops.stages import train
from airflow_mlops.stages.group import StageGroup, tf_configs
from airflow_mlops.stages.process import StageProcess
from airflow_mlops.stages.runner import spec_digest
from airflow_mlops.stages.worker import Participation
from airflow_mlops.training.weights import weights_digest
from tests.processes import alive, wait_until
from tests.servers import free_port
from tests.unit.stages.conftest import Workshop

ENV = {**os.environ, "PYTHONUNBUFFERED": "1"}


def group(scripted: ModuleType, out_dir: Path, action: str) -> StageGroup:
    return StageGroup("scripted", scripted.Spec(action), out_dir, env=dict(os.environ), num_workers=2)


def pids(*out_dirs: Path) -> list[int]:
    paths = [out_dir / "pids.json" for out_dir in out_dirs]
    wait_until(lambda: all(path.exists() for path in paths))
    return [pid for path in paths for pid in json.loads(path.read_text())]


@contextmanager
def killing(together: StageGroup, out_dir: Path, *, all_of_them: bool) -> Iterator[list[int]]:
    """While the block waits for the group, kill it, or one of its workers; what ran before is yielded."""
    found: list[int] = []

    def kill() -> None:
        found.extend(pids(out_dir, out_dir.with_name(f"{out_dir.name}-worker-1")))
        if all_of_them:
            together.kill()
        else:
            os.kill(found[-2], signal.SIGKILL)  # the second worker's own process, not its child

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield found
    finally:
        killer.join()


@pytest.fixture(scope="module")
def request_of_two(workshop: Workshop) -> train.Spec:
    """A training of three epochs that several workers can share."""
    validation, _ = workshop.validate(dataclasses.replace(workshop.v1, name="shared"))
    return workshop.training_spec(validation, function="train_together", params={"epochs": 3})


@pytest.fixture(scope="module")
def undisturbed(request_of_two: train.Spec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which two workers trained a model."""
    out_dir = tmp_path_factory.mktemp("undisturbed") / "two"
    trained(StageGroup("train", request_of_two, out_dir, env=ENV, num_workers=2))
    return out_dir


def trained(process: StageProcess | StageGroup) -> TrainingResult:
    process.out_dir.mkdir(exist_ok=True)
    record = process.run(lambda line: None)
    assert record.error is None, record.error
    return result_of(record, TrainingResult)


def left_in(out_dir: Path, spec: train.Spec, kind: type[Any]) -> Any:
    return result_of(read_record(out_dir / "result.json", stage="train", spec_digest=spec_digest(spec)), kind)


@pytest.mark.long
def test_two_workers_make_the_model_that_one_makes(request_of_two: train.Spec, undisturbed: Path, tmp_path: Path) -> None:
    one = keras.models.load_model(trained(StageProcess("train", request_of_two, tmp_path / "one", env=ENV)).model.path)
    two = keras.models.load_model(left_in(undisturbed, request_of_two, TrainingResult).model.path)
    worker = undisturbed.with_name("two-worker-1")
    took_part = left_in(worker, request_of_two, Participation)
    assert (took_part.index, took_part.num_workers) == (1, 2)
    for mine, theirs in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    assert took_part.weights_digest == weights_digest(two)
    assert sorted(path.name for path in worker.iterdir()) == ["result.json", "spec.json"]


@pytest.mark.long
def test_a_training_that_lost_a_worker_goes_on_from_its_checkpoint_to_the_same_weights(
    request_of_two: train.Spec, undisturbed: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "died"
    env = {**ENV, "DIES_ONCE": str(mark)}
    first, second = (StageGroup("train", request_of_two, tmp_path / name, env=env, num_workers=2) for name in ("first", "second"))
    with pytest.raises(StageKilled, match="SIGKILL"):
        trained(first)
    assert mark.exists()
    assert [process for process in first._processes if alive(process._process.pid)] == []  # type: ignore[union-attr]
    result = trained(second)
    steps = result.num_train_rows // 40
    assert result.resumed_from_step == steps
    assert result.weights_digest == left_in(undisturbed, request_of_two, TrainingResult).weights_digest


@pytest.mark.long
@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_that_waits_for_the_others_ends_when_it_is_told_to(request_of_two: train.Spec, tmp_path: Path, index: int) -> None:
    config = tf_configs([f"127.0.0.1:{free_port()}" for _ in range(2)])[index]
    alone, said, ends = StageProcess("train", request_of_two, tmp_path, env={**ENV, "TF_CONFIG": config}), list[str](), list[BaseException]()

    def run() -> None:
        try:
            alone.run(said.append)
        except StageStopped as stopped:
            ends.append(stopped)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: any(f"Worker {index} of 2 waits for the others" in line for line in said), 60.0)
        alone.stop(grace_seconds=10.0)
    finally:
        alone.kill()
        thread.join()
    assert len(ends) == 1


def test_a_worker_that_dies_takes_the_others_with_it(scripted: ModuleType, tmp_path: Path) -> None:
    together = group(scripted, tmp_path, "start_child_and_wait")
    with pytest.raises(StageKilled, match="SIGKILL"), killing(together, tmp_path, all_of_them=False) as before:
        together.run(lambda line: None)
    assert before
    wait_until(lambda: not any(map(alive, before)))


def test_a_group_that_is_killed_leaves_nothing_running(scripted: ModuleType, tmp_path: Path) -> None:
    together = group(scripted, tmp_path, "start_child_and_wait")
    with pytest.raises(StageKilled), killing(together, tmp_path, all_of_them=True) as before:
        together.run(lambda line: None)
    assert before
    wait_until(lambda: not any(map(alive, before)))


def test_the_error_of_the_worker_that_failed_is_the_answer(scripted: ModuleType, tmp_path: Path) -> None:
    said = list[str]()
    record = group(scripted, tmp_path, "fail_for_now").run(said.append)
    assert record.error is not None
    assert record.error.message == "not there yet"


def test_each_worker_is_told_who_the_others_are() -> None:
    one, two = map(json.loads, tf_configs(["a:1", "b:2"]))
    assert one["cluster"] == two["cluster"] == {"worker": ["a:1", "b:2"]}
    assert [one["task"], two["task"]] == [{"type": "worker", "index": 0}, {"type": "worker", "index": 1}]


def test_one_worker_alone_is_no_group() -> None:
    with pytest.raises(SpecError, match="two or more"):
        tf_configs(["a:1"])
