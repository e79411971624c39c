"""Bring a published model version to the clients: load it, prove it, move the label, go back by itself when it does not serve."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_mlops.exceptions import LedgerError, RolloutFailed, ServingError
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.handovers import HandsOver, hand_over, take
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.tf_serving import TFServingHook
from airflow_mlops.hooks.workspace import run_of
from airflow_mlops.triggers.tf_serving import TFServingRolloutTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mlops.serving.fleet import ServingFleet
    from airflow_mlops.serving.rollout import Plan


class TFServingRolloutOperator(BaseOperator, HandsOver):
    """Load a published version beside the serving one, prove its answers, then move the label; on failure the previous version serves on.

    Waits in the triggerer. May be retried or cleared at any point: where to go back to is decided once per run and remembered in the ledger,
    what serves is looked at anew in every try. A version that had the label before keeps it, whatever fails.

    :param model: description of the version, as `PublishSavedModelOperator` returns it.
    :param version_label: version label that clients ask for.
    :param timeout_seconds: how long the version may take to load; 300 covers a model of some gigabytes on a slow disk.
    """

    template_fields: tuple[str, ...] = ("model",)
    ui_color = "#e2f4e4"

    def __init__(
        self,
        *,
        model: Any,
        version_label: str = "stable",
        timeout_seconds: float = 300.0,
        tf_serving_conn_id: str = TFServingHook.default_conn_name,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.version_label = version_label
        self.timeout_seconds = timeout_seconds
        self.tf_serving_conn_id = tf_serving_conn_id
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> Any:
        self._begin(context)

    def _begin(self, context: Context) -> None:
        """Load the version while the serving one stays, and wait in the triggerer."""
        from airflow_mlops.serving import rollout

        with airflow_errors(), TFServingHook(self.tf_serving_conn_id).get_conn() as client:
            self._take(context)
            plan = self._plan(context)
            with _going_back(client, plan, context):
                rollout.begin(client, plan)
            self.log.info("%s version %d is loading beside version %s.", plan.model, plan.version, plan.previous)
        self.defer(
            trigger=TFServingRolloutTrigger(plan=plan._asdict(), tf_serving_conn_id=self.tf_serving_conn_id),
            method_name="execute_complete",
        )

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Verify and switch, or go back: the trigger's `event` says which, with its reason."""
        answer = self._complete(context, event)
        with airflow_errors(), MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            return dict(hand_over(store, context, answer))

    def _complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        from airflow_mlops.serving import rollout

        with airflow_errors(), TFServingHook(self.tf_serving_conn_id).get_conn() as client:
            plan = rollout.Plan(**event["plan"])
            with _going_back(client, plan, context):
                self._take(context)
                if event["reason"]:
                    raise RolloutFailed(event["reason"])
                golden = self._golden()
                rollout.verify(client, plan, golden)
                rollout.switch(client, plan, golden)
                self._remember(plan, context)
        kept = "" if plan.previous in (None, plan.version) else f"; version {plan.previous} stays loaded"
        headline = f"served and offline answers agree; label {plan.label!r} serves version {plan.version}{kept}"
        self.log.info("%s", headline)
        return {**self.model, "previous": plan.previous, "headline": headline}

    def _take(self, context: Context) -> None:
        """Set the model to roll out."""
        with MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            (self.model,) = take(store, context, self.model)

    def _golden(self) -> Path:
        from airflow_mlops.artifacts import file_digest

        path, expected = Path(self.model["golden"]), self.model["golden_digest"]
        found = file_digest(path) if path.is_file() else "no file"
        if found != expected:
            raise RolloutFailed(f"The golden answers {path} changed after publishing: expected {expected}, found {found}. Clear the task 'publish'.")
        return path

    def _plan(self, context: Context) -> Plan:
        from airflow_mlops.ledger.journal import known, once
        from airflow_mlops.serving import rollout

        hook = TFServingHook(self.tf_serving_conn_id)
        config_path, base_path = hook.extra("config_path"), hook.base_path(self.model["name"])
        name, request = self.model["name"], self._request(context)

        def serving_now() -> dict[str, Any]:
            return {"previous": rollout.labelled(Path(config_path), name, self.version_label)}

        # A retry after the label moved must still know where to go back to.
        with MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            previous = once(store, self._key("plan", context), "plan-rollout", request, serving_now)["previous"]
            proven = known(store, self._key("switch", context)) is not None
        deadline = time.time() + self.timeout_seconds
        return rollout.Plan(name, request["version"], previous, base_path, config_path, deadline, self.version_label, proven)

    def _remember(self, plan: Plan, context: Context) -> None:
        """Note in the ledger that the switch was done and seen; it is a record for people and for later tries, never a reason not to look."""
        from airflow_mlops.ledger.chain import Event
        from airflow_mlops.ledger.journal import once

        with MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            done = {"version": plan.version, "previous": plan.previous}
            event = Event("served", f"{plan.model}@{plan.version}", run_of(context), {"label": plan.label, "previous": plan.previous})
            once(store, self._key("switch", context), "switch", self._request(context), lambda: done, event=event)

    def _request(self, context: Context) -> dict[str, Any]:
        return {"model": self.model["name"], "version": self.model["version"], "run": run_of(context)}

    def _key(self, what: str, context: Context) -> str:
        return f"{what}:{self.model['name']}:{self.model['version']}:{self.version_label}:{context['ti'].dag_id}:{context['ti'].run_id}"


@contextlib.contextmanager
def _going_back(client: ServingFleet, plan: Plan, context: Context) -> Iterator[None]:
    """Serve the previous version again when what is inside fails for good: no further try would help, or none is left."""
    from airflow_mlops.serving.rollout import revert

    ti = context["ti"]
    try:
        yield
    except (ServingError, LedgerError) as error:
        if error.retryable and ti.try_number <= ti.max_tries:
            raise
        revert(client, plan, str(error))
