"""Wait until a stage's pod has ended, and meanwhile tell its log and show its progress."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.triggers.base import TriggerEvent
from kubernetes.client import CoreV1Api
from kubernetes.client.exceptions import ApiException

from airflow_mlops.artifacts import canonical_json, write_atomically
from airflow_mlops.hooks.container_log import ContainerLog
from airflow_mlops.hooks.kubernetes import connected, refusal
from airflow_mlops.results import to_data
from airflow_mlops.stages.pod_log import Position
from airflow_mlops.stages.progress_page import ProgressLog
from airflow_mlops.stages.told import Enough, Told, for_one_look, noted

if TYPE_CHECKING:
    from kubernetes_asyncio.client.models import V1Pod


class StagePodTrigger(KubernetesPodTrigger):
    """Tells the pod's new lines at each look, into the task's log; yields the provider's event, in whose ``told`` is what the worker need not tell.

    :param title: of the progress page in `directory`, the attempt's. What was told is noted beside it for another triggerer. Where this machine
        has no such directory there is neither.
    """

    def __init__(self, *, title: str, directory: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.title = title
        self.directory = directory
        self._position = Position()
        self._progress: ProgressLog | None = None
        self._client: CoreV1Api | None = None
        self._over = False
        self._warned = ""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        fields = super().serialize()[1]
        return f"{type(self).__module__}.{type(self).__qualname__}", {**fields, "title": self.title, "directory": self.directory}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async for event in super().run():
            yield TriggerEvent({**event.payload, "told": to_data(self._told())})

    async def _get_pod(self) -> V1Pod:  # type: ignore[override]  # there, a decorator hides what it is
        """Look at the pod, as the provider does at every poll, and tell what it has written since."""
        pod = await super()._get_pod()
        if self.get_logs:
            extras = await self.hook.get_conn_extras()
            try:
                await asyncio.to_thread(self._tell_new, extras)
            except asyncio.CancelledError:
                self._over = True  # the thread itself cannot be cancelled, and another triggerer tells these lines
                raise
        return pod

    def _tell_new(self, extras: dict[str, Any]) -> None:
        """Tell what is new; whatever is wrong with that, the pod is waited for all the same, and the next look tries again."""
        try:
            self._read(extras)
        except Exception as error:  # said once, for there is a look every few seconds
            words = str(refusal(error) if isinstance(error, ApiException) else error)
            if words != self._warned:
                self.log.warning("The log of pod %s is not told while it runs: %s", self.pod_name, words)
            self._warned, self._client = words, None

    def _read(self, extras: dict[str, Any]) -> None:
        home = Path(self.directory)
        note = home / f"told-{self.trigger_start_time:%Y%m%dT%H%M%S%f}.json"  # of this deferral: with each one, Airflow begins its log anew
        if self._progress is None:
            before = noted(note)
            page = home / "progress.html" if home.is_dir() else None
            self._position, self._progress = before.position, ProgressLog(self.title, page, self._say, history=before.history)
        position = dataclasses.replace(self._position)
        log = ContainerLog(self._connected(extras), self.pod_namespace, self.pod_name, self.base_container_name, self._position)
        with contextlib.suppress(Enough):
            log.tell_new(for_one_look(self._progress.line, lambda: self._over), ended=False)
        if self._position != position and home.is_dir():
            self._progress.show()
            write_atomically(note, canonical_json(to_data(self._told())))

    def _say(self, line: str) -> None:
        self.log.info("%s", line)

    def _told(self) -> Told:
        return Told(self._position, tuple(self._progress.history) if self._progress else ())

    def _connected(self, extras: dict[str, Any]) -> CoreV1Api:
        """Return a client as the provider's own, but one that may be used in a thread."""
        if self._client is None:
            hook = KubernetesHook(
                self.kubernetes_conn_id, in_cluster=self.in_cluster, config_dict=self.config_dict, cluster_context=self.cluster_context
            )
            hook.conn_extras = extras
            self._client = CoreV1Api(connected(hook))
        return self._client
