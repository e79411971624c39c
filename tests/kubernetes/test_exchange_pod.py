"""A stage in a pod that sees nothing of the worker's files: what it needs and what it makes goes through an object storage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
from airflow.sdk.exceptions import AirflowFailException
from kubernetes import client

from airflow_mlops.ledger.store import Store
from airflow_mlops.local.digits import publish_digits
from airflow_mlops.operators.pod import StagePodOperator
from airflow_mlops.records import ResultRef, load
from airflow_mlops.results import ValidationResult, from_data
from airflow_mlops.stages import validate
from airflow_mlops.stages.pod import PodSpec
from tests.fakes import after
from tests.kubernetes import mounts
from tests.kubernetes.control_plane import eventually
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.test_stage_pod import context
from tests.s3 import S3Server


@pytest.fixture
def s3(core: client.CoreV1Api, namespace: str, connect: Callable[..., None]) -> Iterator[S3Server]:
    """A bucket of the namespace's name, whose keys the worker has from a connection and the pod from a secret."""
    with S3Server() as server:
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "eu-central-1"}
        boto3.client("s3", endpoint_url=server.url, **keys).create_bucket(
            Bucket=namespace, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        core.create_namespaced_secret(namespace, {"metadata": {"name": "exchange"}, "stringData": {"options.json": json.dumps(server.options())}})
        connect("exchange", "generic", extra={"storage_options": server.options()})
        yield server


@pytest.fixture
def operator(
    kubelet: Kubelet, s3: S3Server, namespace: str, scripted: ModuleType, workspace: Path, ledger: Store, tmp_path: Path
) -> Callable[..., StagePodOperator]:
    if not mounts.possible():
        pytest.skip("only root may hide the worker's files from a pod of this machine")
    kubelet._env["PYTHONPATH"] = os.environ["PYTHONPATH"]
    kubelet.hidden.append(tmp_path)
    kubelet.add_node("node")

    def make(stage: str, spec: Any, *, exchanging: bool = True, **pod: Any) -> StagePodOperator:
        through = {"exchange": f"s3://{namespace}/runs", "exchange_secret": "exchange"} if exchanging else {}
        return StagePodOperator(
            task_id="t",
            stage=stage,
            spec=spec,
            pod_spec=PodSpec("stages", namespace, cpu="100m", memory="64Mi", **through, **pod),
            exchange_conn_id="exchange",
            config_file=str(kubelet.cluster.kubeconfig),
            kubernetes_conn_id=None,
            in_cluster=False,
            poll_interval=0.2,
            startup_check_interval_seconds=1,
        )

    return make


def test_the_result_of_a_pod_without_a_shared_volume_lies_on_the_worker(
    operator: Callable[..., StagePodOperator], scripted: ModuleType, workspace: Path, core: client.CoreV1Api, namespace: str
) -> None:
    answer = operator("scripted", scripted.Spec("leave_file")).execute(context())
    result = load(from_data(ResultRef, answer), scripted.Result)
    assert result.file is not None and result.file.path.is_relative_to(workspace)
    eventually(lambda: core.list_namespaced_pod(namespace).items == [])


def test_without_the_exchange_such_a_pod_does_not_even_find_its_request(operator: Callable[..., StagePodOperator], scripted: ModuleType) -> None:
    with pytest.raises(AirflowFailException, match=r"exit code 1 and left no result record\. Its last words:\n.*spec\.json cannot be read"):
        operator("scripted", scripted.Spec("leave_file"), exchanging=False).execute(context())


def test_a_pod_reads_a_dataset_and_a_suite_that_only_the_worker_has(operator: Callable[..., StagePodOperator], tmp_path: Path) -> None:
    suite = tmp_path / "data" / "suite.json"
    suite.parent.mkdir()
    expectation = {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 200}}
    suite.write_text(json.dumps({"name": "digits", "expectations": [expectation]}))
    version = publish_digits(tmp_path / "data" / "digits", "v1", num_rows=300, seed=1)
    task = operator("validate", validate.Spec(version, str(suite)), places=(str(tmp_path / "data"),))
    result = load(from_data(ResultRef, task.execute({**context(), "task": after(version)})), ValidationResult)
    assert result.num_rows == 300 and result.report() is not None and result.data_docs.path.is_dir()
