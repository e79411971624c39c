"""The DAG that compares ledger, registry and model servers all day."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable

from airflow_mlops.notifications.slack import PipelineNotifier
from airflow_mlops.operators.messages import DeliverMessagesOperator
from airflow_mlops.operators.reconciliation import ReconcileModelsOperator

ABOUT = """Compares for every model what the ledger, the aliases in MLflow and the model servers say. Aliases that were moved by hand are moved
back; whatever needs a person fails the run that finds it, and is reported once until it is gone. A rollout under way is not a difference.
Messages that Slack did not take are sent."""
FOUND = ":mag: *{{ dag.dag_id }}*: {{ exception | default('its process died; see the log') }}"


def reconciliation_dag(
    dag_id: str = "reconcile_models", *, schedule: str = "*/15 * * * *", version_label: str = "stable", channel: str = "#mlops"
) -> DAG:
    """Return the DAG, one for all models of the default connections.

    :param schedule: cron expression (UTC); every 15 minutes: a look takes seconds, and a wrong alias is in somebody's way until it is found.
    :param version_label: version label that clients ask for.
    :param channel: where messages go when a Slack connection exists.
    """
    # Six retries: an MLflow or a server that does not answer is told after an hour, not every 15 minutes.
    retrying = {"retries": 6, "retry_delay": timedelta(minutes=10)}
    with DAG(
        dag_id,
        schedule=CronTriggerTimetable(schedule, timezone="UTC"),
        description="Compare ledger, registry and model servers",
        doc_md=ABOUT,
        catchup=False,
        max_active_runs=1,
        tags=["mlops"],
        default_args={**retrying, "on_failure_callback": PipelineNotifier(text=FOUND, channel=channel)},
    ) as dag:
        ReconcileModelsOperator(task_id="reconcile", version_label=version_label)
        DeliverMessagesOperator(task_id="deliver")
    return dag
