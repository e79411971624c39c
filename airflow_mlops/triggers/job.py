"""Wait until a distributed training has ended in the cluster, or cannot begin, and meanwhile tell how it goes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_mlops.artifacts import canonical_json, write_atomically
from airflow_mlops.results import to_data
from airflow_mlops.stages.chief import ToldChief
from airflow_mlops.stages.progress_page import ProgressLog
from airflow_mlops.stages.told import Enough, for_one_look, read_note

if TYPE_CHECKING:
    from airflow_mlops.hooks.training_job import ChiefLog, TrainingJob


class TrainingJobTrigger(BaseTrigger):
    """Yields ``{"name": ..., "deadline": ..., "told": ...}`` when there is something to decide about the Job or TrainJob `name`, or its time is over.

    At each look the new lines of worker 0 go into the task's log; `told` is what the worker need not tell. Nothing is deleted when it ends.

    :param job_spec: fields of `airflow_mlops.stages.job.JobSpec`, the pod's among them as fields of its own.
    :param connection: arguments of KubernetesHook.
    :param poll_seconds: between two looks.
    :param deadline: of the task's try, in epoch seconds; None for no end.
    :param title: of the progress page.
    :param note: file in the attempt's directory, in which it is noted for another triggerer what was told; the page lies beside it. Where this
        machine has no such directory there is neither.
    """

    def __init__(
        self, job_spec: dict[str, Any], name: str, connection: dict[str, Any], poll_seconds: float, deadline: float | None, title: str, note: str
    ) -> None:
        super().__init__()
        self.job_spec = job_spec
        self.name = name
        self.connection = connection
        self.poll_seconds = poll_seconds
        self.deadline = deadline
        self.title = title
        self.note = note
        self._chief_log: ChiefLog | None = None
        self._progress: ProgressLog | None = None
        self._over = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("job_spec", "name", "connection", "poll_seconds", "deadline", "title", "note")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        try:
            while not await asyncio.to_thread(self._is_over) and not (self.deadline and time.time() >= self.deadline):
                await asyncio.sleep(self.poll_seconds)
        except asyncio.CancelledError:
            self._over = True  # the thread itself cannot be cancelled, and another triggerer tells these lines
            raise
        yield TriggerEvent({"name": self.name, "deadline": self.deadline, "told": self._told()})

    def _is_over(self) -> bool:
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook  # in a thread, for it takes a second

        from airflow_mlops.hooks.kubernetes import connected
        from airflow_mlops.hooks.training_job import TrainingJob
        from airflow_mlops.stages.job import JobSpec
        from airflow_mlops.stages.job_verdicts import judge, waited_seconds
        from airflow_mlops.stages.pod import PodSpec

        spec = JobSpec(**{**self.job_spec, "pod": PodSpec(**self.job_spec["pod"])})
        job = TrainingJob(connected(KubernetesHook(**self.connection)), spec, self.name, self.log.warning)
        pods = job.pods()
        waited_long = waited_seconds(pods, time.time()) > spec.pod.start_seconds
        over = judge(job.seen(), pods, has_record=False, waited_long=waited_long).outcome is not None
        self._tell_new(job, pods)
        return over

    def _tell_new(self, job: TrainingJob, pods: list[dict[str, Any]]) -> None:
        """Tell what worker 0 has written since the last look, as long as one may take, and note that."""
        from airflow_mlops.hooks.training_job import ChiefLog

        note, has_home = Path(self.note), Path(self.note).parent.is_dir()
        if self._chief_log is None or self._progress is None:
            earlier = read_note(ToldChief, note)
            self._chief_log = ChiefLog(earlier.positions, self.log.warning)
            page = note.with_name("progress.html") if has_home else None
            self._progress = ProgressLog(self.title, page, partial(self.log.info, "%s"), history=earlier.history)
        before = self._told()
        with contextlib.suppress(Enough):
            self._chief_log.tell_new(job, pods, for_one_look(self._progress.line, lambda: self._over))
        if self._told() == before or not has_home:
            return
        self._progress.show()
        try:
            write_atomically(note, canonical_json(self._told()))
        except OSError as error:
            self.log.warning("It is not noted how far the log was told, another triggerer would tell it again: %s", error)

    def _told(self) -> dict[str, Any]:
        """Return what was told, as JSON."""
        if self._chief_log is None or self._progress is None:
            return {}
        return dict(to_data(ToldChief(self._chief_log.positions, tuple(self._progress.history))))
