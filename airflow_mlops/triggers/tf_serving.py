"""Wait until every replica of a model server serves a version, or for the reason why it will not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_mlops.exceptions import MlopsError
from airflow_mlops.hooks.tf_serving import TFServingHook

if TYPE_CHECKING:
    from airflow_mlops.serving.availability import Action, Fail
    from airflow_mlops.serving.fleet import ServingFleet


class TFServingRolloutTrigger(BaseTrigger):
    """Yields ``{"plan": ..., "reason": None}`` when the version can be verified, or with the reason why it failed.

    :param plan: fields of `airflow_mlops.serving.rollout.Plan`.
    :param poll_interval_seconds: 0.5: a small model loads in about a second, and a look costs a millisecond.
    """

    def __init__(self, plan: dict[str, Any], tf_serving_conn_id: str, poll_interval_seconds: float = 0.5) -> None:
        super().__init__()
        self.plan = plan
        self.tf_serving_conn_id = tf_serving_conn_id
        self.poll_interval_seconds = poll_interval_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("plan", "tf_serving_conn_id", "poll_interval_seconds")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        def look(fleet: ServingFleet) -> Action:
            from airflow_mlops.serving import rollout  # in a thread, for it brings gRPC along

            plan = rollout.Plan(**self.plan)
            return rollout.decide(plan, rollout.observe(fleet, plan), time.time())

        failure = await _outcome(self.tf_serving_conn_id, look, self.plan["deadline"], self.poll_interval_seconds)
        yield TriggerEvent({"plan": self.plan, "reason": failure.reason if failure else None})


class TFServingModelAvailableTrigger(BaseTrigger):
    """Yields ``{"reason": None, "timed_out": False}`` when a version is AVAILABLE on every replica, or with the reason why it is not.

    :param model: name of the model.
    :param version: its version, a number or the decimal text of one.
    :param deadline: when to give up, in epoch seconds.
    :param poll_interval_seconds: 5: a look costs a millisecond per replica, a model takes seconds to load.
    :param fail_on_load_error: whether to give up when a replica could not load the version.
    """

    def __init__(
        self,
        model: str,
        version: int | str,
        deadline: float,
        tf_serving_conn_id: str = TFServingHook.default_conn_name,
        poll_interval_seconds: float = 5.0,
        fail_on_load_error: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.version = version
        self.deadline = deadline
        self.tf_serving_conn_id = tf_serving_conn_id
        self.poll_interval_seconds = poll_interval_seconds
        self.fail_on_load_error = fail_on_load_error

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("model", "version", "deadline", "tf_serving_conn_id", "poll_interval_seconds", "fail_on_load_error")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        from airflow_mlops.serving.availability import decide, version_number

        def look(fleet: ServingFleet) -> Action:
            version = version_number(self.version)
            return decide(fleet.statuses(self.model), version, time.time(), self.deadline, fail_on_load_error=self.fail_on_load_error)

        failure = await _outcome(self.tf_serving_conn_id, look, self.deadline, self.poll_interval_seconds)
        yield TriggerEvent({"reason": failure.reason if failure else None, "timed_out": bool(failure and failure.timed_out)})


async def _outcome(conn_id: str, look: Callable[[ServingFleet], Action], deadline: float, poll_interval_seconds: float) -> Fail | None:
    """Look until there is nothing to wait for any more, and return what failed; an error is one: only the task can go back or explain it."""
    from airflow_mlops.serving.availability import Fail, Wait

    try:
        with await TFServingHook(conn_id).aget_conn() as fleet:
            while isinstance(action := await asyncio.to_thread(look, fleet), Wait):
                await asyncio.sleep(max(0.0, min(poll_interval_seconds, deadline - time.time())))
    except MlopsError as error:
        return Fail(str(error))
    return action if isinstance(action, Fail) else None
