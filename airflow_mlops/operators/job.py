"""Train one model by several pods; importing this needs Kubernetes' client."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlops.artifacts import canonical_json, write_atomically
from airflow_mlops.exceptions import MlopsError, ResultInvalid, WorkerLost
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.exchange import open_exchange
from airflow_mlops.hooks.handovers import HandsOver, requested
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.training_job import ChiefLog, TrainingJob
from airflow_mlops.hooks.workspace import task_directory, workspace
from airflow_mlops.operators.links import ReportLink
from airflow_mlops.operators.stage import conclude, progress_log, progress_of
from airflow_mlops.records import Record, read_record
from airflow_mlops.stages.attempts import next_attempt, settle
from airflow_mlops.stages.chief import ToldChief
from airflow_mlops.stages.job import JobSpec, Work, worker_command, workload
from airflow_mlops.stages.job_verdicts import came_too_late, has_ended, judge, waited_seconds
from airflow_mlops.stages.pod import Outcome, Verdict, advice, pod_name
from airflow_mlops.stages.runner import parse_spec, spec_data, spec_digest
from airflow_mlops.stages.told import understood
from airflow_mlops.training.reproducibility import environment_of
from airflow_mlops.triggers.job import TrainingJobTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context


class TrainModelJobOperator(BaseOperator, HandsOver):
    """Run stage ``train`` by several pods at once and believe only worker 0's verified result record; returns the reference to it.

    The Job's name follows from the task, its run and the number of the attempt: a worker that died finds its Job again. When the infrastructure
    took a pod and the others could not go on without it, another Job follows in the same try; a program that fails is not tried again.
    Worker 0's log is in the task's, line by line, and its progress on a page, deferred or not.
    Workspace, datasets, code and checkpoints lie at the same paths for workers and pods: on a volume, or because what the pods need of them goes
    through `PodSpec.exchange`. Time in a queue is not counted.

    :param spec: the stage's `Spec`; fields may be templates, those of `job_spec` too.
    :param job_spec: how many workers, what each is, and by which engine.
    :param config_file: kubeconfig, instead of the connection's.
    :param in_cluster: as for KubernetesHook.
    :param poll_seconds: between two looks at the Job.
    :param deferrable: wait in the triggerer and hold no worker.
    """

    template_fields = ("spec", "job_spec")
    template_fields_renderers = {"spec": "json"}
    operator_extra_links = (ReportLink(),)
    stage = "train"

    def __init__(
        self,
        *,
        spec: Any,
        job_spec: JobSpec,
        kubernetes_conn_id: str | None = KubernetesHook.default_conn_name,
        config_file: str | None = None,
        in_cluster: bool | None = None,
        poll_seconds: float = 5.0,
        deferrable: bool = False,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.job_spec = job_spec
        self.kubernetes_conn_id = kubernetes_conn_id
        self.config_file = config_file
        self.in_cluster = in_cluster
        self.poll_seconds = poll_seconds
        self.deferrable = deferrable
        self.ledger_conn_id = ledger_conn_id
        self._job: TrainingJob | None = None
        self._deadline: float | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        if self._deadline is None and self.execution_timeout is not None:
            self._deadline = time.time() + self.execution_timeout.total_seconds()
        while True:
            job = self._prepare(context)
            if self._attempt.settled:  # a worker died before it returned what it had found
                return self._say_again(job, context)
            if not self._has_record(job) or job.seen() is not None:
                self._create(job)
                if self.deferrable:
                    self._defer(context)
            verdict = self._followed(job, context)
            if (done := self._conclude(job, verdict, context)) is not None:
                return done

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Conclude from what the Job left, or go on with another one, or with the same while it runs."""
        job, self._deadline = self._prepare(context), event["deadline"]
        if self._attempt.settled or (verdict := self._verdict(job, job.pods())).outcome is None:
            return self.execute(context)
        self._told = understood(ToldChief, event.get("told", {}))
        with progress_log(self, context, self._directory, self._told.history) as tell:
            ChiefLog(self._told.positions, self.log.warning).tell_rest(job, tell, self.poll_seconds)
        done = self._conclude(job, verdict, context)
        return self.execute(context) if done is None else done

    def on_kill(self) -> None:
        """Delete the Job and its Service; each pod has `PodSpec.grace_seconds` for a last checkpoint."""
        if self._job is not None:
            self._job.delete()

    def _connection(self) -> dict[str, Any]:
        return {"conn_id": self.kubernetes_conn_id, "config_file": self.config_file, "in_cluster": self.in_cluster}

    def _defer(self, context: Context) -> None:
        """Wait in the triggerer, which tells the log and shows the progress meanwhile; the page is there from now on."""
        progress = progress_of(self, context, self._directory)
        progress.begin()
        spec = {**self.job_spec._asdict(), "pod": spec_data(self.job_spec.pod)}
        note = str(self._directory / f"told-{time.time_ns()}.json")  # of this deferral: with each one, Airflow's triggerer begins its log anew
        trigger = TrainingJobTrigger(spec, self._name, self._connection(), self.poll_seconds, self._deadline, progress.title, note)
        self.defer(trigger=trigger, method_name="execute_complete")

    def _prepare(self, context: Context) -> TrainingJob:
        """Find out which attempt this is, and leave the request where its pods find it."""
        ti = context["ti"]
        self._task = f"{ti.dag_id}:{ti.task_id}:{ti.run_id}:{ti.map_index}"
        with airflow_errors():
            with MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
                self._parsed = requested(store, context, self._request)
                self._chain = f"{ti.max_tries}:{spec_digest(self._parsed)}"  # as of a pod: stays over retries, and grows when cleared
                self._attempt = next_attempt(store, self._task, self._chain)
            self._name = pod_name(self.stage, ti.dag_id, ti.task_id, ti.run_id, str(ti.map_index), str(self._attempt.number))
            self._directory = directory = task_directory(context) / f"job-{self._attempt.number}"
            self._record = Path(f"{directory}-worker-0") / "result.json"
            job_spec, pod = self.job_spec, self.job_spec.pod
            self._exchange = open_exchange(pod.exchange, job_spec.exchange_conn_id or None) if pod.exchange else None
            if self._exchange:
                job_spec = job_spec._replace(pod=pod._replace(places=(str(workspace()), *pod.places)))
            words = worker_command(self.stage, self._name, job_spec, str(directory))
            self._objects = workload(job_spec, Work(self._name, words, spec_digest(self._parsed), self._attempt.step, environment_of(self._parsed)))
        write_atomically(directory / "spec.json", canonical_json(spec_data(self._parsed)))
        self._told = ToldChief()
        self._job = TrainingJob(KubernetesHook(**self._connection()).get_conn(), self.job_spec, self._name, self.log.warning)
        return self._job

    def _create(self, job: TrainingJob) -> None:
        """Create the Job, once all that its pods need is where they find it, or find the one that an earlier worker created."""
        if self._exchange:
            with airflow_errors():
                self._exchange.send_request(self._name, self.stage, self._parsed)
        job.create(self._objects)

    def _has_record(self, job: TrainingJob) -> bool:
        if self._record.exists() or self._exchange is None:
            return self._record.exists()
        with airflow_errors():
            try:
                return self._exchange.take_result(self._name, self._record)
            except ResultInvalid:
                self._settle(job, Outcome.ERROR)
                raise

    def _request(self) -> Any:
        """Return the stage's spec, complete."""
        spec, place = parse_spec(self.stage, spec_data(self.spec)), self.job_spec.pod.checkpoints
        return spec._replace(checkpoints=place) if place else spec

    def _followed(self, job: TrainingJob, context: Context) -> Verdict:
        """Wait until there is something to decide, and meanwhile tell what worker 0 writes."""
        log = ChiefLog({}, self.log.warning)
        with progress_log(self, context, self._directory) as tell:
            while (verdict := self._verdict(job, pods := job.pods())).outcome is None:
                log.tell_new(job, pods, tell)
                time.sleep(self.poll_seconds)
            log.tell_rest(job, tell, self.poll_seconds)
        return verdict

    def _verdict(self, job: TrainingJob, pods: list[dict[str, Any]]) -> Verdict:
        waited_long = waited_seconds(pods, time.time()) > self.job_spec.pod.start_seconds
        seen = job.seen()
        has_record = (seen is None or has_ended(seen) or bool(came_too_late(pods))) and self._has_record(job)
        verdict = judge(seen, pods, has_record=has_record, waited_long=waited_long)
        if not verdict.is_explained:
            verdict = job.explained(verdict, pods)
        if verdict.outcome is None and self._deadline is not None and time.time() >= self._deadline:
            return Verdict(Outcome.FAILED, f"It did not end within execution_timeout, {self.execution_timeout}.")
        return verdict

    def _conclude(self, job: TrainingJob, verdict: Verdict, context: Context) -> dict[str, Any] | None:
        """Return the result, or None when another Job is to follow; a final outcome that is no result is raised."""
        if verdict.outcome == Outcome.RECORD:
            try:
                answer = self._result(context)
            except WorkerLost as error:  # why, the other worker's pod may say
                why = judge(job.seen(), job.pods(), has_record=False)
                verdict = why if why.outcome else Verdict(Outcome.INTERRUPTED, str(error))
            except (AirflowFailException, MlopsError) as error:  # after the second, the next try may do better
                self._settle(job, Outcome.ERROR, str(error) if isinstance(error, AirflowFailException) else "")
                raise
            else:
                self._settle(job, Outcome.RECORD)
                return answer
        outcome = verdict.outcome or Outcome.FAILED
        self.log.info("Attempt %d: %s. %s", self._attempt.number, outcome, verdict.reason)
        refused = advice(verdict, self.job_spec.pod, self._attempt.num_interruptions, self._attempt.step)
        if not refused:
            if any(one.newest for one in self._told.positions.values()):
                self.log.info("The log of worker 0 of job %s, again from its beginning: what the triggerer told of it may be gone.", self._name)
                ChiefLog({}, self.log.warning).tell_rest(job, partial(self.log.info, "%s"), self.poll_seconds)
            self._settle(job, outcome)
            return None
        failure = f"StageKilled: The training by job {self._name} left no result. {verdict.reason.strip()} {refused}"
        self._settle(job, outcome, failure)
        raise AirflowFailException(failure)

    def _say_again(self, job: TrainingJob, context: Context) -> dict[str, Any]:
        """Return, or raise, what a worker found that died before it said so; the Job that it may have left goes."""
        if not self._attempt.failure:
            return self._result(context)
        job.delete()
        raise AirflowFailException(self._attempt.failure)

    def _result(self, context: Context) -> dict[str, Any]:
        with airflow_errors():
            try:
                record: Record = read_record(self._record, stage=self.stage, spec_digest=spec_digest(self._parsed))
                return conclude(self, self.stage, record, self._record, context, self.ledger_conn_id)
            except ResultInvalid:
                self._record.rename(self._record.with_suffix(".quarantined"))  # nobody takes it for a result again, and it can be looked at
                raise

    def _settle(self, job: TrainingJob, outcome: Outcome, failure: str = "") -> None:
        """Take the Job away, then remember what the attempt came to, so that the next one is another Job.

        Of a failure nothing else is left, so it is remembered first, unless its Job goes on: that must not be forgotten.
        """
        first = bool(failure) and job.is_over()
        if not first:
            job.delete()
        with MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            settle(store, self._task, self._attempt.number, self._name, self._chain, outcome, failure)
        if first:
            job.delete()
