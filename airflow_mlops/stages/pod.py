"""A stage as a Kubernetes pod, without Kubernetes: what the pod is asked to be, and what is made of how it ended.

A pod's phase proves nothing. A stage is done when its result record is there; without one, why the pod ended decides what comes next: another
pod (the infrastructure took this one), one with more memory, or the failure of the task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from airflow_mlops.exceptions import SpecError

SPEC_ANNOTATION = "airflow-mlops/spec-digest"
CONTAINER = "base"
ENDED = ("Succeeded", "Failed", "Unknown")  # phases after which nothing more comes of a pod; Unknown is that of a lost node
EXCHANGE_SECRET = "/etc/airflow-mlops/exchange"
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


class PodSpec(NamedTuple):
    """The pod that runs a stage. Everything else a pod can be goes through the operator's own arguments.

    * `image`: holds this package and what the stage needs; `namespace` and `service_account` as usual.
    * `cpu`: requested, and `memory`: requested and allowed, in Kubernetes' units (``500m``, ``4Gi``).
    * `memory_ladder`: what is asked for after the stage ran out of memory, one step each time, at the end of which the task fails.
    * `num_gpus` of `gpu_resource`; `shm_size` of ``/dev/shm`` (the default of 64 MB is too little for data loaders), counted as memory.
    * `queue`: Kueue's local queue; `priority_class`, `node_selector`, `tolerations` as Kubernetes has them.
    * `volume_claim`: persistent volume claim, mounted at `mount_path`, that workers and pods share: workspace, inbox and code lie in it.
    * `environment_secret`: secret whose keys become variables of the stage's environment: ``MLFLOW_TRACKING_TOKEN``, or ``MLFLOW_TRACKING_USERNAME``
      and ``MLFLOW_TRACKING_PASSWORD``. What the connection holds does not reach a pod, whose manifest many may read.
    * `exchange`: URL of an object storage in the place of a shared volume, such as ``s3://bucket/exchange``. `exchange_secret`: secret whose key
      ``options.json`` holds fsspec's options for it, where the pod has no identity of its own. `places`: directories of workers, beside the
      workspace, that hold datasets and code; pods get what they need of them.
    * `max_interruptions`: how often the infrastructure may take the pod away before the task fails; the task's own retries are not touched.
    * `start_seconds`: how long the pod may wait for a node, and then for its image.
    * `grace_seconds`: what a pod that is to stop has for its last checkpoint, before it is killed.
    * `checkpoints`: directory for the training's checkpoints, by default one in the task's own.
    * `keep_failed_pod`: a pod whose program failed stays to be looked at; it has ended and holds no GPU.
    """

    image: str
    namespace: str = "default"
    cpu: str = "1"
    memory: str = "4Gi"
    memory_ladder: Sequence[str] = ()
    num_gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    shm_size: str = ""
    node_selector: Mapping[str, str] = {}
    tolerations: Sequence[Mapping[str, Any]] = ()
    priority_class: str = ""
    queue: str = ""
    service_account: str = ""
    volume_claim: str = ""
    mount_path: str = ""
    environment_secret: str = ""
    exchange: str = ""
    exchange_secret: str = ""
    places: Sequence[str] = ()
    max_interruptions: int = 5
    start_seconds: int = 900
    grace_seconds: int = 120
    checkpoints: str = ""
    keep_failed_pod: bool = False


class Outcome(StrEnum):
    """What an attempt came to. The first two are followed by another attempt, the others are final."""

    INTERRUPTED = "interrupted"
    OUT_OF_MEMORY = "out of memory"
    RECORD = "record"
    ERROR = "error"  # a record that says so, or does not hold
    FAILED = "failed"


@dataclass(frozen=True)
class Verdict:
    """The outcome of an attempt (None: it goes on), and the reason as a sentence; not `is_explained` where only Kubernetes' events have it."""

    outcome: Outcome | None
    reason: str = ""
    is_explained: bool = True


def pod_name(stage: str, *identity: str) -> str:
    """Return the one name that the pod of this attempt can have: who asks for it again finds it instead of making a second one."""
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:20]
    return f"mlops-{stage.replace('_', '-')}-{digest}"


def command(stage: str, name: str, spec: PodSpec, request: str, result: str) -> list[str]:
    """Return what a pod called `name` runs.

    :param request: path of the stage's spec, for pods that share a volume with the worker.
    :param result: path of its record.
    """
    told = ["--spec", request]
    if spec.exchange:
        told = ["--exchange", spec.exchange, "--request", name]
    if spec.exchange_secret:
        told += ["--exchange-options", f"{EXCHANGE_SECRET}/options.json"]
    if spec.num_gpus:
        told += ["--gpus", str(spec.num_gpus)]
    return ["python", "-m", "airflow_mlops", "stage", stage, *told, "--result", result, "--image", spec.image]


def manifest(spec: PodSpec, name: str, command: Sequence[str], spec_digest: str, step: int) -> dict[str, Any]:
    """Return the pod as Kubernetes' JSON; raise `SpecError` for a spec that no cluster can run."""
    _check(spec)
    memory = (spec.memory, *spec.memory_ladder)[step]
    limits = {"memory": memory, **({spec.gpu_resource: str(spec.num_gpus)} if spec.num_gpus else {})}
    volumes, mounts = _volumes(spec)
    container = {
        "name": CONTAINER,
        "image": spec.image,
        "command": list(command),
        "resources": {"requests": {"cpu": spec.cpu, **limits}, "limits": limits},
        "volumeMounts": mounts,
        "envFrom": [{"secretRef": {"name": spec.environment_secret}}] if spec.environment_secret else [],
        "terminationMessagePolicy": "FallbackToLogsOnError",  # the last lines of the log say why it ended
    }
    about: dict[str, Any] = {"restartPolicy": "Never", "containers": [container], "volumes": volumes}
    about["terminationGracePeriodSeconds"] = spec.grace_seconds
    about |= {"nodeSelector": dict(spec.node_selector), "tolerations": [dict(one) for one in spec.tolerations]}
    if spec.priority_class:
        about["priorityClassName"] = spec.priority_class
    if spec.service_account:
        about["serviceAccountName"] = spec.service_account
    labels = {_QUEUE_LABEL: spec.queue} if spec.queue else {}
    metadata = {"name": name, "namespace": spec.namespace, "labels": labels, "annotations": {SPEC_ANNOTATION: spec_digest}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": about}


def dropped(sent: Any, got: Any, path: str = "") -> list[str]:
    """Return the paths of what was sent to an API server and is not in what it keeps: an old one drops silently what it does not know.

    Other values are not told: servers write quantities in their own way, and admission webhooks may change what they like.
    """
    if isinstance(sent, Mapping) and isinstance(got, Mapping):
        return [each for key, value in sent.items() for each in dropped(value, got.get(key), f"{path}.{key}".lstrip("."))]
    if isinstance(sent, list) and isinstance(got, list):
        return [each for number, value in enumerate(sent) for each in dropped(value, _same(value, got, number), f"{path}[{number}]")]
    return [path] if got is None and sent not in (None, "", False, [], {}) else []


def _same(element: Any, elements: Sequence[Any], number: int) -> Any:
    """Return the element of the same name, for more may have been put before it, or else of the same number."""
    if isinstance(element, Mapping) and "name" in element:
        return next((one for one in elements if one.get("name") == element["name"]), None)
    return elements[number] if number < len(elements) else None


def advice(verdict: Verdict, spec: PodSpec, num_interruptions: int, step: int) -> str:
    """Return what a person can do about a `verdict` that is no result, or nothing where another pod may try.

    :param num_interruptions: how often the infrastructure took a pod of this task away before.
    :param step: of the memory ladder, that of the pod.
    """
    if verdict.outcome == Outcome.INTERRUPTED:
        if num_interruptions < spec.max_interruptions:
            return ""
        return f"It was taken away {num_interruptions + 1} times: find out by what, or raise max_interruptions."
    if verdict.outcome == Outcome.OUT_OF_MEMORY:
        return "" if step < len(spec.memory_ladder) else "Raise memory, or give memory_ladder another step."
    return "Look at its log above; it is not tried again, because it would end the same way."


def _volumes(spec: PodSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    if spec.shm_size:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": spec.shm_size}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    if spec.volume_claim:
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": spec.volume_claim}})
        mounts.append({"name": "shared", "mountPath": spec.mount_path})
    if spec.exchange_secret:
        volumes.append({"name": "exchange", "secret": {"secretName": spec.exchange_secret}})
        mounts.append({"name": "exchange", "mountPath": EXCHANGE_SECRET, "readOnly": True})
    for number, place in enumerate(spec.places if spec.exchange else ()):
        volumes.append({"name": f"place-{number}", "emptyDir": {}})
        mounts.append({"name": f"place-{number}", "mountPath": place})
    return volumes, mounts


def _check(spec: PodSpec) -> None:
    for name in ("num_gpus", "max_interruptions", "start_seconds", "grace_seconds"):
        value = getattr(spec, name)
        if not isinstance(value, int) or value < 0:
            raise SpecError(f"{name} is {value!r}; give a whole number, 0 or more.")
    if isinstance(spec.memory_ladder, str):
        raise SpecError(f"memory_ladder is {spec.memory_ladder!r}; expected a list of steps, for instance ['32Gi', '64Gi'].")
    if spec.num_gpus and "/" not in spec.gpu_resource:
        raise SpecError(f"gpu_resource is {spec.gpu_resource!r}; expected a name such as nvidia.com/gpu or amd.com/gpu.")
    if bool(spec.volume_claim) != bool(spec.mount_path):
        raise SpecError("volume_claim and mount_path belong together: give both, or neither where the image has what the stage needs.")
    if not spec.exchange and (spec.exchange_secret or spec.places):
        raise SpecError("exchange_secret and places are for pods with an exchange: give its URL, or leave them out.")
