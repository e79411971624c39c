"""Decide whether a trained model may be offered for release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, SkipMixin

from airflow_mlops.gates import ReleasePolicy, decide
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.records import ResultRef, lineage, load
from airflow_mlops.results import EvaluationResult, RobustnessResult, from_data, to_data

if TYPE_CHECKING:
    from airflow.sdk import Context


class GateModelOperator(BaseOperator, SkipMixin):
    """Decide by policy whether the model may be offered for release; when not, say why and skip what follows.

    Returns the decision and ``evidence``, the references to every result record behind it.

    :param evaluation: reference to the evaluation's result record.
    :param robustness: reference to the robustness campaign's result record.
    :param policy: the thresholds.
    """

    template_fields = ("evaluation", "robustness")
    ui_color = "#f6e4f7"

    def __init__(self, *, evaluation: Any, robustness: Any, policy: ReleasePolicy, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.evaluation = evaluation
        self.robustness = robustness
        self.policy = policy

    def execute(self, context: Context) -> dict[str, Any]:
        with airflow_errors():
            evaluation, robustness = (from_data(ResultRef, data, what="reference to a stage's result") for data in (self.evaluation, self.robustness))
            evidence = lineage(evaluation, robustness)
            decision = decide(self.policy, load(evaluation, EvaluationResult), load(robustness, RobustnessResult))
        self.log.info("%s", decision.headline())
        answer = {**to_data(decision), "headline": decision.headline(), "evidence": {stage: to_data(ref) for stage, ref in evidence.items()}}
        if not decision.released:
            context["ti"].xcom_push(key="return_value", value=answer)  # skipping ends the task before its value would be stored
            self.skip(ti=context["ti"], tasks=context["task"].get_direct_relatives(upstream=False))
        return answer
