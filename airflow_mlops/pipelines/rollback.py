"""Back to an earlier champion, by one form."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from airflow_mlops.notifications.slack import PipelineNotifier
from airflow_mlops.operators.rollback import RollbackModelOperator
from airflow_mlops.pipelines.spec import PipelineSpec

DONE = ":rewind: *{{ dag.dag_id }}*: {{ ti.xcom_pull(task_ids='roll_back').headline }}. "
ANCHOR = "Audit trail `{{ ti.xcom_pull(task_ids='roll_back').audit_head }}`"


def rollback_form() -> dict[str, Param]:
    """Return the fields of the form: which version, and why."""
    before = "An earlier champion. Empty: the one before the present champion."
    return {
        "version": Param(None, type=["null", "integer"], minimum=1, title="Back to version", description=before),
        "reason": Param(type="string", pattern=r"\S", maxLength=2000, title="Reason", description="Why; it goes into the audit trail."),
    }


def rollback_task(spec: PipelineSpec, dag: DAG) -> None:
    """Add roll_back to `dag`."""
    RollbackModelOperator(
        task_id="roll_back",
        model_name=spec.model,
        version=dag.param("version"),
        reason=dag.param("reason"),  # type: ignore[arg-type]  # resolved before it is read
        on_success_callback=PipelineNotifier(text=DONE + ANCHOR, channel=spec.channel),
        # Short at first, for a bad champion serves meanwhile; long in the end, so that a registry that was down does not leave it half done.
        retries=8,
        retry_delay=timedelta(seconds=2),
        retry_exponential_backoff=True,
        max_retry_delay=timedelta(minutes=5),
    )
