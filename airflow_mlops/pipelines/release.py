"""From a candidate to a served champion, with the approval of people in between."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, ExceptionRetryPolicy, RetryAction, RetryRule

from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.hooks.preflight import Preflight
from airflow_mlops.hooks.tf_serving import TFServingHook
from airflow_mlops.notifications.slack import ApprovalNotifier, PipelineNotifier
from airflow_mlops.operators.approval import ApproveReleaseOperator
from airflow_mlops.operators.evidence import WriteEvidencePackOperator
from airflow_mlops.operators.model import MlflowPromoteModelOperator, MlflowSelectCandidateOperator
from airflow_mlops.operators.publish import PublishSavedModelOperator
from airflow_mlops.operators.serving import TFServingRolloutOperator
from airflow_mlops.pipelines.spec import PipelineSpec

UNANSWERED = "airflow.providers.standard.exceptions.HITLTimeoutError"
ASK = ":raising_hand: {{ approval_question }} {{ approval_progress }}"
DONE = (
    ":rocket: *{{ dag.dag_id }}*: {{ promoted.name }} version {{ promoted.version }} serves "
    f"(`{TFServingHook.default_conn_name}`) and is the champion (`{MlflowHook.default_conn_name}`). "
)
ANCHOR = "Audit trail `{{ promoted.audit_head }}`"


def release_tasks(spec: PipelineSpec, dag: DAG) -> None:
    """Add select, approve, publish, roll_out, promote and evidence to `dag`."""
    ready = Preflight(("pod-worker",))
    selected = MlflowSelectCandidateOperator(
        task_id="select", model_name=spec.model, policy=spec.policy, version=dag.param("version"), pre_execute=ready
    )
    approve = ApproveReleaseOperator(
        task_id="approve",
        model=selected.output,
        policy=spec.approval,
        notifiers=[ApprovalNotifier(text=ASK, channel=spec.channel)],
        retry_policy=ExceptionRetryPolicy(rules=[RetryRule(exception=UNANSWERED, action=RetryAction.FAIL, reason="nobody answered")]),
    )
    published = PublishSavedModelOperator(task_id="publish", model=selected.output)
    rolled_out = TFServingRolloutOperator(task_id="roll_out", model=published.output)
    promoted = MlflowPromoteModelOperator(
        task_id="promote",
        model=rolled_out.output,
        on_success_callback=PipelineNotifier(text=DONE + ANCHOR, channel=spec.channel),
        # The version serves by now: a registry that is down for an hour must not leave it without its alias.
        retries=12,
        retry_exponential_backoff=True,
        max_retry_delay=timedelta(minutes=10),
    )
    statements = str(spec.code_path / spec.statements) if spec.statements else ""
    packed = WriteEvidencePackOperator(task_id="evidence", model=promoted.output, statements=statements)
    selected >> approve >> published >> rolled_out >> promoted >> packed
