"""Run a stage as a Kubernetes pod; importing this costs KubernetesPodOperator's second: only DAG files with pods do."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlops.artifacts import canonical_json, write_atomically
from airflow_mlops.exceptions import MlopsError, ResultInvalid, StageKilled
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.exchange import open_exchange
from airflow_mlops.hooks.handovers import HandsOver, requested
from airflow_mlops.hooks.kubernetes import StagePod, troubles, waiting_seconds
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.workspace import task_directory, workspace
from airflow_mlops.operators.links import ReportLink
from airflow_mlops.operators.pod_log import ToldPodOperator
from airflow_mlops.operators.stage import conclude
from airflow_mlops.records import read_record
from airflow_mlops.stages.attempts import next_attempt, settle
from airflow_mlops.stages.pod import ENDED, Outcome, PodSpec, Verdict, advice, command, manifest, pod_name
from airflow_mlops.stages.runner import parse_spec, spec_data, spec_digest
from airflow_mlops.stages.told import Told, told
from airflow_mlops.stages.verdicts import explained, judge
from airflow_mlops.training.reproducibility import environment_of

if TYPE_CHECKING:
    from airflow.sdk import Context
    from kubernetes.client import V1Pod

_LEDGER = MlopsLedgerHook.default_conn_name


class StagePodOperator(ToldPodOperator, HandsOver):
    """Run one stage in a pod and believe only its verified result record; returns the reference to it, as `RunStageOperator` does.

    A pod's name follows from the task, its run and the number of the attempt: a worker that died finds its pod again. Pods that the
    infrastructure took away, and those that were too small, are followed by another in the same try; a program that fails is not. Works with
    ``deferrable=True`` and without. The workspace, the datasets and the user's code lie at the same paths for workers and pods: on a volume, or
    because what a pod needs of them goes through `PodSpec.exchange`.

    :param stage: as for `RunStageOperator`, and `spec` too; fields of both may be templates.
    :param pod_spec: the image and what the pod needs.
    :param exchange_conn_id: whose extra field `storage_options` are the worker's for the exchange; None: its environment says them.
    """

    template_fields = (*KubernetesPodOperator.template_fields, "spec", "pod_spec")
    template_fields_renderers = {**KubernetesPodOperator.template_fields_renderers, "spec": "json"}
    operator_extra_links = (ReportLink(),)

    def __init__(
        self, *, stage: str, spec: Any, pod_spec: PodSpec, exchange_conn_id: str | None = None, ledger_conn_id: str = _LEDGER, **kwargs: Any
    ) -> None:
        # Our names are the identity, our record the result; the pod is deleted when both have been dealt with.
        # The provider's trigger doubles and loses lines of the log where its looks meet, ours tells them: no logging_interval.
        ours: dict[str, Any] = {"random_name_suffix": False, "do_xcom_push": False, "on_finish_action": "keep_pod", "log_pod_spec_on_failure": False}
        ours["logging_interval"] = None
        ours["termination_message_policy"] = "FallbackToLogsOnError"  # the provider's own would hide the last words
        super().__init__(**{**kwargs, **ours})
        self.stage = stage
        self.spec = spec
        self.pod_spec = pod_spec
        self.exchange_conn_id = exchange_conn_id
        self.ledger_conn_id = ledger_conn_id
        self._stop: Callable[[], None] | None = None

    def execute(self, context: Context) -> Any:
        while True:
            self._prepare(context)
            if self._attempt.settled:
                return self._say_again(context)
            if self._pod.goes_on() or not self._has_record():
                with troubles(self.log.warning):
                    super().execute(context)
            if (done := self._conclude(context)) is not None:
                return done

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Any:
        """Conclude from what the pod left, or go on with another one, or with the same while it runs."""
        self._prepare(context)
        timed_out, self._told = event["status"] == "timeout", told(event.get("told", {}))
        self._pod.position = dataclasses.replace(self._told.position)
        if not timed_out:  # else the pod may go on for ever, and its log too
            with troubles(self.log.warning):
                super().trigger_reentry(context, event)
        done = self._conclude(context, timed_out=timed_out)
        return self.execute(context) if done is None else done

    def get_or_create_pod(self, pod_request_obj: V1Pod, context: Context) -> V1Pod:
        """Create the pod, or adopt the one that an earlier worker created under its name for the same request."""
        with airflow_errors():
            if self._exchange:
                self._exchange.send_request(self._name, self.stage, self._parsed)
            return self._pod.create(pod_request_obj)

    def find_pod(self, namespace: str, context: Context, *, exclude_checked: bool = True) -> V1Pod | None:
        """Return the pod of this attempt by its name, None when it is gone."""
        return self._pod.seen()

    def on_kill(self) -> None:
        """Tell the pod to stop: its stage has `PodSpec.grace_seconds` for a last checkpoint."""
        self._killed = True
        if self._stop is not None and self.on_kill_action != "keep_pod":
            self._stop()

    def cleanup(self, pod: V1Pod, remote_pod: V1Pod, xcom_result: dict[str, Any] | None = None, context: Context | None = None) -> None:
        """Do nothing here: what becomes of the pod is decided when the record has been read."""

    def build_pod_request_obj(self, context: Context | None = None, *, dry_run: bool = False) -> V1Pod:
        """Return the pod of this attempt, with the operator's own arguments over it."""
        spec = self.pod_spec._replace(places=(str(workspace()), *self.pod_spec.places)) if self._exchange else self.pod_spec
        words = command(self.stage, self._name, spec, str(self._directory / "spec.json"), str(self._record))
        self.pod_template_dict = manifest(spec, self._name, words, spec_digest(self._parsed), self._attempt.step)
        pinned = [{"name": name, "value": value} for name, value in environment_of(self._parsed).items()]
        self.pod_template_dict["spec"]["containers"][0]["env"] = pinned
        return super().build_pod_request_obj(context, dry_run=dry_run)

    def _request(self) -> Any:
        """Return the stage's spec, complete."""
        return parse_spec(self.stage, spec_data(self.spec))

    def _prepare(self, context: Context) -> None:
        """Find out which attempt this is, and leave the request where its pod finds it."""
        self._context, ti = context, context["ti"]
        with airflow_errors():
            self._task = f"{ti.dag_id}:{ti.task_id}:{ti.run_id}:{ti.map_index}"
            self._exchange = open_exchange(self.pod_spec.exchange, self.exchange_conn_id) if self.pod_spec.exchange else None
            with MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
                self._parsed = requested(store, context, self._request)
                self._chain = f"{ti.max_tries}:{spec_digest(self._parsed)}"  # max_tries stays over retries, and grows when the task is cleared
                self._attempt = next_attempt(store, self._task, self._chain)
        self._name = pod_name(self.stage, ti.dag_id, ti.task_id, ti.run_id, str(ti.map_index), str(self._attempt.number))
        self._directory = task_directory(context) / f"pod-{self._attempt.number}"
        self._record = self._directory / "result.json"
        self._pod = StagePod(self.client, self.pod_spec.namespace, self._name, self.log.warning)
        self._stop = self._pod.stop
        write_atomically(self._directory / "spec.json", canonical_json(spec_data(self._parsed)))
        self.pod = self.pod_request_obj = self.remote_pod = None
        self._told = Told()
        self.namespace = self.pod_spec.namespace
        self.startup_timeout_seconds = self.schedule_timeout_seconds = self.pod_spec.start_seconds

    def _conclude(self, context: Context, *, timed_out: bool = False) -> dict[str, Any] | None:
        """Return the result, or None when there is more to wait for; a final outcome that is no result is raised."""
        if self._killed:
            raise StageKilled(f"The task was stopped, and pod {self._name} told to end; the next try goes on from its last checkpoint.")
        pod = self._pod.seen()
        seen = self.client.api_client.sanitize_for_serialization(pod) if pod is not None else None
        verdict = judge(seen, has_record=self._has_record(), waited_long=timed_out or waiting_seconds(pod) > self.pod_spec.start_seconds)
        if seen is not None and not verdict.is_explained:
            verdict = explained(verdict, seen, self._pod.events(seen["metadata"]["uid"]))
        if timed_out and verdict.outcome is None:
            verdict = Verdict(Outcome.FAILED, f"It did not end within execution_timeout, {self.execution_timeout}.")
        if verdict.outcome is None:
            time.sleep(self.poll_interval)
            return None
        self.log.info("Attempt %d: %s. %s", self._attempt.number, verdict.outcome, verdict.reason)
        if verdict.outcome == Outcome.RECORD:
            try:
                answer = self._result(context)
            except AirflowFailException as error:
                self._settle(Outcome.ERROR, pod, str(error))
                raise
            except MlopsError:  # the next try may do better
                self._settle(Outcome.ERROR, pod)
                raise
            self._settle(Outcome.RECORD, pod)
            return answer
        refused = advice(verdict, self.pod_spec, self._attempt.num_interruptions, self._attempt.step)
        if not refused:
            self._tell_again(pod)
            self._settle(verdict.outcome, pod)
            return None
        failure = f"StageKilled: Stage {self.stage!r} in pod {self._name} left no result. {verdict.reason} {refused}".replace("\n ", "\n")
        self._settle(verdict.outcome, pod, failure)
        raise AirflowFailException(failure)

    def _say_again(self, context: Context) -> dict[str, Any]:
        """Return, or raise, what a worker found that died before it said so; the pod that it may have left goes."""
        if not self._attempt.failure:
            return self._result(context)
        self._take_away(self._pod.seen(), Outcome.FAILED)
        raise AirflowFailException(self._attempt.failure)

    def _result(self, context: Context) -> dict[str, Any]:
        with airflow_errors():
            try:
                record = read_record(self._record, stage=self.stage, spec_digest=spec_digest(self._parsed))
                answer = conclude(self, self.stage, record, self._record, context, self.ledger_conn_id)
            except ResultInvalid:
                self._record.rename(self._record.with_suffix(".quarantined"))  # nobody takes it for a result again, and it can be looked at
                raise
        context["ti"].xcom_push(key="return_value", value=answer)  # what the task returns is not pushed: do_xcom_push means a sidecar here
        return answer

    def _has_record(self) -> bool:
        if self._record.exists() or self._exchange is None:
            return self._record.exists()
        with airflow_errors():
            try:
                return self._exchange.take_result(self._name, self._record)
            except ResultInvalid:
                self._settle(Outcome.ERROR, self._pod.seen())
                raise

    def _settle(self, outcome: Outcome, pod: V1Pod | None, failure: str = "") -> None:
        """Take the pod away, then remember what the attempt came to, so that the next one is another pod.

        In this order: who is stopped in between, or may not delete, finds the same record again and not a second pod. Of a failure nothing else
        is left, so it is remembered first, unless its pod goes on: that must not be forgotten.
        """
        first = bool(failure) and (pod is None or pod.status.phase in ENDED)
        if not first:
            self._take_away(pod, outcome)
        with MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            settle(store, self._task, self._attempt.number, self._name, self._chain, outcome, failure)
        if first:
            self._take_away(pod, outcome)

    def _take_away(self, pod: V1Pod | None, outcome: Outcome) -> None:
        kept = self.pod_spec.keep_failed_pod and outcome == Outcome.FAILED and pod is not None and pod.status.phase in ENDED
        if pod is not None and not kept:
            self._pod.delete()


class TrainModelPodOperator(StagePodOperator):
    """Train a model in a pod. A training that is interrupted, stopped or retried goes on from its last verified checkpoint.

    :param spec: of stage ``train``; `PodSpec.checkpoints`, where given, is where its checkpoints are.
    """

    def __init__(self, *, stage: str = "train", **kwargs: Any) -> None:
        super().__init__(stage=stage, **kwargs)

    def _request(self) -> Any:
        spec = super()._request()
        return spec._replace(checkpoints=self.pod_spec.checkpoints) if self.pod_spec.checkpoints else spec
