"""The log of a stage's pod in the task's log: told by the worker, or by the triggerer while the task is deferred."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import AirflowException

from airflow_mlops.operators.stage import progress_log, progress_of
from airflow_mlops.stages.pod import ENDED
from airflow_mlops.stages.pod_log import Position
from airflow_mlops.stages.progress_page import ProgressLog
from airflow_mlops.triggers.pod import StagePodTrigger

if TYPE_CHECKING:
    from pathlib import Path

    from airflow.sdk import Context
    from kubernetes.client import V1Pod

    from airflow_mlops.hooks.kubernetes import StagePod
    from airflow_mlops.stages.told import Told


class ToldPodOperator(KubernetesPodOperator):
    """Tells every line of its pod's log once, and shows the progress of a training on a page of the attempt's directory.

    Who builds on it says which pod that is, and what a trigger told of it before.
    """

    _context: Context
    _directory: Path
    _pod: StagePod
    _told: Told

    def defer(self, *, trigger: Any, **arguments: Any) -> NoReturn:
        """Wait in the triggerer, by a trigger that tells the log and shows the progress meanwhile; the page is there from now on."""
        progress = progress_of(self, self._context, self._directory)
        progress.begin()
        fields = {**trigger.serialize()[1], "title": progress.title, "directory": str(self._directory)}
        super().defer(trigger=StagePodTrigger(**fields), **arguments)

    def await_pod_completion(self, pod: V1Pod) -> None:  # type: ignore[override]  # there, a decorator hides what it takes
        """Follow the pod's log until it has ended; every line is told once, whatever becomes of the connection."""
        with progress_log(self, self._context, self._directory, self._told.history) as tell:
            container = self.base_container_name if self.get_logs else None
            seen = self._pod.follow(container, tell, pause=self.base_container_status_polling_interval)
        if seen is None or seen.status.phase == "Unknown":
            raise AirflowException("it is gone, or its node does not answer")  # there is no completion to wait for

    def _write_logs(self, pod: V1Pod, follow: bool = False, since_time: Any = None) -> None:  # type: ignore[override]
        """Tell what the trigger did not tell of the pod that ended while the task was deferred."""
        self.await_pod_completion(pod)

    def _tell_again(self, pod: V1Pod | None) -> None:
        """Tell all that a trigger told of a pod that another one follows: Airflow's triggerer begins its log of a try anew with every deferral."""
        if self._told.position.newest and pod is not None and pod.status.phase in ENDED:
            self.log.info("The log of pod %s, again from its beginning, because what the triggerer told of it may be gone:", self._pod.name)
            self._pod.position = Position()
            log = ProgressLog("", None, partial(self.log.info, "%s"))
            self._pod.follow(self.base_container_name, log.line, pause=self.base_container_status_polling_interval)
