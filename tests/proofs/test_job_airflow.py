"""A deferred training by several pods as a person sees it in Airflow: under the real scheduler and triggerer, with a Job on the fake API server."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from urllib.parse import quote

import pytest

from airflow_mlops.exceptions import MlopsError
from tests.deployments import ROOT, deployed, wait
from tests.kubernetes.fake_api import FakeApi
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.played_jobs import PlayedJobs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DAG = """
from airflow.sdk import DAG

from airflow_mlops.operators.job import TrainModelJobOperator
from airflow_mlops.stages.job import JobSpec
from airflow_mlops.stages.pod import PodSpec

class Scripted(TrainModelJobOperator):
    stage = "scripted"

with DAG("together", schedule=None):
    pod = PodSpec("stages", {namespace!r}, cpu="100m", memory="64Mi", grace_seconds=2)
    spec = {{"action": "talk_of_progress", "text": {go!r}}}
    Scripted(task_id="t", spec=spec, job_spec=JobSpec(pod), deferrable=True, poll_seconds=1)
"""


def test_worker_0_s_lines_are_in_the_task_s_log_while_it_is_deferred_and_each_once_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    for name in ("dags", "fake"):
        (tmp_path / name).mkdir()
    modules = os.pathsep.join([str(ROOT / "tests" / "scripted"), str(ROOT)])
    with FakeApi(tmp_path / "fake") as fake, fake.namespace() as namespace, Kubelet(fake) as kubelet, PlayedJobs(fake):
        kubelet._env |= {"PYTHONPATH": modules, "PYTHONUNBUFFERED": "1"}
        kubelet.add_node("node")
        (tmp_path / "dags" / "together.py").write_text(DAG.format(namespace=namespace, go=str(tmp_path / "go")))
        connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(fake.kubeconfig), "in_cluster": False}}
        variables = {"PYTHONPATH": modules, "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(connection)}
        with deployed(tmp_path, tmp_path / "dags", variables, ["together"]) as story:
            run_id = story.api.trigger("together")

            def lines(begins: str) -> list[str]:
                with contextlib.suppress(MlopsError):  # there is none yet
                    content = story.api.call("GET", f"/dags/together/dagRuns/{quote(run_id)}/taskInstances/t/logs/1")["content"]
                    return [line["event"] for line in content if isinstance(line, dict) and line["event"].startswith(begins)]
                return []

            wait("the first epoch is in the log", lambda: lines("Epoch 1 of 3"))
            assert story.task("together", run_id, "t")["state"] == "deferred"
            (tmp_path / "go").touch()
            assert story.finished("together", run_id) == "success"
            assert [line[:7] for line in lines("Epoch")] == ["Epoch 1", "Epoch 2", "Epoch 3"]
