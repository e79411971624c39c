"""A stage as a Kubernetes pod, without Kubernetes: what the pod is asked to be, and what is made of how it ended.

A pod's phase proves nothing. A stage is done when its result record is there; without one, why the pod ended decides what comes next: another
pod (the infrastructure took this one), one with more memory, or the failure of the task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from airflow_mlops.exceptions import SpecError

SPEC_ANNOTATION = "airflow-mlops/spec-digest"
CONTAINER = "base"
ENDED = ("Succeeded", "Failed", "Unknown")  # phases after which nothing more comes of a pod; Unknown is that of a lost node
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_TAKEN = ("Evicted", "Preempted", "Preempting", "NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity", "UnexpectedAdmissionError")
_PULLING = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable")
_NO_SUCH_IMAGE = ("not found", "manifest unknown", "denied", "unauthorized", "authorization failed")  # what registries say that no waiting changes
_HOPELESS = ("InvalidImageName", "ErrImageNeverPull")
_KILLED = 137  # 128 + SIGKILL


class PodSpec(NamedTuple):
    """The pod that runs a stage. Everything else a pod can be goes through the operator's own arguments.

    * `image`: holds this package and what the stage needs; `namespace` and `service_account` as usual.
    * `cpu`: requested, and `memory`: requested and allowed, in Kubernetes' units (``500m``, ``4Gi``).
    * `memory_ladder`: what is asked for after the stage ran out of memory, one step each time, at the end of which the task fails.
    * `num_gpus` of `gpu_resource`; `shm_size` of ``/dev/shm`` (the default of 64 MB is too little for data loaders), counted as memory.
    * `queue`: Kueue's local queue; `priority_class`, `node_selector`, `tolerations` as Kubernetes has them.
    * `volume_claim`: persistent volume claim, mounted at `mount_path`, that workers and pods share: workspace, inbox and code lie in it.
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
    """The outcome of an attempt (None: it goes on), and the reason as a sentence."""

    outcome: Outcome | None
    reason: str = ""


def pod_name(stage: str, *identity: str) -> str:
    """Return the one name that the pod of this attempt can have: who asks for it again finds it instead of making a second one."""
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:20]
    return f"mlops-{stage.replace('_', '-')}-{digest}"


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


def judge(pod: Mapping[str, Any] | None, *, has_record: bool, waited_long: bool = False) -> Verdict:
    """Return what is to be made of a pod, Kubernetes' JSON of it, or None when it is gone.

    :param has_record: whether the result record is there; it counts whatever happened to the pod afterwards.
    :param waited_long: whether the pod has had the time to start that it may have.
    """
    if pod is None:
        return Verdict(Outcome.RECORD) if has_record else Verdict(Outcome.INTERRUPTED, "The pod was deleted before it left a result record.")
    status = pod.get("status") or {}
    phase = status.get("phase", "Pending")
    if phase == "Succeeded" and not has_record:
        return Verdict(Outcome.FAILED, "The pod ended as succeeded and left no result record: nothing shows that the stage was done.")
    if phase in ("Succeeded", "Failed") and has_record:
        return Verdict(Outcome.RECORD)
    if phase == "Failed":
        return _ended(pod, status)
    if phase == "Unknown":
        return Verdict(Outcome.INTERRUPTED, "The pod's node does not answer any more.")
    if phase != "Pending" or _gated(status):
        return Verdict(None)
    return _waiting(status) if waited_long or _state(status, "waiting").get("reason") in _HOPELESS else Verdict(None)


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


def _gated(status: Mapping[str, Any]) -> bool:
    """Whether the pod waits for its turn in a queue: that may take as long as it takes."""
    return any(one["type"] == "PodScheduled" and one.get("reason") == "SchedulingGated" for one in status.get("conditions") or ())


def _ended(pod: Mapping[str, Any], status: Mapping[str, Any]) -> Verdict:
    reason, message = status.get("reason", ""), status.get("message", "")
    disrupted = [one.get("message", "") for one in status.get("conditions") or () if one["type"] == "DisruptionTarget" and one["status"] == "True"]
    end = _state(status, "terminated")
    if reason in _TAKEN or disrupted or (pod["metadata"].get("deletionTimestamp") and end.get("reason") != "OOMKilled"):
        return Verdict(Outcome.INTERRUPTED, f"The pod was taken away: {reason or 'deleted'}. {message or ' '.join(disrupted)}".strip())
    if end.get("reason") == "OOMKilled":
        return Verdict(Outcome.OUT_OF_MEMORY, "The stage needed more memory than its pod may have.")
    code = end.get("exitCode", "unknown")
    said = (end.get("message") or message or "").strip()
    words = f" Its last words:\n{said}\n" if said else ""
    killed = " Something killed it; on some nodes that is all one sees of too little memory." if code == _KILLED else ""
    return Verdict(Outcome.FAILED, f"The stage's program ended with exit code {code} and left no result record.{killed}{words}")


def _waiting(status: Mapping[str, Any]) -> Verdict:
    """Say why a pod does not start, when it has waited long enough."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Verdict(
                Outcome.FAILED, f"No node takes the pod: {condition.get('message', 'no reason was given')} Ask for less, or add such a node."
            )
    waiting = _state(status, "waiting")
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _PULLING and any(words in message.lower() for words in _NO_SUCH_IMAGE):
        return Verdict(Outcome.FAILED, f"There is no such image for this pod: {message} Correct its name, or its image pull secret.")
    if reason in _PULLING:
        return Verdict(Outcome.INTERRUPTED, f"The image can not be pulled: {message or reason}")
    if not reason or reason == "ContainerCreating":
        return Verdict(Outcome.INTERRUPTED, "The pod's container was not made in time; `kubectl describe` shows what it waits for.")
    return Verdict(Outcome.FAILED, f"The pod's container can not be made: {reason}: {message} Correct the image, secrets or volumes that it names.")


def _state(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    statuses: Iterable[Mapping[str, Any]] = status.get("containerStatuses") or ()
    return next((one["state"].get(name) or {} for one in statuses if one["name"] == CONTAINER), {})


def _volumes(spec: PodSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes, mounts = [], []
    if spec.shm_size:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": spec.shm_size}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    if spec.volume_claim:
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": spec.volume_claim}})
        mounts.append({"name": "shared", "mountPath": spec.mount_path})
    return volumes, mounts


def _check(spec: PodSpec) -> None:
    if spec.num_gpus < 0:
        raise SpecError(f"num_gpus is {spec.num_gpus}; give 0 or more.")
    if spec.num_gpus and "/" not in spec.gpu_resource:
        raise SpecError(f"gpu_resource is {spec.gpu_resource!r}; expected a name such as nvidia.com/gpu or amd.com/gpu.")
    if bool(spec.volume_claim) != bool(spec.mount_path):
        raise SpecError("volume_claim and mount_path belong together: give both, or neither where the image has what the stage needs.")
