"""Stopping a task stops its pod, which may still save what it has; what else dies and starts again does not touch it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from airflow_mlops.exceptions import StageKilled
from tests.kubernetes.control_plane import eventually
from tests.kubernetes.test_stage_pod import Site, beside, context, site

__all__ = ["beside", "site"]


def saved(workspace: Path) -> list[str]:
    return [path.read_text() for path in workspace.rglob("saved")]


def deferred(site: Site) -> Any:
    """Return the trigger of a task whose pod runs."""
    with pytest.raises(TaskDeferred) as raised:
        site.operator("save_when_told", deferrable=True).execute(context())
    eventually(lambda: list(site.workspace.rglob("ready")))
    return raised.value.trigger


def test_a_killed_task_gives_its_stage_the_time_to_save_and_starts_no_other_pod(site: Site, workspace: Path, beside: Callable[..., Any]) -> None:
    operator = site.operator("save_when_told")
    done = beside(operator.execute, context())
    eventually(lambda: [*workspace.rglob("ready")])
    operator.on_kill()  # as Airflow does for a task that is marked or cleared while it runs, and then lets it go on
    with pytest.raises(StageKilled, match="The task was stopped"):
        done.result()
    eventually(lambda: site.pods() == [])
    assert saved(workspace) == ["checkpoint"]


def test_the_next_try_after_that_is_another_pod(site: Site, workspace: Path, beside: Callable[..., Any]) -> None:
    operator = site.operator("save_when_told")
    done = beside(operator.execute, context())
    eventually(lambda: [*workspace.rglob("ready")])
    operator.on_kill()
    again = beside(site.operator("save_when_told").execute, context(try_number=2))
    with pytest.raises(StageKilled):
        done.result()
    eventually(lambda: len([*workspace.rglob("ready")]) == 2)
    assert len(site.pods()) == 1
    (workspace / "enough").touch()
    assert again.result()["uri"].endswith("pod-2/result.json")


def test_a_task_killed_while_its_pod_is_made_leaves_none(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = site.operator("save_when_told")
    operator._prepare(context())
    made = operator.client.create_namespaced_pod

    def killed_meanwhile(*arguments: Any) -> Any:
        operator.on_kill()
        return made(*arguments)

    monkeypatch.setattr(operator.client, "create_namespaced_pod", killed_meanwhile)
    with pytest.raises(StageKilled, match=r"while pod .* was made"):
        operator.get_or_create_pod(operator.build_pod_request_obj(context()), context())
    eventually(lambda: site.pods() == [])


def test_a_deferred_task_that_is_marked_or_cleared_stops_its_pod_gently(site: Site, workspace: Path) -> None:
    trigger = deferred(site)
    asyncio.run(trigger.on_kill())  # what the triggerer of Airflow 3.3 calls for a person's word alone
    eventually(lambda: site.pods() == [])
    assert saved(workspace) == ["checkpoint"]


def test_a_triggerer_that_ends_leaves_the_pod_alone(site: Site, workspace: Path) -> None:
    trigger = deferred(site)
    asyncio.run(trigger.cleanup())
    (workspace / "enough").touch()  # it can still be finished, by the stage that was there all the time
    answer = site.operator("save_when_told", deferrable=True).trigger_reentry(
        context(), {"status": "success", "name": trigger.pod_name, "namespace": site.namespace}
    )
    assert answer["uri"].endswith("pod-1/result.json") and saved(workspace) == []
