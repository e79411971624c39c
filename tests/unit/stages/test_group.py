"""Several processes train one model together, and none of them is ever left alone."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import keras
import numpy as np
import pytest

from airflow_mlops.exceptions import SpecError, StageKilled
from airflow_mlops.records import Record, read_record, result_of
from airflow_mlops.results import TrainingResult
from airflow_mlops.stages.group import StageGroup, tf_configs
from airflow_mlops.stages.process import StageProcess
from airflow_mlops.stages.runner import spec_digest
from airflow_mlops.stages.worker import Participation
from airflow_mlops.training.distributed import weights_digest
from tests.unit.stages.conftest import Workshop

ENV = {**os.environ, "PYTHONUNBUFFERED": "1"}


def group(scripted: ModuleType, out_dir: Path, action: str) -> StageGroup:
    return StageGroup("scripted", scripted.Spec(action), out_dir, env=dict(os.environ), num_workers=2)


def pids(*out_dirs: Path) -> list[int]:
    paths = [out_dir / "pids.json" for out_dir in out_dirs]
    end = time.monotonic() + 20
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, "the workers did not begin"
        time.sleep(0.02)
    return [pid for path in paths for pid in json.loads(path.read_text())]


@contextmanager
def killing(together: StageGroup, out_dir: Path, *, all_of_them: bool) -> Iterator[list[int]]:
    """While the block waits for the group, kill it, or one of its workers; what ran before is yielded."""
    alive: list[int] = []

    def kill() -> None:
        alive.extend(pids(out_dir, out_dir.with_name(f"{out_dir.name}-worker-1")))
        if all_of_them:
            together.kill()
        else:
            os.kill(alive[-2], signal.SIGKILL)  # the second worker's own process, not its child

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield alive
    finally:
        killer.join()


def assert_gone(alive: list[int]) -> None:
    """Killed processes are gone when the machine has had the time for it."""
    end = time.monotonic() + 20
    while left := [pid for pid in alive if is_running(pid)]:
        assert time.monotonic() < end, f"{left} still run"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_two_workers_make_the_model_that_one_makes(workshop: Workshop, tmp_path: Path) -> None:
    validation, _ = workshop.validate(workshop.v1)
    spec = workshop.training_spec(validation, function="train_together")
    models, said = [], list[str]()
    for name, kind, sizes in (("one", StageProcess, {}), ("two", StageGroup, {"num_workers": 2})):
        (tmp_path / name).mkdir()
        record: Record = kind("train", spec, tmp_path / name, env=ENV, **sizes).run(said.append)
        assert record.error is None, record.error
        models.append(keras.models.load_model(result_of(record, TrainingResult).model.path))
    worker = read_record(tmp_path / "two-worker-1" / "result.json", stage="train", spec_digest=spec_digest(spec))
    took_part = result_of(worker, Participation)
    assert (took_part.index, took_part.num_workers) == (1, 2)
    for one, two in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)
    assert took_part.weights_digest == weights_digest(models[1])
    assert sorted(path.name for path in (tmp_path / "two-worker-1").iterdir()) == ["result.json", "spec.json"]


def test_a_worker_that_dies_takes_the_others_with_it(scripted: ModuleType, tmp_path: Path) -> None:
    together = group(scripted, tmp_path, "start_child_and_wait")
    with pytest.raises(StageKilled, match="SIGKILL"), killing(together, tmp_path, all_of_them=False) as alive:
        together.run(lambda line: None)
    assert_gone(alive)


def test_a_group_that_is_killed_leaves_nothing_running(scripted: ModuleType, tmp_path: Path) -> None:
    together = group(scripted, tmp_path, "start_child_and_wait")
    with pytest.raises(StageKilled), killing(together, tmp_path, all_of_them=True) as alive:
        together.run(lambda line: None)
    assert_gone(alive)


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
