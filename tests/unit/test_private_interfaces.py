"""The private interfaces of Airflow and its providers that this package uses: each fails here when it moves, before a pipeline does.

`setup.cfg` bounds the versions of whoever owns it, to those that were tried.
"""

from __future__ import annotations

import configparser
import inspect
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
OWNERS = ("apache-airflow", "apache-airflow-providers-cncf-kubernetes")


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(inspect.unwrap(function)).parameters if name != "self"]


def test_the_pod_operator_tells_a_log_by_a_method_that_ours_replaces() -> None:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    from airflow_mlops.operators.pod_log import ToldPodOperator

    assert parameters(KubernetesPodOperator._write_logs) == parameters(ToldPodOperator._write_logs) == ["pod", "follow", "since_time"]
    assert "self._write_logs(" in inspect.getsource(KubernetesPodOperator.trigger_reentry)


def test_the_pod_trigger_looks_by_a_method_that_ours_extends() -> None:
    from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger

    from airflow_mlops.triggers.pod import StagePodTrigger

    assert parameters(KubernetesPodTrigger._get_pod) == parameters(StagePodTrigger._get_pod) == []
    for looking in (KubernetesPodTrigger._wait_for_pod_start, KubernetesPodTrigger._wait_for_container_completion):
        assert "await self._get_pod()" in inspect.getsource(looking)


def test_the_pages_ask_airflow_who_may_see_them() -> None:
    from airflow.api_fastapi.core_api import security

    assert callable(security.requires_authenticated())
    assert callable(security.requires_access_dag("GET"))
    assert hasattr(security, "GetUserDep")


def test_triggers_of_assets_share_what_they_watch() -> None:
    from airflow.triggers.base import BaseEventTrigger
    from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer

    from airflow_mlops.triggers.dataset import DatasetVersionTrigger

    assert inspect.isclass(AdvanceItem) and inspect.isclass(SharedStreamProducer)
    for name in ("shared_stream_key", "create_shared_stream_producer", "filter_shared_stream"):
        assert parameters(getattr(BaseEventTrigger, name)) == parameters(getattr(DatasetVersionTrigger, name))


def test_a_task_runs_what_is_given_as_pre_execute_with_its_context() -> None:
    from airflow.sdk.execution_time import task_runner

    from airflow_mlops.hooks.preflight import Preflight
    from airflow_mlops.operators.dataset import ClaimDatasetOperator

    ready = Preflight(("worker",))
    assert ClaimDatasetOperator(task_id="claim", dataset="d", inbox="i", pre_execute=ready)._pre_execute_hook is ready
    assert "task._pre_execute_hook" in inspect.getsource(task_runner._execute_task)


@pytest.mark.parametrize("name", OWNERS)
def test_the_bounds_of_setup_cfg_admit_what_was_tried_and_nothing_newer(name: str) -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    (bounds,) = [one.specifier for one in map(Requirement, parser["options"]["install_requires"].split("\n")[1:]) if one.name == name]
    found = Version(metadata.version(name))
    assert bounds.contains(str(found))
    assert not bounds.contains(f"{found.major}.{found.minor + 1}.0")
