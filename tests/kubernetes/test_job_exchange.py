"""A training by the pods of a Job that see nothing of the worker's files: what they need and what they make goes through an object storage."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlops.operators.job import TrainModelJobOperator
from airflow_mlops.records import ResultRef, load
from airflow_mlops.results import TrainingResult, from_data
from airflow_mlops.stages import train
from airflow_mlops.stages.job import JobSpec
from airflow_mlops.stages.pod import PodSpec
from tests.fakes import after
from tests.kubernetes import mounts
from tests.kubernetes.control_plane import eventually
from tests.kubernetes.test_job import Scripted, Site, context, operator, site
from tests.kubernetes.test_job_training import spec, undisturbed
from tests.mlflow_server import running_server
from tests.s3 import S3Server

__all__ = ["site", "spec", "undisturbed"]
KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "eu-central-1"}


class Bucket:
    """A bucket, whose keys the worker has from a connection and the pods from a secret."""

    def __init__(self, server: S3Server, name: str) -> None:
        self.name, self._client = name, boto3.client("s3", endpoint_url=server.url, **KEYS)
        self._client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})

    def names(self, folder: str, ending: str = "") -> list[str]:
        found = self._client.list_objects_v2(Bucket=self.name, Prefix=f"runs/{folder}/").get("Contents", [])
        return [one["Key"] for one in found if one["Key"].endswith(ending)]


@pytest.fixture
def bucket(site: Site, connect: Any) -> Iterator[Bucket]:
    if not mounts.possible():
        pytest.skip("only root may hide the worker's files from a pod of this machine")
    with S3Server() as server:
        options = server.options()
        secret = base64.b64encode(json.dumps(options).encode()).decode()
        site.core.create_namespaced_secret(site.namespace, {"metadata": {"name": "exchange"}, "data": {"options.json": secret}})
        connect("exchange", "generic", extra={"storage_options": options})
        yield Bucket(server, site.namespace)


def task(site: Site, bucket: Bucket, request: Any, kind: type[TrainModelJobOperator], *places: Path) -> TrainModelJobOperator:
    """Return an operator whose pods do not see these places, nor the worker's own."""
    through = {"exchange": f"s3://{bucket.name}/runs", "exchange_secret": "exchange", "places": [str(place) for place in places]}
    pod = PodSpec("stages", site.namespace, cpu="100m", memory="64Mi", **through)
    return operator(site.kubelet, request, JobSpec(pod, exchange_conn_id="exchange"), kind)


def test_worker_0_alone_answers_and_its_result_lies_where_airflow_is(site: Site, bucket: Bucket, tmp_path: Path, workspace: Path) -> None:
    site.kubelet.hidden.append(tmp_path)
    answer = task(site, bucket, site.scripted.Spec("leave_file"), Scripted).execute(context())
    result = load(from_data(ResultRef, answer), site.scripted.Result)
    assert result.file is not None and result.file.path.parent.name == "job-1-worker-0"
    assert [path.parent.name for path in workspace.rglob("result.json")] == ["job-1-worker-0"]
    assert len(bucket.names("results")) == 1
    assert site.is_clean()


def test_a_result_that_does_not_hold_is_put_aside_in_the_exchange_and_fails_the_task(site: Site, bucket: Bucket, tmp_path: Path) -> None:
    site.kubelet.hidden.append(tmp_path)
    with pytest.raises(AirflowFailException, match="ResultInvalid"):
        task(site, bucket, site.scripted.Spec("spoil_file"), Scripted).execute(context())
    (left,) = bucket.names("results")
    assert left.endswith(".quarantined.json")
    assert site.is_clean()


@pytest.mark.kubernetes
@pytest.mark.parametrize("index", [0, 1])
def test_a_training_whose_worker_is_evicted_goes_on_from_the_checkpoint_in_the_exchange(
    site: Site, bucket: Bucket, spec: train.Spec, undisturbed: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, index: int
) -> None:
    data, hold = Path(spec.code_path).parent, tmp_path_factory.mktemp("hold") / "hold"
    hold.touch()
    site.kubelet._env |= {"HOLD": str(hold), "TF_CPP_MIN_LOG_LEVEL": "2"}
    site.kubelet.hidden += [tmp_path, data]
    (tmp_path / "mlflow").mkdir()
    with running_server(tmp_path / "mlflow") as server, ThreadPoolExecutor() as beside:
        request = spec._replace(tracking_uri=server.uri)
        done = beside.submit(task(site, bucket, request, TrainModelJobOperator, data).execute, {**context(), "task": after(spec.validation)})
        eventually(lambda: done.done() or bucket.names("checkpoints", ".safetensors.json"), seconds=120)
        (taken,) = [name for name in site.running() if f"-{index}-" in name]
        site.kubelet.pod(site.namespace, taken).evict("Evicted", "The node was low on resource: memory.")
        hold.unlink()
        answer = from_data(ResultRef, done.result(240))
    result = load(answer, TrainingResult)
    assert Path(answer.uri).parent.name == "job-2-worker-0"
    assert (result.resumed_from_step, result.weights_digest) == (result.num_train_rows // 40, undisturbed)
    assert result.model.path.is_file() and bucket.names("checkpoints") == []
    assert site.is_clean()
