"""Wait until a distributed training has ended in the cluster, or can not begin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent


class TrainingJobTrigger(BaseTrigger):
    """Yields ``{"name": ..., "deadline": ...}`` when there is something to decide about the Job or TrainJob `name`, or its time is over.

    Nothing is deleted when it ends.

    :param job_spec: fields of `airflow_mlops.stages.job.JobSpec`, the pod's among them as fields of its own.
    :param connection: arguments of KubernetesHook.
    :param poll_seconds: between two looks.
    :param deadline: of the task's try, in epoch seconds; None for no end.
    """

    def __init__(self, job_spec: dict[str, Any], name: str, connection: dict[str, Any], poll_seconds: float, deadline: float | None) -> None:
        super().__init__()
        self.job_spec = job_spec
        self.name = name
        self.connection = connection
        self.poll_seconds = poll_seconds
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("job_spec", "name", "connection", "poll_seconds", "deadline")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        while not await asyncio.to_thread(self._is_over) and not (self.deadline and time.time() >= self.deadline):
            await asyncio.sleep(self.poll_seconds)
        yield TriggerEvent({"name": self.name, "deadline": self.deadline})

    def _is_over(self) -> bool:
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook  # in a thread, for it takes a second

        from airflow_mlops.hooks.training_job import TrainingJob
        from airflow_mlops.stages.job import JobSpec, judge, waited_seconds
        from airflow_mlops.stages.pod import PodSpec

        spec = JobSpec(**{**self.job_spec, "pod": PodSpec(**self.job_spec["pod"])})
        job = TrainingJob(KubernetesHook(**self.connection).get_conn(), spec, self.name, self.log.warning)
        pods = job.pods()
        waited_long = waited_seconds(pods, time.time()) > spec.pod.start_seconds
        return judge(job.seen(), pods, has_record=False, waited_long=waited_long).outcome is not None
