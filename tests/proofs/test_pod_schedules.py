"""Two thousand schedules of faults around a stage's pod, and the same ones with Airflow's own pod operator, for comparison.

``AIRFLOW_MLOPS_SCHEDULES`` says how many others are wanted. With ``-s`` the figures are printed, after every hundred schedules and in the end.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from kubernetes.client import V1ResourceRequirements

from airflow_mlops.artifacts import canonical_json, write_atomically
from tests.kubernetes.schedules import Counts, Make, Schedule, World, drawn
from tests.kubernetes.test_pod_schedules import Play, player, stage

__all__ = ["player"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
NUMBER = int(os.environ.get("AIRFLOW_MLOPS_SCHEDULES", "2000"))


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Say nothing of two thousand times that something went wrong."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def plain(directory: Path) -> Callable[[World], KubernetesPodOperator]:
    """Return Airflow's own operator as a careful user sets it: durable, its log followed, the pod deleted when it ended, two retries."""

    def make(world: World) -> KubernetesPodOperator:
        home = directory / world.namespace
        spec, record = home / "spec.json", home / "result.json"
        write_atomically(spec, canonical_json({"action": "leave_file"}))
        return KubernetesPodOperator(
            task_id="t",
            name="train",
            namespace=world.namespace,
            image="stages",
            cmds=["python", "-m", "airflow_mlops", "stage", "scripted", "--spec", str(spec), "--result", str(record)],
            container_resources=V1ResourceRequirements(requests={"cpu": "100m", "memory": "64Mi"}, limits={"memory": "64Mi"}),
            config_file=str(world.api.kubeconfig),
            kubernetes_conn_id=None,
            in_cluster=False,
            deferrable=world.schedule.deferrable,
            poll_interval=0,
            startup_check_interval_seconds=0,
            log_events_on_startup=False,
            log_pod_spec_on_failure=False,
        )

    return make


def total(ended: list[tuple[Schedule, Counts]]) -> Counter[str]:
    """Return in how many schedules each figure was not 0."""
    return Counter(name for _, counts in ended for name, count in vars(counts).items() if count)


def played(player: Play, make: Make, name: str) -> list[tuple[Schedule, Counts]]:
    """Play them all, and tell the figures meanwhile."""
    ended: list[tuple[Schedule, Counts]] = []
    for schedule in drawn(NUMBER):
        ended.append((schedule, player(schedule, make)))
        if len(ended) % 100 == 0:
            print(f"\n{len(ended)} schedules, {name}: {dict(total(ended))}", flush=True)
    print(f"\nAll {len(ended)} schedules, {name}: {dict(total(ended))}", flush=True)
    return ended


def test_no_schedule_breaks_a_promise(player: Play) -> None:
    ended = played(player, stage, "StagePodOperator")
    assert [(schedule, counts.broken()) for schedule, counts in ended if counts.broken()] == []


def test_the_same_schedules_break_the_plain_operator(player: Play, tmp_path: Path) -> None:
    ended = played(player, plain(tmp_path), "KubernetesPodOperator")
    assert total(ended)["silent_successes"] and total(ended)["lost_runs"], "a comparison that finds no difference compares nothing"
