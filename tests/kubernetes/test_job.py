"""A distributed training in the cluster: one Job per attempt, believed by its chief's record, followed by another only when it was nobody's fault."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from kubernetes import client

from airflow_mlops.artifacts import canonical_json, write_atomically
from airflow_mlops.exceptions import WorkerLost
from airflow_mlops.hooks.training_job import TrainingJob
from airflow_mlops.ledger.store import Store
from airflow_mlops.operators.job import TrainModelJobOperator
from airflow_mlops.records import SCHEMA_VERSION, Record, StageFailure
from airflow_mlops.results import to_data
from airflow_mlops.stages.job import JobSpec
from airflow_mlops.stages.pod import PodSpec
from airflow_mlops.stages.runner import spec_digest
from tests import fakes
from tests.fakes import FakeTaskInstance
from tests.kubernetes.control_plane import ControlPlane, eventually
from tests.kubernetes.fake_api import FakeApi
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.played_jobs import PlayedJobs


class Scripted(TrainModelJobOperator):
    """Runs the scripted stage in the place of a training."""

    stage = "scripted"


def context() -> Any:
    ti = FakeTaskInstance(task_id="t")
    return fakes.context(ti, run_id=ti.run_id)


class Site:
    """A namespace in which Jobs really run, and operators for actions of the scripted stage."""

    def __init__(self, kubelet: Kubelet, api: client.ApiClient, namespace: str, scripted: ModuleType) -> None:
        self.kubelet, self.namespace, self.scripted = kubelet, namespace, scripted
        self.core, self.batch = client.CoreV1Api(api), client.BatchV1Api(api)

    def operator(
        self, action: str, text: str = "", number: float = 0.0, *, queue: str = "", backend: str = "job", runtime: str = "", **settings: Any
    ) -> TrainModelJobOperator:
        pod = PodSpec("stages", self.namespace, cpu="100m", memory="64Mi", queue=queue)
        job_spec = JobSpec(pod, backend=backend, runtime=runtime)
        return operator(self.kubelet, self.scripted.Spec(action, text, number), job_spec, **settings)

    def jobs(self) -> list[Any]:
        return list(self.batch.list_namespaced_job(self.namespace).items)

    def pods(self) -> list[Any]:
        return list(self.core.list_namespaced_pod(self.namespace).items)

    def running(self) -> list[str]:
        """Return the names of both workers once they run."""
        names = lambda: [pod.metadata.name for pod in self.pods() if pod.status.phase == "Running"]  # noqa: E731
        return eventually(lambda: names() if len(names()) == 2 else [])

    def is_clean(self) -> bool:
        return eventually(lambda: not self.jobs() and not self.pods() and not self.core.list_namespaced_service(self.namespace).items)


def operator(kubelet: Any, spec: Any, job_spec: JobSpec, kind: type[TrainModelJobOperator] = Scripted, **settings: Any) -> TrainModelJobOperator:
    config = str(kubelet.cluster.kubeconfig)
    connection = {"config_file": config, "kubernetes_conn_id": None, "in_cluster": False}
    return kind(task_id="t", spec=spec, job_spec=job_spec, poll_seconds=0.2, **connection, **settings)


@pytest.fixture
def site(scripted: ModuleType, workspace: Path, ledger: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FakeApi(tmp_path) as fake, fake.client() as api, fake.namespace() as namespace:
        with Kubelet(fake) as kubelet, PlayedJobs(fake):
            kubelet._env |= {"PYTHONPATH": os.environ["PYTHONPATH"], "PYTHONUNBUFFERED": "1"}  # as the stages' images have it
            kubelet.add_node("node")
            yield Site(kubelet, api, namespace, scripted)


def awaited(task: TrainModelJobOperator) -> Any:
    """Return the event of the trigger to which a task defers, made again from its fields as the triggerer does."""
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context())
    trigger = deferred.value.trigger
    path, fields = trigger.serialize()
    assert path.endswith("TrainingJobTrigger")

    async def first_event() -> Any:
        return (await anext(type(trigger)(**fields).run())).payload

    return asyncio.run(first_event())


@pytest.mark.parametrize("deferrable", [False, True])
def test_the_chief_s_record_is_the_answer_and_nothing_is_left(site: Site, deferrable: bool) -> None:
    task = site.operator("leave_file", deferrable=deferrable)
    answer = site.operator("leave_file", deferrable=True).execute_complete(context(), awaited(task)) if deferrable else task.execute(context())
    assert answer["stage"] == "scripted"
    assert Path(answer["uri"]).parent.name == "job-1-worker-0"
    assert Path(answer["uri"].replace("worker-0", "worker-1")).exists()
    assert site.is_clean()


def test_a_worker_that_was_evicted_is_replaced(site: Site, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as beside:
        done = beside.submit(site.operator("talk", str(tmp_path / "go")).execute, context())
        taken = site.running()[1]
        site.kubelet.pod(site.namespace, taken).evict("Evicted", "the node was low on memory")
        eventually(lambda: len([name for name in site.running() if name != taken]) == 2)
        assert len(site.jobs()) == 1
        (tmp_path / "go").touch()
        assert done.result()["stage"] == "scripted"
    assert site.is_clean()


def test_a_job_that_was_deleted_is_followed_by_another_in_the_same_try(site: Site, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as beside:
        done = beside.submit(site.operator("talk", str(tmp_path / "go")).execute, context())
        site.running()
        (first,) = site.jobs()
        site.batch.delete_namespaced_job(first.metadata.name, site.namespace, propagation_policy="Foreground")
        eventually(lambda: [job for job in site.jobs() if job.metadata.name != first.metadata.name])
        (tmp_path / "go").touch()
        assert "job-2-worker-0" in done.result()["uri"]
    assert site.is_clean()


def test_a_worker_that_is_replaced_when_the_others_are_done_does_not_wait_for_them(site: Site, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as beside:
        done = beside.submit(site.operator("talk", str(tmp_path / "go")).execute, context())
        chief, other = sorted(site.running())
        site.kubelet.pod(site.namespace, other).end("base", 0, "Completed")
        eventually(lambda: [pod for pod in site.pods() if pod.status.phase == "Succeeded"])
        time.sleep(1.1)  # Kubernetes' times are whole seconds
        site.kubelet.pod(site.namespace, chief).evict("Evicted", "the node was low on memory")
        eventually(lambda: {pod.metadata.labels["job-name"] for pod in site.pods() if pod.status.phase == "Running"} - {chief[:-4]})
        (tmp_path / "go").touch()
        assert "job-2-worker-0" in done.result()["uri"]
    assert site.is_clean()


@pytest.mark.parametrize(("action", "words"), [("leave_silently", "left no result record"), ("kill_itself", "exit code")])
def test_a_program_that_leaves_no_record_fails_the_task_at_once(site: Site, action: str, words: str) -> None:
    with pytest.raises(AirflowFailException, match=words):
        site.operator(action).execute(context())
    assert site.is_clean()


def test_a_worker_whose_program_fails_is_the_reason_and_not_the_others_that_are_stopped_then(site: Site, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as beside:
        done = beside.submit(site.operator("talk", str(tmp_path / "never")).execute, context())
        site.kubelet.pod(site.namespace, sorted(site.running())[1]).end("base", 1, "Error")
        with pytest.raises(AirflowFailException, match="exit code 1 and left no result record"):
            done.result()
    assert site.is_clean()


@pytest.mark.parametrize(("code", "reason", "words"), [(1, "Error", "exit code 1 and left"), (137, "OOMKilled", "more memory than its pod may have")])
def test_a_chief_that_lost_a_worker_is_not_the_reason_either(site: Site, tmp_path: Path, workspace: Path, code: int, reason: str, words: str) -> None:
    task = site.operator("talk", str(tmp_path / "never"))
    with ThreadPoolExecutor() as beside:
        done = beside.submit(task.execute, context())
        _, other = sorted(site.running())
        (spec,) = workspace.rglob("job-1/spec.json")
        record = Record(SCHEMA_VERSION, "scripted", spec_digest(task.spec), error=StageFailure.of(WorkerLost("another worker is gone")))
        write_atomically(spec.parent.with_name("job-1-worker-0") / "result.json", canonical_json(to_data(record)))
        site.kubelet.pod(site.namespace, other).end("base", code, reason)
        with pytest.raises(AirflowFailException, match=words):
            done.result()
    assert site.is_clean()


def test_a_secret_that_is_to_be_mounted_and_is_missing_fails_the_training_with_kubernetes_words(site: Site, workspace: Path) -> None:
    exchange = {"exchange": f"file://{workspace.parent}/exchange", "exchange_secret": "nothing"}
    pod = PodSpec("stages", site.namespace, cpu="100m", memory="64Mi", start_seconds=3, **exchange)
    with pytest.raises(AirflowFailException, match=r'cannot be made: MountVolume.SetUp failed: secret "nothing" not found. Create it, or correct'):
        operator(site.kubelet, site.scripted.Spec("leave_file"), JobSpec(pod)).execute(context())
    assert site.is_clean()


def test_a_worker_that_died_finds_its_job_again_and_makes_no_second_one(site: Site, tmp_path: Path) -> None:
    first, second = (site.operator("talk", str(tmp_path / "go")) for _ in range(2))
    first._prepare(context()).create(first._objects)  # and then the worker is killed
    (made,) = site.jobs()
    with ThreadPoolExecutor() as beside:
        done = beside.submit(second.execute, context())
        site.running()
        assert [job.metadata.uid for job in site.jobs()] == [made.metadata.uid]
        (tmp_path / "go").touch()
        assert done.result()["stage"] == "scripted"


def test_a_worker_that_died_over_a_failed_program_leaves_its_failure_and_nothing_runs_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    class Died(BaseException):
        pass

    delete = TrainingJob.delete

    def die(job: TrainingJob) -> None:
        delete(job)
        raise Died

    with monkeypatch.context() as dying:
        dying.setattr(TrainingJob, "delete", die)
        with pytest.raises(Died):
            site.operator("leave_silently").execute(context())
    again = site.operator("leave_silently")
    monkeypatch.setattr(TrainingJob, "create", lambda *_: pytest.fail("the program was run again"))
    with pytest.raises(AirflowFailException, match="left no result"):
        again.execute(context())
    assert site.is_clean()


def test_a_task_that_is_killed_takes_its_job_and_service_with_it(site: Site, tmp_path: Path) -> None:
    task = site.operator("talk", str(tmp_path / "never"))
    task._prepare(context()).create(task._objects)
    site.running()
    task.on_kill()
    assert site.is_clean()


def test_a_deferred_training_ends_with_its_execution_timeout_and_holds_nothing(site: Site, tmp_path: Path) -> None:
    task = lambda: site.operator("talk", str(tmp_path / "never"), deferrable=True, execution_timeout=timedelta(seconds=1))  # noqa: E731
    event = awaited(task())
    assert len(site.jobs()) == 1
    with pytest.raises(AirflowFailException, match="did not end within execution_timeout, 0:00:01"):
        task().execute_complete(context(), event)
    assert site.is_clean()


def test_a_job_in_a_queue_waits_until_it_is_let_go(site: Site) -> None:
    with ThreadPoolExecutor() as beside:
        done = beside.submit(site.operator("leave_file", queue="gpus").execute, context())
        (job,) = eventually(site.jobs)
        assert (job.spec.suspend, job.metadata.labels) == (True, {"kueue.x-k8s.io/queue-name": "gpus"})
        assert (site.pods(), done.done()) == ([], False)
        site.batch.patch_namespaced_job(job.metadata.name, site.namespace, {"spec": {"suspend": False}})  # as Kueue does
        assert done.result()["stage"] == "scripted"


@pytest.mark.kubernetes
def test_a_cluster_that_is_too_old_is_told_so_and_nothing_is_left(
    control_plane: ControlPlane, api: client.ApiClient, namespace: str, scripted: ModuleType, workspace: Path, ledger: Store
) -> None:
    class Old:
        cluster = control_plane

    with pytest.raises(AirflowFailException, match=r"drops spec.completionMode.*Job.*needs Kubernetes 1\.24"):
        operator(Old, scripted.Spec("leave_file"), JobSpec(PodSpec("stages", namespace))).execute(context())
    batch, core = client.BatchV1Api(api), client.CoreV1Api(api)
    eventually(lambda: not batch.list_namespaced_job(namespace).items)
    assert core.list_namespaced_service(namespace).items == []
