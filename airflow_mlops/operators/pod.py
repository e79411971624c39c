"""Run a stage as a Kubernetes pod; importing this costs KubernetesPodOperator's second: only DAG files with pods do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from airflow_mlops.artifacts import canonical_json, write_atomically
from airflow_mlops.exceptions import ResultInvalid, StageKilled
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.workspace import task_directory
from airflow_mlops.operators.links import ReportLink
from airflow_mlops.operators.stage import conclude
from airflow_mlops.records import read_record
from airflow_mlops.stages.pod import SPEC_ANNOTATION, Attempt, Outcome, PodSpec, Verdict, judge, manifest, pod_name
from airflow_mlops.stages.runner import parse_spec, spec_data, spec_digest

if TYPE_CHECKING:
    from airflow.sdk import Context
    from kubernetes.client import V1Pod

    from airflow_mlops.ledger.store import Store

_BUSY = (410, 429)  # and everything from 500: the API server's trouble is nobody's failure
_PAUSE_SECONDS = 5.0


class StagePodOperator(KubernetesPodOperator):
    """Run one stage in a pod and believe only its verified result record; returns the reference to it, as `RunStageOperator` does.

    A pod's name follows from the task, its run and the number of the attempt: a worker that died finds its pod again. Pods that the
    infrastructure took away, and those that were too small, are followed by another in the same try; a program that fails is not. Works with
    ``deferrable=True`` and without. The workspace, the datasets and the user's code must lie at the same paths for workers and pods.

    :param stage: as for `RunStageOperator`, and `spec` too; fields of both may be templates.
    :param pod_spec: the image and what the pod needs.
    """

    template_fields = (*KubernetesPodOperator.template_fields, "spec", "pod_spec")
    template_fields_renderers = {**KubernetesPodOperator.template_fields_renderers, "spec": "json"}
    operator_extra_links = (ReportLink(),)

    def __init__(self, *, stage: str, spec: Any, pod_spec: PodSpec, ledger_conn_id: str = MlopsLedgerHook.default_conn_name, **kwargs: Any) -> None:
        # Our names are the identity, our record the result; the pod is deleted when both have been dealt with.
        ours = {"random_name_suffix": False, "do_xcom_push": False, "on_finish_action": "keep_pod", "log_pod_spec_on_failure": False}
        super().__init__(**{**kwargs, **ours})
        self.stage = stage
        self.spec = spec
        self.pod_spec = pod_spec
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> Any:
        while True:
            self._prepare(context)
            with self._pod_troubles():
                super().execute(context)
            if (done := self._conclude(context)) is not None:
                return done

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Any:
        """Conclude from what the pod left, or go on with another one, or with the same while it runs."""
        self._prepare(context)
        timed_out = event["status"] == "timeout"
        if not timed_out:  # else the pod may go on for ever, and its log too
            with self._pod_troubles():
                super().trigger_reentry(context, event)
        done = self._conclude(context, timed_out=timed_out)
        return self.execute(context) if done is None else done

    def get_or_create_pod(self, pod_request_obj: V1Pod, context: Context) -> V1Pod:
        """Create the pod, or adopt the one that an earlier worker created under its name for the same request."""
        try:
            return self.pod_manager.create_pod(pod=pod_request_obj)
        except ApiException as error:
            if error.status != 409:
                raise
        found = self.hook.get_pod(pod_request_obj.metadata.name, pod_request_obj.metadata.namespace)
        if (found.metadata.annotations or {}).get(SPEC_ANNOTATION) != spec_digest(self._parsed):
            raise AirflowFailException(f"Pod {found.metadata.name} is there for another request; delete it and clear this task.")
        self.log.info("Pod %s is there already: going on with it.", found.metadata.name)
        return found

    def find_pod(self, namespace: str, context: Context, *, exclude_checked: bool = True) -> V1Pod | None:
        """Return the pod of this attempt by its name, None when it is gone."""
        try:
            return self.hook.get_pod(self._name, self.pod_spec.namespace)
        except ApiException as error:
            if error.status != 404:
                raise
            return None

    def cleanup(self, pod: V1Pod, remote_pod: V1Pod, xcom_result: dict[str, Any] | None = None, context: Context | None = None) -> None:
        """Do nothing here: what becomes of the pod is decided when the record has been read."""

    def build_pod_request_obj(self, context: Context | None = None, *, dry_run: bool = False) -> V1Pod:
        """Return the pod of this attempt, with the operator's own arguments over it."""
        spec_path, result_path = self._directory / "spec.json", self._directory / "result.json"
        files = ["--spec", str(spec_path), "--result", str(result_path)]
        command = ["python", "-m", "airflow_mlops", "stage", self.stage, *files, "--image", self.pod_spec.image]
        self.pod_template_dict = manifest(self.pod_spec, self._name, command, spec_digest(self._parsed), self._attempt.step)
        return super().build_pod_request_obj(context, dry_run=dry_run)

    def _prepare(self, context: Context) -> None:
        """Find out which attempt this is, and leave the request where its pod finds it."""
        with airflow_errors():
            self._parsed = parse_spec(self.stage, spec_data(self.spec))
            with self._ledger() as store:
                self._attempt = Attempt.after(self._outcomes(store, context))
        ti = context["ti"]
        identity = (ti.dag_id, ti.task_id, ti.run_id, str(ti.map_index), str(self._attempt.number))
        self._name = pod_name(self.stage, *identity)
        self._directory = task_directory(context) / f"pod-{self._attempt.number}"
        write_atomically(self._directory / "spec.json", canonical_json(spec_data(self._parsed)))
        self.pod = self.pod_request_obj = self.remote_pod = None
        self.namespace = self.pod_spec.namespace
        self.startup_timeout_seconds = self.schedule_timeout_seconds = self.pod_spec.start_seconds

    def _conclude(self, context: Context, *, timed_out: bool = False) -> dict[str, Any] | None:
        """Return the result, or None when there is more to wait for; a final outcome that is no result is raised."""
        pod = self.find_pod(self.pod_spec.namespace, context)
        path = self._directory / "result.json"
        seen = self.client.api_client.sanitize_for_serialization(pod) if pod is not None else None
        verdict = judge(seen, has_record=path.exists(), waited_long=timed_out or _age(pod) > self.pod_spec.start_seconds)
        if timed_out and verdict.outcome is None:
            verdict = Verdict(Outcome.FAILED, f"It did not end within execution_timeout, {self.execution_timeout}.")
        if verdict.outcome is None:
            return None
        self.log.info("Attempt %d: %s. %s", self._attempt.number, verdict.outcome, verdict.reason)
        with airflow_errors():
            try:
                if verdict.outcome == Outcome.RECORD:
                    return self._result(path, context)
                self._check_budget(verdict)
            finally:
                self._settle(verdict, context, pod)
        return None

    def _result(self, path: Path, context: Context) -> dict[str, Any]:
        try:
            record = read_record(path, stage=self.stage, spec_digest=spec_digest(self._parsed))
            answer = conclude(self, self.stage, record, path, context, self.ledger_conn_id)
            context["ti"].xcom_push(key="return_value", value=answer)  # what the task returns is not pushed: do_xcom_push means a sidecar here
            return answer
        except ResultInvalid:
            path.rename(path.with_suffix(".quarantined"))  # nobody takes it for a result again, and it can be looked at
            raise

    def _check_budget(self, verdict: Verdict) -> None:
        """Return if another pod may try, else raise why not."""
        if verdict.outcome == Outcome.INTERRUPTED and self._attempt.num_interruptions < self.pod_spec.max_interruptions:
            return
        if verdict.outcome == Outcome.OUT_OF_MEMORY and self._attempt.step < len(self.pod_spec.memory_ladder):
            return
        advice = {
            Outcome.INTERRUPTED: f"It was taken away {self._attempt.num_interruptions + 1} times: find out by what, or raise max_interruptions.",
            Outcome.OUT_OF_MEMORY: "Raise memory, or give memory_ladder another step.",
        }.get(verdict.outcome or Outcome.FAILED, "Look at its log above; it is not tried again, because it would end the same way.")
        error = StageKilled(f"Stage {self.stage!r} in pod {self._name} left no result. {verdict.reason.rstrip(' ')} {advice}".replace("\n ", "\n"))
        error.retryable = False
        raise error

    def _settle(self, verdict: Verdict, context: Context, pod: V1Pod | None) -> None:
        """Take the pod away, then remember what the attempt came to, so that the next one is another pod.

        In this order: who is stopped in between, or may not delete, finds the same record again and not a second pod.
        """
        from airflow_mlops.ledger.journal import once

        if pod is not None:
            try:
                self.client.delete_namespaced_pod(pod.metadata.name, pod.metadata.namespace)
            except ApiException as error:
                if error.status != 404:
                    raise (_refused(error) or error) from error
        outcome = {"outcome": str(verdict.outcome)}
        with self._ledger() as store:
            once(store, self._key(context, self._attempt.number), "pod", {"pod": self._name}, lambda: outcome)

    def _outcomes(self, store: Store, context: Context) -> list[str]:
        from airflow_mlops.ledger.journal import known

        outcomes: list[str] = []
        while settled := known(store, self._key(context, len(outcomes) + 1)):
            outcomes.append(settled["outcome"])
        return outcomes

    def _key(self, context: Context, attempt: int) -> str:
        ti = context["ti"]
        return f"pod:{ti.dag_id}:{ti.task_id}:{ti.run_id}:{ti.map_index}:{attempt}"

    @contextlib.contextmanager
    def _pod_troubles(self) -> Iterator[None]:
        """Let what the pod and its record say decide, and not how following it ended; an API server in trouble is asked again later."""
        try:
            yield
        except AirflowFailException:
            raise
        except ApiException as error:
            if refused := _refused(error):
                raise refused from error
            self.log.warning("Kubernetes answers %s %s; asking again.", error.status, error.reason)
            time.sleep(_PAUSE_SECONDS)
        except (AirflowException, HTTPError) as error:
            self.log.info("Following the pod ended: %s", error)

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[Store]:
        with contextlib.closing(MlopsLedgerHook(self.ledger_conn_id).get_conn()) as store:
            yield store


def _age(pod: V1Pod | None) -> float:
    """Return for how many seconds the pod has been there."""
    created = pod.metadata.creation_timestamp if pod is not None else None
    return time.time() - created.timestamp() if created else 0.0


def _refused(error: ApiException) -> AirflowFailException | None:
    """Return what to raise where Kubernetes refuses and no retry helps; None where it only has no time."""
    if error.status in _BUSY or error.status >= 500:
        return None
    return AirflowFailException(f"Kubernetes refused: {error.status} {error.reason}: {str(error.body or '')[:500]}")
