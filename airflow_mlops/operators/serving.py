"""Bring an approved model version to the model server: publish its files, move the label, go back by itself when it does not serve."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_mlops.exceptions import LedgerError, MlopsError, PromotionConflict, RolloutFailed, ServingError
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.hooks.tf_serving import TFServingHook
from airflow_mlops.hooks.workspace import try_directory
from airflow_mlops.triggers.tf_serving import TFServingRolloutTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mlops.registry.base import ModelRegistry
    from airflow_mlops.serving.fleet import ServingFleet
    from airflow_mlops.serving.retention import RetentionPolicy
    from airflow_mlops.serving.rollout import Plan


class PublishSavedModelOperator(BaseOperator):
    """Copy a registered version's SavedModel, verified by its digest, to the model server's base path, and take old versions away.

    The base path is that of the connection: a directory, or the URL of an object store. The server warms the version up on the rows of the golden
    answers. Returns the model's description with ``golden``, the path of the offline answers that the served ones must equal.

    :param model: description of the version, as `MlflowSelectCandidateOperator` returns it.
    :param version_label: version label that clients ask for: the version that has it decides which signatures must stay as they are.
    :param signature_change_allowed: publish a version that clients of the serving one could not ask; only ``True`` allows it, no text does.
    :param keep_versions: how many published versions stay below the base path, at least. What the server's configuration names stays too, and
        so do the version before the serving one and what was not published from here. 3 are the serving one, its way back and a candidate.
    :raises PromotionConflict: the champion changed while the version waited for its approval; nothing was touched.
    """

    template_fields = ("model", "signature_change_allowed")
    ui_color = "#e2f4e4"

    def __init__(
        self,
        *,
        model: Any,
        version_label: str = "stable",
        signature_change_allowed: bool = False,
        keep_versions: int = 3,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        tf_serving_conn_id: str = TFServingHook.default_conn_name,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.version_label = version_label
        self.signature_change_allowed = signature_change_allowed
        self.keep_versions = keep_versions
        self.mlflow_conn_id = mlflow_conn_id
        self.tf_serving_conn_id = tf_serving_conn_id
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_mlops.artifacts import Artifact
        from airflow_mlops.serving.retention import RetentionPolicy

        with airflow_errors():
            name, version = self.model["name"], int(self.model["version"])
            policy = RetentionPolicy(self.keep_versions)
            registry = MlflowHook(self.mlflow_conn_id).get_conn()
            self._check_champion(registry)
            out_dir = try_directory(context)
            registered = registry.get(name, version)
            golden = registry.download(registered, "golden.json", out_dir / "golden.json")
            Artifact(str(golden), self.model["golden_digest"], golden.stat().st_size).verify()
            saved_model = registry.download(registered, "saved_model", out_dir / "saved_model")
            path = self._publish(saved_model, golden, policy)
            headline = f"{name} version {version} is published at {path}"
            self.log.info("%s", headline)
            return {**self.model, "golden": str(golden), "path": path, "headline": headline}

    def _check_champion(self, registry: ModelRegistry) -> None:
        from airflow_mlops.registry.promotion import reigning

        name, version, expected = self.model["name"], int(self.model["version"]), self.model["expected_champion"]
        with contextlib.closing(MlopsLedgerHook(self.ledger_conn_id).get_conn()) as store:
            champion = reigning(store, registry, name)
        found = champion.version if champion else None
        if found not in (expected, version):  # its own version: a finished release that is run again
            raise PromotionConflict(
                f"The champion of {name!r} was {expected or 'nobody'} when version {version} was selected and is {found or 'nobody'} now. "
                "Clear the task 'evaluate' of the run that trained it with all that follows, so that it is compared anew. Nothing was published."
            )

    def _publish(self, saved_model: Path, golden: Path, policy: RetentionPolicy) -> str:
        """Publish beside what the server's configuration names, and return the place."""
        from airflow_mlops.serving import config
        from airflow_mlops.serving.publish import publish_saved_model
        from airflow_mlops.serving.usage import Usage

        hook = TFServingHook(self.tf_serving_conn_id)
        base_path, config_file, options = _base_path(hook, self.model["name"]), Path(hook.extra("config_path")), hook.storage_options()
        path = publish_saved_model(
            saved_model,
            base_path,
            int(self.model["version"]),
            self.model["saved_model_digest"],
            golden=golden,
            usage=Usage.of(config.read(config_file), base_path, self.version_label),
            signature_change_allowed=self.signature_change_allowed is True,
            storage_options=options,
        )
        self._retain(base_path, config_file, policy, options)
        return path

    def _retain(self, base_path: str, config_file: Path, policy: RetentionPolicy, options: dict[str, Any]) -> None:
        """Take old versions away; when that fails the release goes on, and the next one tries again."""
        from airflow_mlops.serving.retention import retain

        version = int(self.model["version"])
        try:
            removed = retain(base_path, policy, config_file, version=version, label=self.version_label, storage_options=options)
        except MlopsError as error:
            self.log.warning("Old versions below %s stay where they are: %s", base_path, error)
        else:
            self.log.info("Old versions removed: %s", removed or "none")


class TFServingRolloutOperator(BaseOperator):
    """Load a published version beside the serving one, prove its answers, then move the label; on failure the previous version serves on.

    Waits in the triggerer. May be retried or cleared at any point: where to go back to is decided once per run and remembered in the ledger,
    what serves is looked at anew in every try. A version that had the label before keeps it, whatever fails.

    :param model: description of the version, as `PublishSavedModelOperator` returns it.
    :param version_label: version label that clients ask for.
    :param timeout_seconds: how long the version may take to load; 300 covers a model of some gigabytes on a slow disk.
    """

    template_fields = ("model",)
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
        from airflow_mlops.serving import rollout

        with airflow_errors(), TFServingHook(self.tf_serving_conn_id).get_conn() as client:
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
        from airflow_mlops.serving import rollout

        with airflow_errors(), TFServingHook(self.tf_serving_conn_id).get_conn() as client:
            plan, golden = rollout.Plan(**event["plan"]), Path(self.model["golden"])
            with _going_back(client, plan, context):
                if event["reason"]:
                    raise RolloutFailed(event["reason"])
                rollout.verify(client, plan, golden)
                rollout.switch(client, plan, golden)
                self._remember(plan, context)
        kept = "" if plan.previous in (None, plan.version) else f"; version {plan.previous} stays loaded"
        headline = f"served and offline answers agree; label {plan.label!r} serves version {plan.version}{kept}"
        self.log.info("%s", headline)
        return {**self.model, "previous": plan.previous, "headline": headline}

    def _plan(self, context: Context) -> Plan:
        from airflow_mlops.ledger.journal import known, once
        from airflow_mlops.serving import rollout

        hook = TFServingHook(self.tf_serving_conn_id)
        config_path, base_path = hook.extra("config_path"), _base_path(hook, self.model["name"])
        name, request = self.model["name"], self._request()

        def serving_now() -> dict[str, Any]:
            return {"previous": rollout.labelled(Path(config_path), name, self.version_label)}

        # A retry after the label moved must still know where to go back to.
        with contextlib.closing(MlopsLedgerHook(self.ledger_conn_id).get_conn()) as store:
            previous = once(store, self._key("plan", context), "plan-rollout", request, serving_now)["previous"]
            proven = known(store, self._key("switch", context)) is not None
        deadline = time.time() + self.timeout_seconds
        return rollout.Plan(name, request["version"], previous, base_path, config_path, deadline, self.version_label, proven)

    def _remember(self, plan: Plan, context: Context) -> None:
        """Note in the ledger that the switch was done and seen; it is a record for people and for later tries, never a reason not to look."""
        from airflow_mlops.ledger.chain import Event
        from airflow_mlops.ledger.journal import once

        with contextlib.closing(MlopsLedgerHook(self.ledger_conn_id).get_conn()) as store:
            done = {"version": plan.version, "previous": plan.previous}
            run = f"{context['ti'].dag_id}/{context['ti'].run_id}"
            event = Event("served", f"{plan.model}@{plan.version}", run, {"label": plan.label, "previous": plan.previous})
            once(store, self._key("switch", context), "switch", self._request(), lambda: done, event=event)

    def _request(self) -> dict[str, Any]:
        return {"model": self.model["name"], "version": int(self.model["version"])}

    def _key(self, what: str, context: Context) -> str:
        return f"{what}:{self.model['name']}:{self.model['version']}:{self.version_label}:{context['ti'].dag_id}:{context['ti'].run_id}"


def _base_path(hook: TFServingHook, name: str) -> str:
    """Return where the model's versions lie: publishing and rollout must mean the same place, and for an object store two slashes are another."""
    return f"{hook.extra('base_path').rstrip('/')}/{name}"


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
