"""A whole rollout in one process: the steps of `TFServingRolloutOperator` and its trigger, without Airflow."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from airflow_mlops.exceptions import RolloutFailed, ServingError, ServingUnavailable
from airflow_mlops.serving.availability import Fail, Wait
from airflow_mlops.serving.fleet import Replicas
from airflow_mlops.serving.rollout import Plan, begin, decide, observe, revert, switch, verify

T = TypeVar("T")


def roll_out(client: Replicas, plan: Plan, golden: Path, clock: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return when the label serves the new version; raise `RolloutFailed` after going back. A silent server is asked until the deadline."""

    def patiently(step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except ServingUnavailable:
                if clock() >= plan.deadline:
                    raise
                sleep(0.02)

    try:
        patiently(lambda: begin(client, plan))
        while isinstance(action := decide(plan, observe(client, plan), clock()), Wait):
            sleep(0.02)
        if isinstance(action, Fail):
            raise RolloutFailed(action.reason)
        patiently(lambda: verify(client, plan, golden))
        patiently(lambda: switch(client, plan, golden))
    except ServingError as error:
        revert(client, plan, str(error))
