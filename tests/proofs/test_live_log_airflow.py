"""The log of a deferred task as a person sees it in Airflow: under the real scheduler, triggerer and API server, with pods on the fake one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from airflow_mlops.exceptions import MlopsError
from tests.deployments import ROOT, Story, deployed, wait
from tests.kubernetes.fake_api import PODS, FakeApi
from tests.kubernetes.kubelet import Kubelet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DAG = """
from airflow.sdk import DAG

from airflow_mlops.operators.pod import StagePodOperator
from airflow_mlops.stages.pod import PodSpec

with DAG("live", schedule=None):
    StagePodOperator(
        task_id="t",
        stage="scripted",
        spec={{"action": "talk_of_progress", "text": {go!r}}},
        pod_spec=PodSpec("stages", {namespace!r}, cpu="100m", memory="64Mi", grace_seconds=2),
        deferrable=True,
        poll_interval=1,
        startup_check_interval_seconds=1,
    )
"""


class Live:
    """A deployment with one deferred task, and the pods that it makes."""

    def __init__(self, story: Story, kubelet: Kubelet, fake: FakeApi, namespace: str, go: Path) -> None:
        self.story, self.kubelet, self.fake, self.namespace, self.go = story, kubelet, fake, namespace, go
        self.run_id = story.api.trigger("live")
        self.path = f"/dags/live/dagRuns/{quote(self.run_id)}/taskInstances/t"

    def lines(self, begins: str) -> list[str]:
        """Return the lines of the task's log that begin so, as Airflow shows it now."""
        with contextlib.suppress(MlopsError):  # there is none yet
            content = self.story.api.call("GET", f"{self.path}/logs/1")["content"]
            return [line["event"] for line in content if isinstance(line, dict) and line["event"].startswith(begins)]
        return []

    def page(self) -> str:
        """Return what stands behind the Report button, nothing where it leads nowhere."""
        url = self.story.api.call("GET", f"{self.path}/links")["extra_links"].get("Report")
        headers = {"Authorization": self.story.api._client.headers["Authorization"]}
        answer = httpx.get(f"{self.story.settings.url('airflow')}{url}", headers=headers, trust_env=False) if url else None
        return answer.text if answer is not None and answer.status_code == 200 else ""

    def await_deferral(self, number: int) -> None:
        """Wait until the scheduler has heard of so many deferrals: a task whose trigger fires before that is taken for failed by Airflow 3.3."""
        log = self.story.home / "logs" / "scheduler.log"
        wait("the scheduler knows that the task is deferred", lambda: log.read_text().count(", state=deferred") >= number)

    def pod(self) -> str | None:
        """Return the name of the pod that runs."""
        pods = self.fake.store.list(PODS, self.namespace)
        return next((pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"), None)


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    (tmp_path / "dags").mkdir()
    (tmp_path / "fake").mkdir()
    modules = os.pathsep.join([str(ROOT / "tests" / "scripted"), str(ROOT)])
    with FakeApi(tmp_path / "fake") as fake, fake.namespace() as namespace, Kubelet(fake) as kubelet:
        kubelet._env |= {"PYTHONPATH": modules, "PYTHONUNBUFFERED": "1"}
        kubelet.add_node("node")
        (tmp_path / "dags" / "live.py").write_text(DAG.format(namespace=namespace, go=str(tmp_path / "go")))
        connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(fake.kubeconfig), "in_cluster": False}}
        variables = {"PYTHONPATH": modules, "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(connection)}
        with deployed(tmp_path, tmp_path / "dags", variables, ["live"]) as story:
            yield Live(story, kubelet, fake, namespace, tmp_path / "go")


def test_log_and_page_are_seen_while_the_task_is_deferred_and_nothing_is_lost_when_another_pod_follows(live: Live) -> None:
    wait("the button leads to a page", lambda: "Nothing was told" in live.page() or "Epoch 1 of 3" in live.page())
    wait("the first epoch is in the log", lambda: live.lines("Epoch 1 of 3"))
    assert live.story.task("live", live.run_id, "t")["state"] == "deferred"
    wait("the first epoch is on the page", lambda: "Epoch 1 of 3" in live.page())
    live.await_deferral(1)
    first = live.pod()
    assert first is not None
    live.kubelet.pod(live.namespace, first).evict("Evicted", "The node was low on resource: memory.")
    wait("another pod follows", lambda: live.pod() not in (None, first))
    live.await_deferral(2)
    live.go.touch()
    assert live.story.finished("live", live.run_id) == "success", live.lines("")
    assert [line[:7] for line in live.lines("Epoch")] == ["Epoch 1", "Epoch 1", "Epoch 2", "Epoch 3"]
    assert len(live.lines("The log of pod")) == 1
    assert "Epoch 3 of 3" in live.page()
