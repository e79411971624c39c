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
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_TAKEN = ("Evicted", "Preempted", "Preempting", "NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity", "UnexpectedAdmissionError")
_PULLING = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable")
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
    * `start_seconds`: how long the pod may wait for a node and its image.
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


class Outcome(StrEnum):
    """What an attempt came to. The first two are followed by another attempt, the others are final."""

    INTERRUPTED = "interrupted"
    OUT_OF_MEMORY = "out of memory"
    RECORD = "record"
    FAILED = "failed"


@dataclass(frozen=True)
class Verdict:
    """The outcome of an attempt (None: it goes on), and the reason as a sentence."""

    outcome: Outcome | None
    reason: str = ""


@dataclass(frozen=True)
class Attempt:
    """Attempt `number` (from 1) at a stage: the pods before it were interrupted `num_interruptions` times and `step` times too small."""

    number: int
    step: int = 0
    num_interruptions: int = 0

    @classmethod
    def after(cls, outcomes: Sequence[str]) -> Attempt:
        """Return the attempt that follows the `outcomes` of all earlier ones; after a final one, a task that was cleared begins anew."""
        final = [number for number, outcome in enumerate(outcomes, 1) if outcome in (Outcome.RECORD, Outcome.FAILED)]
        since = outcomes[final[-1] if final else 0 :]
        return cls(len(outcomes) + 1, since.count(Outcome.OUT_OF_MEMORY), since.count(Outcome.INTERRUPTED))


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
    about |= {"nodeSelector": dict(spec.node_selector), "tolerations": [dict(one) for one in spec.tolerations]}
    if spec.priority_class:
        about["priorityClassName"] = spec.priority_class
    if spec.service_account:
        about["serviceAccountName"] = spec.service_account
    labels = {_QUEUE_LABEL: spec.queue} if spec.queue else {}
    metadata = {"name": name, "namespace": spec.namespace, "labels": labels, "annotations": {SPEC_ANNOTATION: spec_digest}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": about}


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
    return _waiting(status) if phase == "Pending" and waited_long else Verdict(None)


def _ended(pod: Mapping[str, Any], status: Mapping[str, Any]) -> Verdict:
    reason, message = status.get("reason", ""), status.get("message", "")
    disrupted = [one.get("message", "") for one in status.get("conditions") or () if one["type"] == "DisruptionTarget" and one["status"] == "True"]
    end = _terminated(status)
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
    if reason in _PULLING:
        return Verdict(Outcome.INTERRUPTED, f"The image can not be pulled: {message or reason}")
    if not reason or reason == "ContainerCreating":
        return Verdict(Outcome.INTERRUPTED, "The pod's container was not made in time; `kubectl describe` shows what it waits for.")
    return Verdict(Outcome.FAILED, f"The pod's container can not be made: {reason}: {message} Correct the image, secrets or volumes that it names.")


def _terminated(status: Mapping[str, Any]) -> Mapping[str, Any]:
    return _state(status, "terminated")


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
