"""Wait for a model version to become AVAILABLE, or for the reason why it will not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_mlops.exceptions import MlopsError
from airflow_mlops.hooks.tf_serving import TFServingHook

if TYPE_CHECKING:
    from airflow_mlops.serving.rollout import Action, Plan


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
        from airflow_mlops.serving import rollout

        try:
            action = await self._decided(rollout.Plan(**self.plan))
        except MlopsError as error:  # a trigger that dies would leave the rollout half done: only the task can go back
            action = rollout.Fail(str(error))
        reason = action.reason if isinstance(action, rollout.Fail) else None
        yield TriggerEvent({"plan": self.plan, "reason": reason})

    async def _decided(self, plan: Plan) -> Action:
        from airflow_mlops.serving import rollout

        with await TFServingHook(self.tf_serving_conn_id).aget_conn() as client:
            while True:
                action = rollout.decide(plan, await asyncio.to_thread(rollout.observe, client, plan), time.time())
                if not isinstance(action, rollout.Wait):
                    return action
                await asyncio.sleep(self.poll_interval_seconds)
