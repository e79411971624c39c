"""Run a stage as a local subprocess and believe only its verified result record."""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_mlops.artifacts import file_digest
from airflow_mlops.exceptions import LedgerUnavailable, ResultInvalid
from airflow_mlops.hooks.errors import airflow_errors
from airflow_mlops.hooks.handovers import HandsOver, hand_over, requested
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.hooks.workspace import prices, report_url, run_of, try_directory
from airflow_mlops.operators.links import REPORT_KEY, ReportLink
from airflow_mlops.records import ResultRef, record_of, result_of
from airflow_mlops.results import DatasetVersion, ValidationResult, to_data
from airflow_mlops.stages import stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from airflow.sdk import Context

    from airflow_mlops.exceptions import MlopsError
    from airflow_mlops.records import Record
    from airflow_mlops.stages.group import StageGroup
    from airflow_mlops.stages.process import StageProcess
    from airflow_mlops.stages.progress_page import ProgressLog
    from airflow_mlops.training.progress import Progress

LEDGER_PAUSES = (1.0, 5.0, 15.0, 60.0, 180.0)  # seconds between tries to note a result
STOP_SECONDS = 4.0  # Airflow kills a task 5 s after it told it to stop


class RunStageOperator(BaseOperator, HandsOver):
    """Run one stage in a process group of its own on the worker; returns the reference to its result record.

    :param stage: ``validate``, ``train``, ``evaluate``, ``robustness`` or ``robustness_shard``.
    :param spec: the stage's `Spec`; every field may be a template or another task's output.
    :param mlflow_conn_id: connection whose credentials the stage's environment gets.
    :param ledger_conn_id: where a validation's verdict is remembered, so that no later run chooses a rejected version by itself.
    :param num_workers: of stage ``train``, the processes that train together on this machine.
    """

    template_fields = ("spec",)
    template_fields_renderers = {"spec": "json"}
    operator_extra_links = (ReportLink(),)
    ui_color = "#e7eefc"

    def __init__(
        self,
        *,
        stage: str,
        spec: Any,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        ledger_conn_id: str = MlopsLedgerHook.default_conn_name,
        num_workers: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_workers = num_workers
        self.stage = stage
        self.spec = spec
        self.mlflow_conn_id = mlflow_conn_id
        self.ledger_conn_id = ledger_conn_id
        self._process: StageProcess | StageGroup | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        with airflow_errors():
            process = self._start(context)
            with progress_log(self, context, process.out_dir) as line:
                record = process.run(line)
            return conclude(self, self.stage, record, process.result_path, context, self.ledger_conn_id)

    def on_kill(self) -> None:
        """Tell the stage to end after a checkpoint, and kill its whole process group when it has not."""
        if self._process is not None:
            self._process.stop(STOP_SECONDS)

    def _start(self, context: Context) -> StageProcess | StageGroup:
        from airflow_mlops.stages.group import StageGroup
        from airflow_mlops.stages.process import StageProcess
        from airflow_mlops.stages.runner import parse_spec, spec_data
        from airflow_mlops.training.reproducibility import environment_of

        with MlopsLedgerHook(self.ledger_conn_id).get_conn() as store:
            spec = requested(store, context, lambda: parse_spec(self.stage, spec_data(self.spec)))
        # The user's code sees neither Airflow's connections nor its keys.
        inherited = {name: value for name, value in os.environ.items() if not name.lstrip("_").startswith("AIRFLOW")}
        env = {**inherited, **MlflowHook(self.mlflow_conn_id).environment(), "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        env |= environment_of(spec)
        out_dir = try_directory(context)
        out_dir.mkdir(parents=True, exist_ok=True)
        self._process = (
            StageProcess(self.stage, spec, out_dir, env=env)
            if self.num_workers == 1
            else StageGroup(self.stage, spec, out_dir, env=env, num_workers=self.num_workers)
        )
        return self._process


@contextlib.contextmanager
def progress_log(task: BaseOperator, context: Context, directory: Path, history: Sequence[Progress] = ()) -> Iterator[Callable[[str], None]]:
    """Yield what takes the lines of a task's stage: they go to its log, and its progress to a page in `directory`, which its link leads to."""
    log = progress_of(task, context, directory, history)
    try:
        yield log.line
    finally:
        log.end()


def progress_of(task: BaseOperator, context: Context, directory: Path, history: Sequence[Progress] = ()) -> ProgressLog:
    """Return the log and the page of a task's stage.

    :param history: looks that were told before.
    """
    from airflow_mlops.stages.progress_page import ProgressLog

    path = directory / "progress.html"
    show = partial(context["ti"].xcom_push, key=REPORT_KEY, value=report_url(path))
    return ProgressLog(f"{context['ti'].task_id} of {run_of(context)}", path, partial(task.log.info, "%s"), show, history)


def conclude(task: BaseOperator, name: str, record: Record, path: Path, context: Context, ledger_conn_id: str) -> dict[str, Any]:
    """Return the reference to the record at `path` that a stage left, wherever it ran, once everything it names is verified and the ledger has it.

    :raises MlopsError: the stage's own error, or the refusal that its result is.
    """
    if record.usage is not None:
        task.log.info("Stage %s took %s", name, record.usage.sentence(prices()))
    if record.error is not None:
        raise record.error.exception()
    result = result_of(record, stage(name).Result)
    if page := result.report():
        context["ti"].xcom_push(key=REPORT_KEY, value=report_url(page))
    refusal = result.refusal()
    if isinstance(result, ValidationResult):
        _remember(task, ledger_conn_id, result.dataset, refusal)
    if refusal:
        raise refusal
    ref = ResultRef(name, str(path), file_digest(path))
    if record_of(ref) != record:
        raise ResultInvalid(f"{path} changed while it was verified. Something else writes there: find out what, and run stage {name!r} again.")
    task.log.info("%s", result.headline())
    return _handed_over(task, to_data(ref), context, ledger_conn_id)


def _handed_over(task: BaseOperator, reference: dict[str, str], context: Context, ledger_conn_id: str) -> dict[str, str]:
    """Note the reference in the ledger; wait a while for one that does not answer, for the stage's work may be that of hours."""
    for pause in (*LEDGER_PAUSES, None):
        try:
            with MlopsLedgerHook(ledger_conn_id).get_conn() as store:
                hand_over(store, context, reference)
                break
        except LedgerUnavailable as error:
            if pause is None:
                raise
            task.log.warning("The result is not in the ledger yet, without which no later task believes it. Trying again in %g s. %s", pause, error)
            time.sleep(pause)
    return reference


def _remember(task: BaseOperator, ledger_conn_id: str, version: DatasetVersion, refusal: MlopsError | None) -> None:
    from airflow_mlops.ledger.datasets import record_verdict

    try:
        with MlopsLedgerHook(ledger_conn_id).get_conn() as store:
            record_verdict(store, version, rejected_because=str(refusal) if refusal else None)
    except Exception:  # whatever it is: it must not hide what validation said
        task.log.exception("The verdict on %s %s is not in the ledger: a later run may choose the version again.", version.dataset, version.name)
