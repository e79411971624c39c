"""Bring an earlier champion back: publish it again if it is gone, move the label, make it champion, all in one task that may be retried."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airflow_mlops.exceptions import PromotionConflict, SpecError
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.handovers import hand_over
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.hooks.tf_serving import TFServingHook
from airflow_mlops.hooks.workspace import run_of, try_directory, who_triggered
from airflow_mlops.operators.publish import publish
from airflow_mlops.operators.serving import TFServingRolloutOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_mlops.ledger.store import Store
    from airflow_mlops.registry.rollback import Target


class RollbackModelOperator(TFServingRolloutOperator):
    """Make an earlier champion the champion again, without a new evaluation and without another approval.

    Whoever may start the DAG may do that; the audit trail's event ``rolled back`` says who it was and why. Only a version that was champion by the
    trail comes back, with the files that it was champion with. Which one that is, and in place of whom, is decided once per run and remembered in
    the ledger; no XCom is read. When the version does not serve, or another one became champion meanwhile, the label goes back to where it was.

    :param model_name: the registered model.
    :param version: the earlier champion; empty for the one before the present champion.
    :param reason: why; it must not be empty.
    :param signature_change_allowed: publish a version that breaks clients of the serving one; only ``True`` allows it, no text does.
    :raises RollbackRefused: it never was champion, is it now, or the trail does not know its files; nothing was changed.
    :raises PromotionConflict: the champion changed after the rollback was requested; nothing was changed.
    """

    template_fields: tuple[str, ...] = ("version", "reason")
    ui_color = "#f6d9d5"

    def __init__(
        self,
        *,
        model_name: str,
        version: Any = None,
        reason: str = "",
        signature_change_allowed: bool = False,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=None, **kwargs)
        self.model_name = model_name
        self.version = version
        self.reason = reason
        self.signature_change_allowed = signature_change_allowed
        self.mlflow_conn_id = mlflow_conn_id

    def execute(self, context: Context) -> Any:
        from airflow_mlops.registry.rollback import fetch

        directory = try_directory(context)
        with airflow_errors(), MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            target = self._target(store, context)
            registered = fetch(MlflowHook(self.mlflow_conn_id).get_conn(), target, directory)
            publish(
                TFServingHook(self.tf_serving_conn_id),
                registered,
                directory,
                target.digests["saved_model_digest"],
                version_label=self.version_label,
                signature_change_allowed=self.signature_change_allowed is True,
            )
        self._begin(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Verify, switch and make it champion, or go back: the trigger's `event` says whether it can be verified."""
        served = self._complete(context, event)
        with airflow_errors(), MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            target = self._target(store, context)
            head = self._crown(store, target, context, event["plan"])
            headline = f"{target.model} version {target.version} is the champion again, in place of version {target.replaces}: {self.reason.strip()}"
            self.log.info("%s", headline)
            return dict(hand_over(store, context, {**served, "replaces": target.replaces, "audit_head": head, "headline": headline}))

    def _take(self, context: Context) -> None:
        """Set the model to roll out, by the ledger."""
        with MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            target = self._target(store, context)
        golden = str(try_directory(context) / "golden.json")
        self.model = {"name": target.model, "version": target.version, "golden": golden, "golden_digest": target.digests["golden_digest"]}

    def _target(self, store: Store, context: Context) -> Target:
        """Return what this run goes back to, decided by its first try."""
        from airflow_mlops.ledger import champions
        from airflow_mlops.ledger.journal import once
        from airflow_mlops.registry.aliases import version_of
        from airflow_mlops.registry.rollback import Target, choose

        version, asked_at = version_of(self.version), context["dag_run"].run_after
        request = {"model": self.model_name, "version": version, "reason": self._reason(), "by": self._who(context)}

        def chosen() -> dict[str, Any]:
            return asdict(choose(store, self.model_name, version, asked_at=asked_at))

        target = Target(**once(store, f"plan {self._intent(context)}", "plan-rollback", request, chosen))
        now = champions.current(store, target.model)
        if now is None or (now.token != target.token and now.intent != self._intent(context)):
            by_now = champions.spoken(now.version if now else None)
            raise PromotionConflict(
                f"This rollback of {target.model!r} was to replace version {target.replaces}, but {by_now} is champion by now and stays. Start "
                "another rollback to replace it."
            )
        return target

    def _crown(self, store: Store, target: Target, context: Context, plan: dict[str, Any]) -> str:
        """Make it champion in place of the one that was seen; return the trail's head. Where there is another by now, give the label back."""
        from airflow_mlops.ledger import chain
        from airflow_mlops.ledger.champions import Claim
        from airflow_mlops.ledger.journal import once
        from airflow_mlops.registry.promotion import promote
        from airflow_mlops.registry.rollback import ROLLED_BACK
        from airflow_mlops.serving.rollout import Plan, revert

        why = {**target.digests, "reason": self._reason(), "run": run_of(context)}
        digest = why.pop("digest")
        intent, who = self._intent(context), self._who(context)
        claim = Claim(intent, target.model, target.version, target.replaces, target.token, digest, ROLLED_BACK, who, why)
        registry, request = MlflowHook(self.mlflow_conn_id).get_conn(), {"model": target.model, "version": target.version}
        try:
            once(store, intent, "rollback", request, lambda: {"previous": promote(store, registry, claim).previous}, again=True)
        except PromotionConflict as error:
            with TFServingHook(self.tf_serving_conn_id).get_conn() as client:
                revert(client, Plan(**plan)._replace(proven=False), str(error))
        return str(chain.head(store))

    def _reason(self) -> str:
        if not isinstance(self.reason, str) or not self.reason.strip():
            raise SpecError("The rollback has no reason; expected a sentence for the audit trail. Start it again with one. Nothing was changed.")
        return self.reason.strip()

    def _who(self, context: Context) -> str:
        if not (found := who_triggered(context)):
            raise SpecError("Airflow does not know who started this rollback; expected a person. Start it by its form. Nothing was changed.")
        return found[0]

    def _intent(self, context: Context) -> str:
        return f"rollback:{self.model_name}:{run_of(context)}"
