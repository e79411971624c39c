"""The objects of one distributed training under their one name: made, looked at and deleted. Importing this needs Kubernetes' client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from airflow.sdk.exceptions import AirflowFailException
from kubernetes.client import ApiClient, CoreV1Api, CustomObjectsApi
from kubernetes.client.exceptions import ApiException

from airflow_mlops.hooks.kubernetes import patiently, refusal
from airflow_mlops.stages.job import JobSpec, Place, backend_of, has_ended, too_old
from airflow_mlops.stages.pod import SPEC_ANNOTATION, dropped

_POD_LABEL = {"job": "job-name", "trainjob": "jobset.sigs.k8s.io/jobset-name"}
_SERVICES = Place("", "v1", "services")


class TrainingJob:
    """One attempt at a distributed training in the cluster.

    :param warn: told, as a logger is, when the API server is busy.
    """

    def __init__(self, api: ApiClient, spec: JobSpec, name: str, warn: Callable[..., object]) -> None:
        self.name, self.namespace = name, spec.pod.namespace
        self._api, self._core, self._objects, self._warn = api, CoreV1Api(api), CustomObjectsApi(api), warn
        self._spec, self._place = spec, backend_of(spec).place

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
        """Return its pods that are there."""
        selector = f"{_POD_LABEL[self._spec.backend]}={self.name}"
        found = self._call(lambda: self._core.list_namespaced_pod(self.namespace, label_selector=selector).items)
        return list(self._api.sanitize_for_serialization(found))

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
