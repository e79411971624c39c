"""The objects of one distributed training under their one name: made, looked at and deleted. Importing this needs Kubernetes' client."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from airflow.sdk.exceptions import AirflowFailException
from kubernetes.client import ApiClient, CoreV1Api, CustomObjectsApi
from kubernetes.client.exceptions import ApiException

from airflow_mlops.hooks.container_log import ContainerLog
from airflow_mlops.hooks.kubernetes import StagePod, patiently, refusal
from airflow_mlops.stages.chief import chiefs
from airflow_mlops.stages.job import JobSpec, Place, backend_of, too_old
from airflow_mlops.stages.job_verdicts import has_ended
from airflow_mlops.stages.pod import CONTAINER, ENDED, SPEC_ANNOTATION, Verdict, dropped
from airflow_mlops.stages.pod_log import Position
from airflow_mlops.stages.verdicts import explained

_POD_LABEL = {"job": "job-name", "trainjob": "jobset.sigs.k8s.io/jobset-name"}
_SERVICES = Place("", "v1", "services")
_LAST_READS = 3  # of the logs of pods that have ended


class TrainingJob:
    """One attempt at a distributed training in the cluster.

    :param warn: told, as a logger is, when the API server is busy.
    """

    def __init__(self, api: ApiClient, spec: JobSpec, name: str, warn: Callable[..., object]) -> None:
        self.name, self.namespace = name, spec.pod.namespace
        self._api, self._core, self._objects, self._warn = api, CoreV1Api(api), CustomObjectsApi(api), warn
        self._spec, self._place, self._container = spec, backend_of(spec).place, backend_of(spec).container

    def create(self, objects: list[tuple[Place, dict[str, Any]]]) -> None:
        """Make all objects, or find those that were made for the same request before.

        :raises AirflowFailException: Kubernetes refuses one, keeps only a part of it, or has one of this name for another request.
        """
        for place, body in objects:
            made = self._call(partial(self._made, place, body))
            if lost := dropped(body, made):
                self.delete()
                raise AirflowFailException(too_old(lost, body["kind"]))
            if made["metadata"].get("annotations", {}).get(SPEC_ANNOTATION) != body["metadata"]["annotations"][SPEC_ANNOTATION]:
                raise AirflowFailException(f"{body['kind']} {self.name} is there for another request; delete it and clear this task.")

    def seen(self) -> dict[str, Any] | None:
        """Return the Job or TrainJob as Kubernetes has it, None when it is gone."""
        found: dict[str, Any] | None = self._call(partial(self._read, self._place), gone=None)
        return found

    def is_over(self) -> bool:
        """Whether it has ended, or is gone: none of its pods is at work any more."""
        seen = self.seen()
        return seen is None or has_ended(seen)

    def pods(self) -> list[dict[str, Any]]:
        """Return its pods that are there; in their status the container that runs the stage has the name by which pods are judged."""
        selector = f"{_POD_LABEL[self._spec.backend]}={self.name}"
        found = self._call(lambda: self._core.list_namespaced_pod(self.namespace, label_selector=selector).items)
        pods = list(self._api.sanitize_for_serialization(found))
        for one in (status for pod in pods for status in (pod.get("status") or {}).get("containerStatuses") or ()):
            one["name"] = CONTAINER if one["name"] == self._container else one["name"]
        return pods

    def log_of(self, pod: str, position: Position) -> ContainerLog:
        """Return the log of a worker, by the name of its pod."""
        return ContainerLog(self._core, self.namespace, pod, self._container, position)

    def explained(self, verdict: Verdict, pods: Sequence[Mapping[str, Any]]) -> Verdict:
        """Return what is to be made of a training that has a `verdict` without a reason, by the events about those of `pods` that wait."""
        for pod in pods:
            if pod["status"]["phase"] == "Pending":
                about = pod["metadata"]
                verdict = explained(verdict, pod, StagePod(self._core, self.namespace, about["name"], self._warn).events(about["uid"]))
        return verdict

    def delete(self) -> None:
        """Take everything away; the Job goes when its pods have ended."""
        for place in (self._place, *([_SERVICES] if self._spec.backend == "job" else [])):
            self._call(partial(self._delete, place), gone=None)

    def _call(self, call: Callable[[], Any], **gone: Any) -> Any:
        try:
            return patiently(call, self._warn)
        except ApiException as error:
            if error.status == 404 and gone:
                return gone["gone"]
            raise refusal(error) from error

    def _made(self, place: Place, body: dict[str, Any]) -> Mapping[str, Any]:
        try:
            if place == _SERVICES:
                self._core.create_namespaced_service(self.namespace, body)
            else:
                self._objects.create_namespaced_custom_object(*place[:2], self.namespace, place.plural, body)
        except ApiException as error:
            if error.status != 409:
                raise
            self._warn("%s %s is there already: going on with it.", body["kind"], self.name)
        return self._read(place)

    def _read(self, place: Place) -> dict[str, Any]:
        if place == _SERVICES:
            return dict(self._api.sanitize_for_serialization(self._core.read_namespaced_service(self.name, self.namespace)))
        return dict(self._objects.get_namespaced_custom_object(*place[:2], self.namespace, place.plural, self.name))

    def _delete(self, place: Place) -> None:
        if place == _SERVICES:
            self._core.delete_namespaced_service(self.name, self.namespace)
        else:
            self._objects.delete_namespaced_custom_object(*place[:2], self.namespace, place.plural, self.name, propagation_policy="Foreground")


class ChiefLog:
    """Tells each line of worker 0 once, and those of a pod that takes the place of another from its beginning.

    :param positions: how far the log of each pod was told before, by its name; they move along.
    """

    def __init__(self, positions: Mapping[str, Position], warn: Callable[..., object]) -> None:
        self.positions = dict(positions)
        self._warn, self._warned, self._over = warn, False, set[str]()

    def tell_new(self, job: TrainingJob, pods: Sequence[Mapping[str, Any]], tell: Callable[[str], object]) -> bool:
        """Tell what is new in the logs of those of `pods` that are or were worker 0; return whether nothing more comes of any that has ended.

        That a log may not be read is said once, as a warning: a training is worth more than its log.
        """
        whole = True
        for pod in chiefs(pods):
            name, ended = pod["metadata"]["name"], (pod.get("status") or {}).get("phase") in ENDED
            if name in self._over:
                continue
            try:
                read = job.log_of(name, self.positions.setdefault(name, Position())).tell_new(tell, ended=ended)
            except ApiException as error:
                if not self._warned:
                    self._warn("The log of worker 0 is not told, the training goes on all the same: %s", refusal(error))
                self._warned = read = True
            if ended and read:
                self._over.add(name)
            whole = whole and (read or not ended)
        return whole

    def tell_rest(self, job: TrainingJob, tell: Callable[[str], object], pause: float) -> None:
        """Tell what is not told yet of pods that have ended; what breaks off is asked for again after `pause` seconds, and given up in the end."""
        for _ in range(_LAST_READS):
            if self.tell_new(job, job.pods(), tell):
                return
            time.sleep(pause)
