"""The log and the progress of a pod while its task is deferred: every line once, by whoever tells it, and before the pod has ended."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from kubernetes import client

from airflow_mlops.ledger.store import Store
from airflow_mlops.operators.pod import StagePodOperator
from airflow_mlops.stages import told
from airflow_mlops.triggers.pod import StagePodTrigger
from tests.fakes import FakeTaskInstance
from tests.kubernetes.control_plane import eventually
from tests.kubernetes.fake_api import FakeApi, Fault, Request
from tests.kubernetes.kubelet import Kubelet
from tests.kubernetes.test_stage_pod import Site, context
from tests.kubernetes.triggerer import Triggerer


@pytest.fixture(params=["fake", pytest.param("control_plane", marks=pytest.mark.kubernetes)])
def site(
    request: pytest.FixtureRequest, scripted: ModuleType, workspace: Path, ledger: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    """A namespace with one node, on the fake API server and on a real one."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fake = FakeApi(tmp_path) if request.param == "fake" else None
    with fake or nullcontext():
        cluster = fake or request.getfixturevalue("control_plane")
        with cluster.client() as api, cluster.namespace() as namespace, Kubelet(cluster) as kubelet:
            kubelet._env |= {"PYTHONPATH": os.environ["PYTHONPATH"], "PYTHONUNBUFFERED": "1"}  # as images have it
            kubelet.add_node("node")
            yield Site(kubelet, client.CoreV1Api(api), namespace, scripted, workspace)


class Heard(logging.Handler):
    """The lines that triggerer and worker told, each with who told it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []
        self.hold_at = ""  # a line: who tells it goes on when `go_on` is set
        self.go_on = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.name, record.getMessage()))
        if self.hold_at == record.getMessage():
            self.go_on.wait(60)

    def told(self, begins: str, by: str = "") -> list[str]:
        return [line for who, line in self.lines if line.startswith(begins) and by in who]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    handler = Heard()
    for kind, name in ((StagePodOperator, "worker"), (StagePodTrigger, "triggerer")):
        log = logging.Logger(name, logging.INFO)
        log.addHandler(handler)
        monkeypatch.setattr(kind, "log", log)
    return handler


def deferred(operator: StagePodOperator, ti: FakeTaskInstance | None = None) -> StagePodTrigger:
    """Let a task wait for its pod, and return the trigger as a triggerer makes it."""
    with pytest.raises(TaskDeferred) as raised:
        operator.execute(context(ti=ti))
    return again(raised.value.trigger)


def again(trigger: Any, **changes: Any) -> StagePodTrigger:
    """Return the trigger as another triggerer makes it."""
    path, fields = trigger.serialize()
    assert path == "airflow_mlops.triggers.pod.StagePodTrigger"
    return StagePodTrigger(**{**fields, **changes})


@pytest.fixture
def started() -> Iterator[Callable[[StagePodTrigger], Triggerer]]:
    with ThreadPoolExecutor() as pool:
        yield lambda trigger: Triggerer(trigger, pool)


Start = Callable[[StagePodTrigger], Triggerer]


def test_a_line_is_told_while_the_pod_goes_on_and_no_line_twice(site: Site, heard: Heard, started: Start) -> None:
    go = site.workspace / "go"
    triggerer = started(deferred(site.operator("talk", str(go), deferrable=True)))
    eventually(lambda: heard.told("first", "triggerer"))
    assert not triggerer.event.done()
    go.touch()
    site.operator("talk", str(go), deferrable=True).trigger_reentry(context(), triggerer.event.result())
    assert (heard.told("first"), heard.told("second")) == (["first"], ["second"])


def test_the_page_is_there_before_the_pod_and_grows_while_the_task_is_deferred(site: Site, heard: Heard, started: Start) -> None:
    ti, go = FakeTaskInstance(task_id="t"), site.workspace / "go"
    trigger = deferred(site.operator("talk_of_progress", str(go), deferrable=True), ti)
    (page,) = site.workspace.rglob("progress.html")
    assert ti.pushed["report_url"].endswith("pod-1/progress.html")
    assert "Nothing was told of its progress" in page.read_text() and "refresh" in page.read_text()
    triggerer = started(trigger)
    eventually(lambda: "Epoch 1 of 3" in page.read_text())
    assert heard.told("Epoch 1 of 3", "triggerer") and not triggerer.event.done()
    go.touch()
    site.operator("talk_of_progress", str(go), deferrable=True).trigger_reentry(context(ti=ti), triggerer.event.result())
    assert "Epoch 3 of 3" in page.read_text() and "From 0.3333 to 1." in page.read_text() and "refresh" not in page.read_text()
    assert len(heard.told("Epoch")) == 3


def test_the_triggerer_that_follows_one_that_is_gone_goes_on_after_its_last_line(site: Site, heard: Heard, started: Start) -> None:
    go = site.workspace / "go"
    trigger = deferred(site.operator("talk_of_progress", str(go), deferrable=True))
    first = started(trigger)
    (page,) = site.workspace.rglob("progress.html")
    eventually(lambda: "Epoch 1 of 3" in page.read_text() and list(site.workspace.rglob("told-*.json")))
    first.stop(heard.go_on)
    second = started(again(trigger))
    go.touch()
    event = second.event.result()
    assert "From 0.3333 to 1." in page.read_text(), "what the first one saw is on the page, too"
    site.operator("talk_of_progress", str(go), deferrable=True).trigger_reentry(context(), event)
    assert [line[:7] for line in heard.told("Epoch")] == ["Epoch 1", "Epoch 2", "Epoch 3"]


def test_a_look_that_goes_on_while_its_triggerer_is_stopped_leaves_the_rest_to_the_next_one(site: Site, heard: Heard, started: Start) -> None:
    trigger = deferred(site.operator("tell_lines", number=300, deferrable=True))
    heard.hold_at = "numbered 10"
    first = started(trigger)
    eventually(lambda: heard.told("numbered 10"))
    first.stop(heard.go_on)
    assert len(heard.told("numbered")) == 11
    started(again(trigger)).event.result()
    assert heard.told("numbered") == [f"numbered {number}" for number in range(300)]


def test_a_note_that_nobody_understands_is_none(site: Site, heard: Heard, started: Start) -> None:
    go = site.workspace / "go"
    trigger = deferred(site.operator("talk", str(go), deferrable=True))
    first = started(trigger)
    (note,) = eventually(lambda: list(site.workspace.rglob("told-*.json")))
    first.stop(heard.go_on)
    note.write_text('{"position": 7}')
    second = started(again(trigger))
    eventually(lambda: len(heard.told("first")) == 2)
    go.touch()
    assert second.event.result()["status"] == "success"


def test_where_triggerer_and_worker_share_no_directory_no_line_is_told_twice_either(site: Site, heard: Heard, started: Start, tmp_path: Path) -> None:
    go = site.workspace / "go"
    ti = FakeTaskInstance(task_id="t")
    trigger = deferred(site.operator("talk_of_progress", str(go), deferrable=True), ti)
    triggerer = started(again(trigger, directory=str(tmp_path / "elsewhere")))
    eventually(lambda: heard.told("Epoch 1", "triggerer"))
    go.touch()
    site.operator("talk_of_progress", str(go), deferrable=True).trigger_reentry(context(ti=ti), triggerer.event.result())
    assert [line[:7] for line in heard.told("Epoch")] == ["Epoch 1", "Epoch 2", "Epoch 3"]
    (page,) = site.workspace.rglob("progress.html")
    assert "From 0.3333 to 1." in page.read_text() and not (tmp_path / "elsewhere").exists()


def test_a_triggerer_that_may_not_read_logs_says_so_once_and_waits_all_the_same(site: Site, heard: Heard, started: Start) -> None:
    if not isinstance(site.kubelet.cluster, FakeApi):
        pytest.skip("test_role.py asks the real one")
    site.kubelet.cluster.before = refuse_logs
    trigger = deferred(site.operator("tell_lines", text="0.4", number=600, deferrable=True))
    event = started(trigger).event.result()
    assert event["status"] == "success"
    (warning,) = heard.told("The log of pod", "triggerer")
    assert "is not told while it runs: Kubernetes refused: 403" in warning
    with pytest.raises(AirflowFailException, match="Kubernetes refused: 403"):
        site.operator("tell_lines", text="0.4", number=600, deferrable=True).trigger_reentry(context(), event)


def refuse_logs(request: Request) -> Fault | None:
    return Fault(403) if request.part == "log" else None


def test_one_look_reads_only_for_its_time_and_the_next_one_goes_on(site: Site, heard: Heard, started: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told, "LOOK_SECONDS", 0.0)
    trigger = deferred(site.operator("tell_lines", text="0.5", number=300, deferrable=True))
    event = started(trigger).event.result()
    looks = len(heard.told("numbered"))
    assert 1 < looks < 20, "one line for each look"
    site.operator("tell_lines", text="0.5", number=300, deferrable=True).trigger_reentry(context(), event)
    assert heard.told("numbered") == [f"numbered {number}" for number in range(300)]


def test_the_log_of_a_pod_that_another_one_follows_is_told_again_by_the_worker(site: Site, heard: Heard, started: Start) -> None:
    """Airflow's triggerer begins its file of a try anew when the task is deferred again."""
    go = site.workspace / "go"
    triggerer = started(deferred(site.operator("talk_of_progress", str(go), deferrable=True)))
    eventually(lambda: heard.told("first", "triggerer"))
    site.kubelet.pod(site.namespace, site.running()).evict("Evicted", "The node was low on resource: memory.")
    event = triggerer.event.result()
    with pytest.raises(TaskDeferred):
        site.operator("talk_of_progress", str(go), deferrable=True).trigger_reentry(context(), event)
    assert heard.told("first", "worker") == ["first"] and heard.told("Epoch 1 of 3", "worker"), "progress as a sentence, here too"
    assert "again from its beginning" in heard.told("The log of pod", "worker")[0]
