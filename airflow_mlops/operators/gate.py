"""Decide whether a trained model may be offered for release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, SkipMixin

from airflow_mlops.gates import ReleasePolicy
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.handovers import HandsOver, evidence_refs, hand_over
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.workspace import tell_notifiers
from airflow_mlops.results import to_data

if TYPE_CHECKING:
    from airflow.sdk import Context


class GateModelOperator(BaseOperator, SkipMixin, HandsOver):
    """Decide by policy whether the model may be offered for release; when not, say why and skip what follows.

    Returns the decision, for people: `MlflowRegisterModelOperator` decides again from the same records. Notifiers find it in ``gate_decision``.

    :param evaluation: reference to the evaluation's result record.
    :param robustness: reference to the robustness campaign's result record.
    :param policy: the thresholds.
    """

    template_fields = ("evaluation", "robustness")
    ui_color = "#f6e4f7"

    def __init__(
        self,
        *,
        evaluation: Any,
        robustness: Any,
        policy: ReleasePolicy,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.evaluation = evaluation
        self.robustness = robustness
        self.policy = policy
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_mlops.registry.registrations import Evidence

        with airflow_errors(), MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            refs = evidence_refs(store, context, self.evaluation, self.robustness)
            decision = Evidence.of(refs).decision(self.policy)
            self.log.info("%s", decision.headline())
            tell_notifiers(context, gate_decision=decision.headline())
            answer = {**to_data(decision), "headline": decision.headline()}
            if decision.released:
                digests = {stage: ref.digest for stage, ref in refs.items()}
                hand_over(store, context, {"released": True, "records": digests})
        if not decision.released:
            context["ti"].xcom_push(key="return_value", value=answer)  # skipping ends the task before its value would be stored
            self.skip(ti=context["ti"], tasks=context["task"].get_direct_relatives(upstream=False))
        return answer
