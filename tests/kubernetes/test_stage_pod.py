"""A stage in a pod on a real control plane: one pod per attempt, believed by its record, followed by another only when it was nobody's fault."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from kubernetes import client

from airflow_mlops.ledger.store import Store
from airflow_mlops.operators.pod import StagePodOperator
from airflow_mlops.records import ResultRef, load
from airflow_mlops.results import from_data
from airflow_mlops.stages.pod import PodSpec
from tests import fakes
from tests.fakes import FakeTaskInstance
from tests.kubernetes.control_plane import eventually
from tests.kubernetes.kubelet import Kubelet


def context(try_number: int = 1, max_tries: int = 0, ti: FakeTaskInstance | None = None) -> Any:
    ti = ti or FakeTaskInstance(task_id="t", try_number=try_number, max_tries=max_tries)
    return fakes.context(ti, run_id=ti.run_id, dag=SimpleNamespace(parent_dag=None), task_state_store=None)


class Site:
    """A namespace with one node, and operators for actions of the scripted stage."""

    def __init__(self, kubelet: Kubelet, core: client.CoreV1Api, namespace: str, scripted: ModuleType, workspace: Path) -> None:
        self.kubelet, self.core, self.namespace, self.scripted, self.workspace = kubelet, core, namespace, scripted, workspace

    def operator(self, action: str, text: str = "", number: float = 0.0, *, deferrable: bool = False, **pod: Any) -> StagePodOperator:
        return StagePodOperator(
            task_id="t",
            stage="scripted",
            spec=self.scripted.Spec(action, text, number),
            pod_spec=PodSpec("stages", self.namespace, cpu="100m", memory="64Mi", **pod),
            config_file=str(self.kubelet.cluster.kubeconfig),
            kubernetes_conn_id=None,
            in_cluster=False,
            deferrable=deferrable,
            poll_interval=0.2,
            startup_check_interval_seconds=1,
        )

    def pods(self) -> list[Any]:
        return list(self.core.list_namespaced_pod(self.namespace).items)

    def running(self) -> str:
        """Return the name of the one pod once its container runs."""
        return eventually(lambda: next((pod.metadata.name for pod in self.pods() if pod.status.phase == "Running"), ""))


@pytest.fixture
def site(kubelet: Kubelet, core: client.CoreV1Api, namespace: str, scripted: ModuleType, workspace: Path, ledger: Store) -> Iterator[Site]:
    kubelet._env["PYTHONPATH"] = os.environ["PYTHONPATH"]
    kubelet.add_node("node")
    yield Site(kubelet, core, namespace, scripted, workspace)


@pytest.fixture
def beside() -> Iterator[Callable[..., Any]]:
    """Run a function beside the test and return its future."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def followed(operator: StagePodOperator, ti: FakeTaskInstance | None = None) -> dict[str, Any]:
    """Return what the task returns, deferred or not."""
    try:
        return dict(operator.execute(context(ti=ti)))
    except TaskDeferred as deferred:
        trigger = deferred.trigger

    async def event() -> Any:
        return (await anext(trigger.run())).payload

    return dict(operator.trigger_reentry(context(ti=ti), asyncio.run(event())))


def number(answer: dict[str, Any], scripted: ModuleType) -> float:
    return float(load(from_data(ResultRef, answer), scripted.Result).number)


def test_a_stage_in_a_pod_returns_its_verified_record_and_its_pod_is_gone(site: Site, workspace: Path) -> None:
    answer = site.operator("leave_file").execute(context())
    result = load(from_data(ResultRef, answer), site.scripted.Result)
    assert result.file is not None and result.file.path.is_relative_to(workspace)
    eventually(lambda: site.pods() == [])


def test_a_worker_that_died_after_it_created_the_pod_finds_it_again(site: Site, workspace: Path, beside: Callable[..., Any]) -> None:
    heard = workspace / "heard"
    first = site.operator("talk", str(heard))
    first._prepare(context())
    first.get_or_create_pod(first.build_pod_request_obj(context()), context())  # and here the worker dies
    site.running()
    (before,) = site.pods()
    second = beside(site.operator("talk", str(heard)).execute, context(try_number=2))
    heard.touch()
    assert second.result()["stage"] == "scripted"
    assert before.metadata.name == first._name and before.metadata.annotations["airflow-mlops/spec-digest"].startswith("sha256:")


def test_a_pod_of_another_request_under_the_same_name_is_not_taken_for_ours(site: Site) -> None:
    first = site.operator("talk", "/nowhere")
    first._prepare(context())
    first.get_or_create_pod(first.build_pod_request_obj(context()), context())
    with pytest.raises(AirflowFailException, match="is there for another request"):
        site.operator("leave_file").execute(context())


def test_an_evicted_pod_is_followed_by_another_in_the_same_try(site: Site, workspace: Path, beside: Callable[..., Any]) -> None:
    heard = workspace / "heard"
    done = beside(site.operator("talk", str(heard)).execute, context())
    first = site.running()
    site.kubelet.pod(site.namespace, first).evict("Evicted", "The node was low on resource: memory.")
    second = eventually(lambda: next((pod.metadata.name for pod in site.pods() if pod.metadata.name != first and pod.status.phase == "Running"), ""))
    heard.touch()
    assert done.result()["stage"] == "scripted" and second != first


def test_a_pod_that_is_taken_away_again_and_again_fails_in_the_end(site: Site, beside: Callable[..., Any]) -> None:
    done = beside(site.operator("talk", "/nowhere", max_interruptions=0).execute, context())
    site.kubelet.pod(site.namespace, site.running()).evict("Evicted", "The node was low on resource: memory.")
    with pytest.raises(AirflowFailException, match=r"Evicted\. The node was low on resource: memory\. It was taken away 1 times"):
        done.result()


def test_too_little_memory_is_followed_by_one_step_more(site: Site, workspace: Path, beside: Callable[..., Any]) -> None:
    heard = workspace / "heard"
    done = beside(site.operator("talk", str(heard), memory_ladder=("128Mi",)).execute, context())
    first = site.running()
    site.kubelet.pod(site.namespace, first).end("base", 137, "OOMKilled")
    second = eventually(lambda: next((pod for pod in site.pods() if pod.metadata.name != first and pod.status.phase == "Running"), None))
    assert second.spec.containers[0].resources.limits["memory"] == "128Mi"
    heard.touch()
    assert done.result()["stage"] == "scripted"


def test_a_program_that_fails_fails_the_task_at_once_with_its_last_words(site: Site) -> None:
    with pytest.raises(AirflowFailException, match=r"(?s)StageKilled: .*exit code 137.*it would end the same way"):
        site.operator("kill_itself").execute(context())
    eventually(lambda: site.pods() == [])


def test_a_success_without_a_record_is_a_failure(site: Site) -> None:
    with pytest.raises(AirflowFailException, match="ended as succeeded and left no result record"):
        site.operator("leave_silently", number=0).execute(context())


def test_a_record_whose_artefact_changed_is_put_aside(site: Site, workspace: Path) -> None:
    with pytest.raises(AirflowFailException, match="ResultInvalid"):
        site.operator("spoil_file", "other words").execute(context())
    assert [path.name for path in workspace.rglob("result.*")] == ["result.quarantined"]


def test_more_than_any_node_has_fails_with_the_scheduler_s_reason(site: Site) -> None:
    with pytest.raises(AirflowFailException, match=r"No node takes the pod: .*Insufficient nvidia.com/gpu"):
        site.operator("leave_file", num_gpus=8, start_seconds=4).execute(context())
    eventually(lambda: site.pods() == [])


def test_a_worker_that_died_before_it_returned_a_settled_record_returns_it_again(site: Site) -> None:
    first = site.operator("leave_file").execute(context())
    again = context(try_number=2)
    assert site.operator("leave_file").execute(again) == first == again["ti"].pushed["return_value"]
    assert site.pods() == []


def test_a_worker_that_died_between_the_deletion_and_the_ledger_makes_no_second_pod(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as dying:
        dying.setattr(StagePodOperator, "_settle", lambda self, *_: self._pod.delete())
        first = site.operator("leave_file").execute(context())
    eventually(lambda: site.pods() == [])
    with monkeypatch.context() as watching:
        watching.setattr(StagePodOperator, "get_or_create_pod", None)
        assert site.operator("leave_file").execute(context(try_number=2)) == first


def test_a_cleared_task_begins_anew(site: Site) -> None:
    first = site.operator("leave_file").execute(context())
    second = site.operator("leave_file").execute(context(try_number=2, max_tries=1))  # as Airflow counts them after that
    assert (Path(first["uri"]).parent.name, Path(second["uri"]).parent.name) == ("pod-1", "pod-2")


def test_a_deferred_task_concludes_as_one_that_waits(site: Site) -> None:
    assert number(followed(site.operator("leave_file", deferrable=True)), site.scripted) == 0.0
    eventually(lambda: site.pods() == [])


def test_a_deferred_task_whose_time_is_over_fails_and_its_pod_is_stopped(site: Site) -> None:
    operator = site.operator("talk", "/nowhere", deferrable=True)
    with pytest.raises(TaskDeferred):
        operator.execute(context())
    event = {"status": "timeout", "name": site.running(), "namespace": site.namespace, "message": "too long"}
    with pytest.raises(AirflowFailException, match="did not end within execution_timeout"):
        site.operator("talk", "/nowhere", deferrable=True).trigger_reentry(context(), event)
    eventually(lambda: site.pods() == [])


@pytest.mark.parametrize("deferrable", [False, True])
def test_progress_is_a_page_that_the_task_links_to(site: Site, workspace: Path, deferrable: bool) -> None:
    ti = FakeTaskInstance(task_id="t")
    followed(site.operator("tell_progress", deferrable=deferrable), ti)
    (page,) = workspace.rglob("progress.html")
    assert ti.pushed["report_url"].endswith("pod-1/progress.html") and "From 0.3333 to 1." in page.read_text()
