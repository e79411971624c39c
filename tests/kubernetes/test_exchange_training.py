"""A real training in a pod that sees nothing of the worker's files: evicted, it goes on from the checkpoint that it left in the object storage."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from kubernetes import client

from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.local.digits import publish_digits
from airflow_mlops.operators.pod import StagePodOperator
from airflow_mlops.records import ResultRef, load
from airflow_mlops.results import TrainingResult, from_data
from airflow_mlops.stages import train, validate
from tests.fakes import after, leave_record
from tests.kubernetes.control_plane import eventually
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.test_exchange_pod import operator, s3
from tests.kubernetes.test_stage_pod import beside, context
from tests.mlflow_server import running_server
from tests.s3 import S3Server

__all__ = ["beside", "operator", "s3"]

# Slow until it was interrupted once, so that it can be.
CODE = """
import time
import keras

class Pause(keras.callbacks.Callback):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(self.seconds)

def train(context):
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(context.num_classes, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile("adam", loss="sparse_categorical_crossentropy")
    context.fit(model, epochs=20, callbacks=[Pause(0.0 if any(context.checkpoints.place.glob("*.json")) else 0.2)])
    return model
"""


@pytest.fixture
def tracking_uri(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "mlflow").mkdir()
    with running_server(tmp_path / "mlflow") as server:
        yield server.uri


@pytest.fixture
def spec(tmp_path: Path, tracking_uri: str) -> train.Spec:
    """A training whose dataset, validation and code only the worker has."""
    data = tmp_path / "data"
    (data / "code").mkdir(parents=True)
    (data / "code" / "own_training.py").write_text(CODE)
    rows = {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 200}}
    (data / "suite.json").write_text(json.dumps({"name": "digits", "expectations": [rows]}))
    version = publish_digits(data / "digits", "v1", num_rows=300, seed=1)
    out = data / "validate"
    out.mkdir()
    validation = leave_record(data, "validate", validate.run(validate.Spec(version, str(data / "suite.json")), out))
    layout = ArrayLayout((8, 8, 1), 10, scale=1 / 16)
    made = train.Spec(validation, layout, "own_training:train", str(data / "code"), "digits", tracking_uri, {}, "scratch")
    return made._replace(checkpoint_seconds=0.3)


def uploaded(s3: S3Server, bucket: str) -> list[str]:
    """Return the markers of the checkpoints in the exchange."""
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "eu-central-1"}
    found = boto3.client("s3", endpoint_url=s3.url, **keys).list_objects_v2(Bucket=bucket, Prefix="runs/checkpoints/").get("Contents", [])
    return [one["Key"] for one in found if one["Key"].endswith(".safetensors.json")]


def test_a_training_whose_pod_is_evicted_goes_on_from_its_checkpoint_in_the_exchange(
    operator: Callable[..., StagePodOperator],
    spec: train.Spec,
    s3: S3Server,
    kubelet: Kubelet,
    core: client.CoreV1Api,
    namespace: str,
    tmp_path: Path,
    beside: Callable[..., Any],
) -> None:
    task = operator("train", spec, places=(str(tmp_path / "data"),))
    done = beside(task.execute, {**context(), "task": after(spec.validation)})
    eventually(lambda: done.done() or uploaded(s3, namespace), seconds=90)
    (pod,) = core.list_namespaced_pod(namespace).items
    kubelet.pod(namespace, pod.metadata.name).evict("Evicted", "The node was low on resource: memory.")
    result = load(from_data(ResultRef, done.result(timeout=120)), TrainingResult)
    assert result.resumed_from_step is not None and 0 < result.resumed_from_step < 20 * 8
    assert result.model.path.is_file() and result.model.path.parent.name == "pod-2"
    assert re.fullmatch(r"[0-9a-f]{32}", result.mlflow_run_id) and uploaded(s3, namespace) == []
    eventually(lambda: core.list_namespaced_pod(namespace).items == [])
