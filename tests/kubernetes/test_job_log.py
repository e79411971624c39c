"""The log and the progress of a training by several pods: worker 0's lines, each once, by whoever tells them, and before it has ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from kubernetes import client
from urllib3.exceptions import ProtocolError

from airflow_mlops.hooks.container_log import ContainerLog
from airflow_mlops.operators.job import TrainModelJobOperator
from airflow_mlops.stages import told
from airflow_mlops.stages.chief import INDEX_ANNOTATION
from airflow_mlops.stages.job import BACKENDS
from airflow_mlops.triggers.job import TrainingJobTrigger
from tests import fakes
from tests.fakes import FakeTaskInstance
from tests.kubernetes.control_plane import eventually
from tests.kubernetes.fake_api import FakeApi, Fault, Request
from tests.kubernetes.test_job import Site, site
from tests.kubernetes.triggerer import Triggerer

__all__ = ["site"]
pytestmark = pytest.mark.kubernetes  # for the time that they take
NUM_LINES = 1000


class Heard(logging.Handler):
    """The lines that worker and triggerer told, each with who told it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.name, record.getMessage()))

    def told(self, begins: str, by: str = "") -> list[str]:
        return [line for who, line in self.lines if line.startswith(begins) and by in who]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    handler = Heard()
    for kind, name in ((TrainModelJobOperator, "worker"), (TrainingJobTrigger, "triggerer")):
        log = logging.Logger(name, logging.INFO)
        log.addHandler(handler)
        monkeypatch.setattr(kind, "log", log)
    return handler


class Task:
    """One task, deferred or not, whose worker and triggerers run beside the test."""

    def __init__(self, site: Site, pool: ThreadPoolExecutor, *scripted: Any, deferrable: bool, **job: Any) -> None:
        self._site, self._pool, self._scripted, self._deferrable, self._job = site, pool, scripted, deferrable, job
        self.ti = FakeTaskInstance(task_id="t")
        self.context = fakes.context(self.ti, run_id=self.ti.run_id)

    def operator(self) -> TrainModelJobOperator:
        return self._site.operator(*self._scripted, deferrable=self._deferrable, **self._job)

    def start(self) -> Future[Any]:
        """Run the task, to its end or until the trigger that it defers to has an event."""
        if not self._deferrable:
            return self._pool.submit(self.operator().execute, self.context)
        return self.triggerer(self.deferred()).event

    def end(self, started: Future[Any]) -> dict[str, Any]:
        """Return what the task returns."""
        return dict(self.operator().execute_complete(self.context, started.result()) if self._deferrable else started.result())

    def deferred(self) -> TrainingJobTrigger:
        with pytest.raises(TaskDeferred) as raised:
            self.operator().execute(self.context)
        trigger = raised.value.trigger
        assert isinstance(trigger, TrainingJobTrigger)
        return trigger

    def triggerer(self, trigger: TrainingJobTrigger, **changes: Any) -> Triggerer:
        """Run the trigger as a triggerer does that makes it again from its fields."""
        return Triggerer(type(trigger)(**{**trigger.serialize()[1], **changes}), self._pool)


Make = Callable[..., Task]


@pytest.fixture(params=[False, True], ids=["waiting", "deferred"])
def task(site: Site, request: pytest.FixtureRequest) -> Iterator[Make]:
    with ThreadPoolExecutor() as pool:
        yield lambda *scripted, **job: Task(site, pool, *scripted, deferrable=request.param, **job)


@pytest.fixture
def deferred(site: Site) -> Iterator[Make]:
    with ThreadPoolExecutor() as pool:
        yield lambda *scripted: Task(site, pool, *scripted, deferrable=True)


def test_a_line_of_worker_0_is_told_while_it_works_and_no_line_twice_and_none_of_the_others(task: Make, heard: Heard, tmp_path: Path) -> None:
    one = task("talk", str(tmp_path / "go"))
    started = one.start()
    eventually(lambda: heard.told("first"))
    assert not started.done()
    (tmp_path / "go").touch()
    one.end(started)
    assert (heard.told("first"), heard.told("second")) == (["first"], ["second"])


def test_the_page_grows_while_the_training_goes_on_and_the_task_links_to_it(task: Make, heard: Heard, workspace: Path, tmp_path: Path) -> None:
    one = task("talk_of_progress", str(tmp_path / "go"))
    started = one.start()
    (page,) = eventually(lambda: [path for path in workspace.rglob("progress.html") if "Epoch 1 of 3" in path.read_text()])
    assert one.ti.pushed["report_url"].endswith("job-1/progress.html") and "refresh" in page.read_text()
    (tmp_path / "go").touch()
    one.end(started)
    assert "Epoch 3 of 3" in page.read_text() and "From 0.3333 to 1." in page.read_text() and "refresh" not in page.read_text()
    assert [line[:12] for line in heard.told("Epoch")] == ["Epoch 1 of 3", "Epoch 2 of 3", "Epoch 3 of 3"]


def test_the_log_of_a_pod_that_takes_worker_0_s_place_is_told_from_its_beginning(task: Make, site: Site, heard: Heard, tmp_path: Path) -> None:
    one = task("talk", str(tmp_path / "go"))
    started = one.start()
    eventually(lambda: heard.told("first"))
    (taken,) = [name for name in site.running() if "-0-" in name]
    site.kubelet.pod(site.namespace, taken).evict("Evicted", "the node was low on memory")
    eventually(lambda: len(heard.told("first")) == 2)
    (tmp_path / "go").touch()
    one.end(started)
    assert (len(heard.told("first")), len(heard.told("second")), site.jobs()) == (2, 1, [])


def test_where_connections_break_every_line_is_told_once(task: Make, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    one = task("tell_lines", "0.1", NUM_LINES)
    with breaking(monkeypatch) as broken:
        one.end(one.start())
    assert heard.told("numbered") == [f"numbered {number}" for number in range(NUM_LINES)]
    assert len(broken) == 3


@contextmanager
def breaking(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Break the first three connections in the middle of a line; yield what grows with each."""
    whole, broken = ContainerLog._chunks, list[int]()

    def torn(self: ContainerLog, *, follow: bool) -> Iterator[bytes]:
        for chunk in whole(self, follow=follow):
            if len(broken) < 3:
                broken.append(1)
                yield chunk[: len(chunk) // 2 + 1]
                raise ProtocolError("Connection broken")
            yield chunk

    with monkeypatch.context() as patch:
        patch.setattr(ContainerLog, "_chunks", torn)
        yield broken


def test_whoever_may_not_read_logs_is_told_so_once_and_the_training_goes_on(task: Make, site: Site, heard: Heard) -> None:
    fake = site.kubelet.cluster
    assert isinstance(fake, FakeApi)
    fake.before = refuse_logs
    one = task("tell_lines", "0.4", 300)
    assert one.end(one.start())["stage"] == "scripted"
    warnings = heard.told("The log of worker 0 is not told, the training goes on all the same: Kubernetes refused: 403")
    assert 1 <= len(warnings) <= 2, "one of each process"
    assert len({who for who, line in heard.lines if line in warnings}) == len(warnings)


def refuse_logs(request: Request) -> Fault | None:
    return Fault(403) if request.part == "log" else None


def test_the_triggerer_that_follows_one_that_is_gone_goes_on_after_its_last_line(
    deferred: Make, heard: Heard, workspace: Path, tmp_path: Path
) -> None:
    one = deferred("talk_of_progress", str(tmp_path / "go"))
    trigger = one.deferred()
    first = one.triggerer(trigger)
    eventually(lambda: list(workspace.rglob("told-*.json")))
    first.stop()
    second = one.triggerer(trigger)
    (tmp_path / "go").touch()
    one.end(second.event)
    (page,) = workspace.rglob("progress.html")
    assert "From 0.3333 to 1." in page.read_text(), "what the first one saw is on the page, too"
    assert [line[:7] for line in heard.told("Epoch")] == ["Epoch 1", "Epoch 2", "Epoch 3"]


def test_where_triggerer_and_worker_share_no_directory_no_line_is_told_twice_either(
    deferred: Make, heard: Heard, workspace: Path, tmp_path: Path
) -> None:
    one = deferred("talk_of_progress", str(tmp_path / "go"))
    triggerer = one.triggerer(one.deferred(), note=str(tmp_path / "elsewhere" / "told-1.json"))
    eventually(lambda: heard.told("Epoch 1", "triggerer"))
    (tmp_path / "go").touch()
    one.end(triggerer.event)
    assert [line[:7] for line in heard.told("Epoch")] == ["Epoch 1", "Epoch 2", "Epoch 3"]
    (page,) = workspace.rglob("progress.html")
    assert "From 0.3333 to 1." in page.read_text() and not (tmp_path / "elsewhere").exists()


def test_one_look_reads_only_for_its_time_and_the_next_one_goes_on(deferred: Make, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told, "LOOK_SECONDS", 0.0)
    one = deferred("tell_lines", "0.5", 300)
    started = one.start()
    started.result()
    assert 1 < len(heard.told("numbered")) < 20, "one line for each look"
    one.end(started)
    assert heard.told("numbered") == [f"numbered {number}" for number in range(300)]


def test_the_log_of_a_job_that_another_one_follows_is_told_again_by_the_worker(deferred: Make, site: Site, heard: Heard, tmp_path: Path) -> None:
    """Airflow's triggerer begins its file of a try anew when the task is deferred again."""
    one = deferred("talk", str(tmp_path / "go"))
    started = one.start()
    eventually(lambda: heard.told("first", "triggerer"))
    (chief,) = [name for name in site.running() if "-0-" in name]
    site.kubelet.pod(site.namespace, chief).end("base", 143, "Error")  # it was told to stop
    with pytest.raises(TaskDeferred):
        one.end(started)
    assert heard.told("first", "worker") == ["first"]
    assert "again from its beginning" in heard.told("The log of worker 0 of job", "worker")[0]


class PlayedTrainer:
    """Kubeflow's Trainer for the one TrainJob that a test makes: its JobSet's pods, with their labels, and a condition at the end."""

    def __init__(self, site: Site) -> None:
        self._site, self._objects = site, client.CustomObjectsApi(site.core.api_client)
        where = (*BACKENDS["trainjob"].place[:2], site.namespace, BACKENDS["trainjob"].place.plural)
        (self._job,) = eventually(lambda: self._objects.list_namespaced_custom_object(*where)["items"])
        self._where, self.name = where, self._job["metadata"]["name"]
        for index in range(self._job["spec"]["trainer"]["numNodes"]):
            site.core.create_namespaced_pod(site.namespace, self._pod(index))

    def _pod(self, index: int) -> dict[str, Any]:
        trainer = self._job["spec"]["trainer"]
        env = [{"name": one["name"], "value": one.get("value", str(index))} for one in trainer["env"]]
        owner = {"apiVersion": "v1", "kind": "TrainJob", "name": self.name, "uid": self._job["metadata"]["uid"]}
        about = {
            "name": f"{self.name}-node-0-{index}",
            "labels": {"jobset.sigs.k8s.io/jobset-name": self.name, "jobset.sigs.k8s.io/replicatedjob-name": "node"},
            "annotations": {INDEX_ANNOTATION: str(index)},
            "ownerReferences": [owner],
        }
        container = {"name": "node", "image": trainer["image"], "command": trainer["command"], "env": env}
        return {"metadata": about, "spec": {"restartPolicy": "Never", "containers": [container]}}

    def end(self, condition: str, *phases: str) -> None:
        """Say how it ended, once worker 0 and the others have ended in these phases."""
        pods = lambda: {pod.metadata.name: pod.status.phase for pod in self._site.pods()}  # noqa: E731
        eventually(lambda: [phase for _, phase in sorted(pods().items())] == [*phases])
        status = {"status": {"conditions": [{"type": condition, "status": "True"}]}}
        self._objects.patch_namespaced_custom_object(*self._where, self.name, status)


TRAINER = {"backend": "trainjob", "runtime": "tensorflow"}


def test_the_log_of_a_train_job_s_worker_0_is_told_too(task: Make, site: Site, heard: Heard, tmp_path: Path) -> None:
    one = task("talk", str(tmp_path / "go"), **TRAINER)
    started = one.start()
    trainer = PlayedTrainer(site)
    eventually(lambda: heard.told("first"))
    (tmp_path / "go").touch()
    trainer.end("Complete", "Succeeded", "Succeeded")
    one.end(started)
    assert (heard.told("first"), heard.told("second")) == (["first"], ["second"])


def test_a_train_job_whose_worker_had_too_little_memory_says_so(task: Make, site: Site, tmp_path: Path) -> None:
    one = task("talk", str(tmp_path / "go"), **TRAINER)
    started = one.start()
    trainer = PlayedTrainer(site)
    site.running()
    site.kubelet.pod(site.namespace, f"{trainer.name}-node-0-0").end("node", 137, "OOMKilled")
    (tmp_path / "go").touch()
    trainer.end("Failed", "Failed", "Succeeded")
    with pytest.raises(AirflowFailException, match="more memory than its pod may have"):
        one.end(started)
