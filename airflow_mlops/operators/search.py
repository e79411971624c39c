"""Choose the best of several trainings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.handovers import HandsOver, hand_over, take
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.workspace import tell_notifiers
from airflow_mlops.records import ResultRef, load
from airflow_mlops.results import TrainingResult, from_data
from airflow_mlops.training.search import best

if TYPE_CHECKING:
    from airflow.sdk import Context


class ChooseTrainingOperator(BaseOperator, HandsOver):
    """Return the reference to the training that was best by a metric it logged; those that failed are not among them.

    Give it the trigger rule ``all_done_min_one_success``: it then waits for every training and needs one that succeeded.

    :param trainings: references to the trainings' result records, the output of a mapped task.
    :param metric: what each training logged; its last value counts.
    :param direction: ``max`` where more is better, else ``min``.
    :param num_trials: how many were to train; notifiers find in ``search_outcome`` how many did.
    """

    template_fields = ("trainings",)
    ui_color = "#f6e4f7"

    def __init__(
        self,
        *,
        trainings: Any,
        metric: str,
        direction: str = "max",
        num_trials: int = 0,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.trainings = trainings
        self.metric = metric
        self.direction = direction
        self.num_trials = num_trials
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        with airflow_errors(), MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            # Airflow's sequence of a mapped task's XComs, which loads them when it is read
            trainings = list(self.trainings) if isinstance(self.trainings, Sequence) else self.trainings
            (trained,) = take(store, context, trainings)
            results = [load(from_data(ResultRef, one, what="reference to a stage's result"), TrainingResult) for one in trained]
            chosen = best([result.metrics for result in results], self.metric, self.direction)
            for number, result in enumerate(results):
                found = result.metrics.get(self.metric, "not logged")
                self.log.info("%s %s: %s %s", "chosen" if number == chosen else "tried", dict(result.params), self.metric, found)
            said = f"{self.metric} {results[chosen].metrics[self.metric]:.4g} of {dict(results[chosen].params)} was the best"
            if (num_failed := self.num_trials - len(results)) > 0:
                self.log.warning("%d of %d trials failed; see their logs.", num_failed, self.num_trials)
                said += f"; {num_failed} of {self.num_trials} trials failed and are not among those compared"
            tell_notifiers(context, search_outcome=said)
            return dict(hand_over(store, context, trained[chosen]))
