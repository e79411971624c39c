"""A training by several pods, without Kubernetes: what the cluster is asked for; `job_verdicts` says what is made of how it ended.

An Indexed Job gives every worker a number and, with a headless Service, a name by which the others find it; TensorFlow reads both from
``TF_CONFIG``. A Kubeflow `TrainJob` makes the same pods from a runtime that the cluster's owner keeps. As for a pod, only the result record of
worker 0 shows that the training was done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from airflow_mlops.exceptions import SpecError, unknown_name
from airflow_mlops.stages.chief import INDEX_ANNOTATION
from airflow_mlops.stages.pod import CONTAINER, SPEC_ANNOTATION, PodSpec
from airflow_mlops.stages.pod import command as pod_command
from airflow_mlops.stages.pod import manifest as pod_manifest

PORT = 2222
INDEX = "JOB_COMPLETION_INDEX"
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
NEEDS = {  # the Kubernetes that each field came with; an older one drops it silently
    "spec.completionMode": "1.24 (1.21 with a feature gate)",
    "spec.suspend": "1.24 (1.21 with a feature gate)",
    "spec.podFailurePolicy": "1.26 (1.25 with a feature gate)",
}


class JobSpec(NamedTuple):
    """Several pods that train one model together.

    * `pod`: what each worker is; its queue is the whole training's, and a memory ladder is climbed by all of them. What has no effect is refused.
    * `num_workers`: from 2; all must run at once, so a queue such as Kueue's should admit them together.
    * `backend`: ``job`` for an Indexed Job, ``trainjob`` for Kubeflow's Trainer.
    * `runtime`: the ClusterTrainingRuntime of a TrainJob; it must have one replicated job ``node`` and mount what workers and pods share.
    * `max_replacements`: how often Kubernetes may replace a worker of backend ``job`` that its infrastructure took, within one attempt.
    * `exchange_conn_id`: connection whose extra field `storage_options` are Airflow's for the pod's `exchange`; empty: its environment says them.
    """

    pod: PodSpec
    num_workers: int = 2
    backend: str = "job"
    runtime: str = ""
    max_replacements: int = 6
    exchange_conn_id: str = ""


class Work(NamedTuple):
    """What the workers of one attempt run, under the attempt's `name`; ``$(JOB_COMPLETION_INDEX)`` in `command` becomes the worker's number.

    * `step`: of the memory ladder, from 0.
    * `variables`: what every worker's process must be started with.
    """

    name: str
    command: Sequence[str]
    spec_digest: str
    step: int = 0
    variables: Mapping[str, str] = {}


class Place(NamedTuple):
    """Where one kind of object lies in Kubernetes' API."""

    group: str
    version: str
    plural: str


class Backend(NamedTuple):
    """One engine: its kind of object, how its workers are asked for, what of a `PodSpec` it cannot heed, and how it calls the stage's container."""

    place: Place
    manifest: Callable[[JobSpec, Work], dict[str, Any]]
    unheeded: tuple[str, ...]
    container: str


def workload(spec: JobSpec, work: Work) -> list[tuple[Place, dict[str, Any]]]:
    """Return what is to be created, in this order; the last object is the one that is watched.

    :raises SpecError: no cluster can run it.
    """
    backend = backend_of(spec)
    objects = [(backend.place, backend.manifest(spec, work))]
    return [(Place("", "v1", "services"), service(spec, work)), *objects] if spec.backend == "job" else objects


def backend_of(spec: JobSpec) -> Backend:
    """Return the engine that `spec` names; raise `SpecError` for an impossible spec."""
    if spec.backend not in BACKENDS:
        raise unknown_name("backend", spec.backend, BACKENDS)
    if spec.num_workers < 2:
        raise SpecError(f"num_workers is {spec.num_workers}; give 2 or more, or train in one pod with TrainModelPodOperator.")
    if (spec.backend == "trainjob") != bool(spec.runtime):
        raise SpecError("runtime names the ClusterTrainingRuntime of backend 'trainjob': give it there, and only there.")
    backend, usual = BACKENDS[spec.backend], PodSpec._field_defaults
    if lost := [name for name in backend.unheeded if (getattr(spec.pod, name) or None) != (usual[name] or None)]:
        raise SpecError(f"{', '.join(lost)} of the pod has no effect with backend {spec.backend!r}: leave it out, or train in one pod.")
    return backend


def worker_command(stage: str, name: str, spec: JobSpec, directory: str) -> list[str]:
    """Return what each worker of the attempt called `name` runs; their directories lie beside each other, so that all find the same checkpoints.

    :param directory: of the attempt; what an exchange does not bring is asked for there.
    """
    words = pod_command(stage, name, spec.pod, f"{directory}/spec.json", f"{directory}-worker-$({INDEX})/result.json")
    return [*words, "--worker", f"$({INDEX})"] if spec.pod.exchange else words


def environment(spec: JobSpec, work: Work, host: Callable[[str, int], str]) -> list[dict[str, Any]]:
    """Return the variables of each worker, by which it knows its number, which Kubernetes fills in, and the others at `host` of name and number."""
    cluster = {"worker": [f"{host(work.name, index)}:{PORT}" for index in range(spec.num_workers)]}
    config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": INDEX}}).replace(f'"{INDEX}"', f"$({INDEX})")
    field = {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{INDEX_ANNOTATION}']"}}
    others = [{"name": name, "value": value} for name, value in work.variables.items()]
    return [{"name": INDEX, "valueFrom": field}, {"name": "TF_CONFIG", "value": config}, *others]


def service(spec: JobSpec, work: Work) -> dict[str, Any]:
    """Return the headless Service that gives the Job's pods their names, before they are ready too: they must meet to become so."""
    about = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": work.name}, "ports": [{"name": "grpc", "port": PORT}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(spec, work, {}), "spec": about}


def too_old(lost: Sequence[str], kind: str) -> str:
    """Return what to tell a person whose cluster dropped the fields `lost` of what it was sent."""
    need = "; ".join(f"{field} needs Kubernetes {version}" for field, version in NEEDS.items() if any(each.startswith(field) for each in lost))
    return (
        f"Kubernetes drops {', '.join(lost)} of the {kind}, as one does that is too old for it{f': {need}' if need else ''}. "
        "Take a newer cluster, or train in one pod with TrainModelPodOperator."
    )


def _metadata(spec: JobSpec, work: Work, labels: Mapping[str, str]) -> dict[str, Any]:
    return {"name": work.name, "namespace": spec.pod.namespace, "labels": dict(labels), "annotations": {SPEC_ANNOTATION: work.spec_digest}}


def _queue(spec: JobSpec) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the label that names the queue, and that it is the queue who lets the workers begin."""
    return ({_QUEUE_LABEL: spec.pod.queue}, {"suspend": True}) if spec.pod.queue else ({}, {})


def _template(spec: JobSpec, work: Work) -> dict[str, Any]:
    return pod_manifest(spec.pod._replace(queue=""), work.name, work.command, work.spec_digest, work.step)["spec"]  # type: ignore[no-any-return]


def _job(spec: JobSpec, work: Work) -> dict[str, Any]:
    about = _template(spec, work)
    about["containers"][0] |= {"env": environment(spec, work, _job_host), "ports": [{"containerPort": PORT}]}
    labels, held = _queue(spec)
    job = {
        "completionMode": "Indexed",
        "completions": spec.num_workers,
        "parallelism": spec.num_workers,
        "backoffLimit": spec.max_replacements,
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": [0]}},
            ]
        },
        "template": {"metadata": {"annotations": {SPEC_ANNOTATION: work.spec_digest}}, "spec": {**about, "subdomain": work.name}},
        **held,
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(spec, work, labels), "spec": job}


def _train_job(spec: JobSpec, work: Work) -> dict[str, Any]:
    (container,) = _template(spec, work)["containers"]
    labels, held = _queue(spec)
    trainer = {
        "image": container["image"],
        "command": container["command"],
        "env": environment(spec, work, _train_job_host),
        "numNodes": spec.num_workers,
        "resourcesPerNode": container["resources"],
    }
    reference = {"apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": spec.runtime}
    about = {"runtimeRef": reference, "trainer": trainer, **held}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(spec, work, labels),
        "spec": about,
    }


def _job_host(name: str, index: int) -> str:
    return f"{name}-{index}.{name}"


def _train_job_host(name: str, index: int) -> str:
    return f"{name}-node-0-{index}.{name}"


_ALONE = ("keep_failed_pod",)
_EXCHANGE = ("environment_secret", "exchange", "exchange_secret", "places")
_RUNTIME_S = ("shm_size", "node_selector", "tolerations", "priority_class", "service_account", "volume_claim", "mount_path", "grace_seconds")
BACKENDS: dict[str, Backend] = {
    "job": Backend(Place("batch", "v1", "jobs"), _job, _ALONE, CONTAINER),
    "trainjob": Backend(Place("trainer.kubeflow.org", "v1alpha1", "trainjobs"), _train_job, (*_ALONE, *_EXCHANGE, *_RUNTIME_S), "node"),
}
