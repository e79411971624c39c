"""A real training by the two pods of a Job, each a process of this machine with a real TF_CONFIG, and one of them is taken away."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.local.digits import publish_digits
from airflow_mlops.operators.job import TrainModelJobOperator
from airflow_mlops.records import ResultRef, load, read_record, result_of
from airflow_mlops.results import TrainingResult, from_data
from airflow_mlops.stages import train
from airflow_mlops.stages.group import StageGroup
from airflow_mlops.stages.job import JobSpec
from airflow_mlops.stages.pod import PodSpec
from airflow_mlops.stages.runner import spec_digest
from airflow_mlops.stages.worker import Participation
from tests import fakes
from tests.fakes import FakeTaskInstance, leave_record
from tests.kubernetes.control_plane import eventually
from tests.kubernetes.test_job import Site, operator, site

__all__ = ["site"]
pytestmark = pytest.mark.kubernetes  # each test trains twice by two processes

# In its second epoch worker 1 waits while there is the file that HOLD names, and fails by words in it; the test takes a worker away meanwhile.
CODE = '''
import dataclasses
import itertools
import json
import os
import time
from pathlib import Path

import keras

from airflow_mlops.training.distributed import fit_together

def train(context):
    hold, epochs = Path(os.environ["HOLD"]), itertools.count(1)

    def should_stop():
        while next(epochs) == 2 and hold.exists() and json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 1:
            while hold.exists():
                time.sleep(0.05)
                if hold.read_text():
                    raise ValueError(hold.read_text())
        return context.should_stop()

    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(context.num_classes, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.05), loss="sparse_categorical_crossentropy")
    fit_together(dataclasses.replace(context, should_stop=should_stop), model, epochs=3, batch_size=40)
    return model

def forget(context):
    """After its first epoch, worker 1 finds no checkpoint."""
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(context.num_classes, activation="softmax")])
    model.compile(keras.optimizers.Adam(0.05), loss="sparse_categorical_crossentropy")
    fit_together(context, model, epochs=1, batch_size=40)
    checkpoints = None if json.loads(os.environ["TF_CONFIG"])["task"]["index"] else context.checkpoints
    fit_together(dataclasses.replace(context, checkpoints=checkpoints), model, epochs=3, batch_size=40)
    return model
'''


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, database: Path) -> train.Spec:
    home = tmp_path_factory.mktemp("request")
    (home / "code").mkdir()
    (home / "code" / "own_training.py").write_text(CODE)
    digits = publish_digits(home / "digits", "v1", num_rows=300, seed=1)
    validation = leave_record(home, "validate", fakes.validation(home, dataset=digits))
    layout, store = ArrayLayout((8, 8, 1), 10, scale=1 / 16), f"sqlite:///{database}"
    return train.Spec(validation, layout, "own_training:train", str(home / "code"), "digits", store, {}, "scratch")


@pytest.fixture(scope="module")
def undisturbed(spec: train.Spec, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the weights that two processes of a group end with, which nobody disturbs."""
    env, out_dir = {**os.environ, "HOLD": os.devnull + "-is-not-held"}, tmp_path_factory.mktemp("group") / "two"
    out_dir.mkdir()
    record = StageGroup("train", spec, out_dir, env=env, num_workers=2).run(lambda _: None)
    return result_of(record, TrainingResult).weights_digest


@pytest.fixture
def hold(site: Site, tmp_path: Path) -> Path:
    site.kubelet._env |= {"HOLD": str(tmp_path / "hold"), "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
    return tmp_path / "hold"


def task(site: Site, spec: train.Spec, **settings: Any) -> TrainModelJobOperator:
    pod = PodSpec("stages", site.namespace, cpu="100m", memory="64Mi")
    return operator(site.kubelet, spec, JobSpec(pod), TrainModelJobOperator, **settings)


def context(spec: train.Spec, ti: FakeTaskInstance | None = None) -> Any:
    """Return the context of a task after the one that validated."""
    ti = ti or FakeTaskInstance(task_id="t")
    return fakes.context(ti, run_id=ti.run_id, task=fakes.after(spec.validation, ti=ti))


def test_two_pods_train_the_model_that_two_processes_of_one_machine_train(
    site: Site, spec: train.Spec, hold: Path, undisturbed: str, workspace: Path
) -> None:
    answer = from_data(ResultRef, task(site, spec).execute(context(spec)))
    result = load(answer, TrainingResult)
    theirs = Path(answer.uri.replace("worker-0", "worker-1"))
    took_part = result_of(read_record(theirs, stage="train", spec_digest=spec_digest(spec)), Participation)
    assert (took_part.index, took_part.num_workers, took_part.weights_digest) == (1, 2, result.weights_digest)
    assert result.weights_digest == undisturbed
    (page,) = workspace.rglob("progress.html")
    assert f"Epoch 3 of 3, step {result.num_train_rows // 40 * 3}: loss" in page.read_text()
    assert site.is_clean()


@pytest.mark.parametrize("index", [0, 1])
def test_a_training_whose_worker_is_evicted_goes_on_from_its_checkpoint_to_the_same_weights(
    site: Site, spec: train.Spec, hold: Path, undisturbed: str, workspace: Path, index: int
) -> None:
    hold.touch()
    with ThreadPoolExecutor() as beside:
        done = beside.submit(task(site, spec).execute, context(spec))
        eventually(lambda: done.done() or any(workspace.rglob("step-*.safetensors.json")), seconds=90)
        (taken,) = [name for name in site.running() if f"-{index}-" in name]
        site.kubelet.pod(site.namespace, taken).evict("Evicted", "The node was low on resource: memory.")
        hold.unlink()
        answer = from_data(ResultRef, done.result(240))
    result = load(answer, TrainingResult)
    assert Path(answer.uri).parent.name == "job-2-worker-0"
    assert result.resumed_from_step == result.num_train_rows // 40
    assert result.weights_digest == undisturbed
    assert site.is_clean()


def test_workers_that_find_different_checkpoints_do_not_train(spec: train.Spec, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    together = StageGroup("train", spec._replace(function="own_training:forget"), tmp_path / "two", env={**os.environ}, num_workers=2)
    record = together.run(lambda _: None)
    assert record.error is not None
    assert record.error.type == "WorkerLost" and "it found another checkpoint" in record.error.message


def test_the_program_of_a_worker_that_fails_fails_the_task_at_once_with_its_words(site: Site, spec: train.Spec, hold: Path, workspace: Path) -> None:
    hold.touch()
    with ThreadPoolExecutor() as beside:
        done = beside.submit(task(site, spec).execute, context(spec))
        eventually(lambda: done.done() or any(workspace.rglob("step-*.safetensors.json")), seconds=90)
        hold.write_text("no such column")
        with pytest.raises(AirflowFailException, match=r"(?s)exit code 1 and left no result record.*no such column"):
            done.result(240)
    assert [path.parent.name for path in workspace.rglob("spec.json") if path.parent.name in ("job-1", "job-2")] == ["job-1"]
    assert site.is_clean()
