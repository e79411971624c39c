"""What is made of how a pod ended, or does not begin: pure, of Kubernetes' JSON alone."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from airflow_mlops.stages.pod import CONTAINER, Outcome, Verdict

_TAKEN = ("Evicted", "Preempted", "Preempting", "NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity", "UnexpectedAdmissionError")
_PULLING = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable")
_NO_SUCH_IMAGE = ("not found", "manifest unknown", "denied", "unauthorized", "authorization failed")  # what registries say that no waiting changes
_HOPELESS = ("InvalidImageName", "ErrImageNeverPull")
_KILLED = 137  # 128 + SIGKILL
_UNMADE = ("", "ContainerCreating", "PodInitializing")
_NOT_MOUNTED = ("FailedMount", "FailedAttachVolume")
_MOUNTED_ALL = ("Pulling", "Pulled")  # a node looks for the image when everything is mounted
_MOUNTED = {"secret": ("secret", "secretName"), "configMap": ("config map", "name"), "persistentVolumeClaim": ("claim", "claimName")}
_SIGNALS = {128 + each.value: each.name for each in signal.Signals}
_STOPPED = 143  # 128 + SIGTERM: a stage ends so by itself, when it has saved what it had


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
    return _waiting(pod, status) if waited_long or _state(status, "waiting").get("reason") in _HOPELESS else Verdict(None)


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
    if code == _STOPPED:
        return Verdict(Outcome.INTERRUPTED, "The stage was told to stop, by something that left no other trace.")
    said = (end.get("message") or message or "").strip()
    words = f" Its last words:\n{said}\n" if said else ""
    killed = " Something killed it; on some nodes that is all one sees of too little memory." if code == _KILLED else ""
    if code in _SIGNALS:
        code = f"{code}, by signal {_SIGNALS[code]},"
    return Verdict(Outcome.FAILED, f"The stage's program ended with exit code {code} and left no result record.{killed}{words}")


def _waiting(pod: Mapping[str, Any], status: Mapping[str, Any]) -> Verdict:
    """Say why a pod does not start, when it has waited long enough."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            why = condition.get("message", "no reason was given")
            remedy = "Make that claim, or correct volume_claim." if "persistentvolumeclaim" in why else "Ask for less, or add such a node."
            return Verdict(Outcome.FAILED, f"No node takes the pod: {why} {remedy}")
    waiting = _state(status, "waiting")
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _PULLING and any(words in message.lower() for words in _NO_SUCH_IMAGE):
        return Verdict(Outcome.FAILED, f"There is no such image for this pod: {message} Correct its name, or its image pull secret.")
    if reason in _PULLING:
        return Verdict(Outcome.INTERRUPTED, f"The image cannot be pulled: {message or reason}")
    if reason in _UNMADE:
        why = f"The pod's container was not made in time{_needs(pod)}; `kubectl describe` shows what it waits for."
        return Verdict(Outcome.INTERRUPTED, why, is_explained=False)
    return Verdict(
        Outcome.FAILED, f"The pod's container cannot be made: {reason}: {message.rstrip('.')}. Correct the image, secrets or volumes that it names."
    )


def explained(verdict: Verdict, pod: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Verdict:
    """Return what is to be made of a pod that has a `verdict` without a reason, where Kubernetes' `events` about it are known.

    Something it mounts and that is not there will not be there for the next pod either, unless somebody makes it.
    """
    said = [one.get("message", "") for one in events if one.get("reason") in _NOT_MOUNTED]
    missing = next((words for words in said for _, name in _mounted(pod) if f'"{name}" not found' in words), "")
    if not missing or any(one.get("reason") in _MOUNTED_ALL for one in events):
        return verdict
    return Verdict(Outcome.FAILED, f"The pod's container cannot be made: {missing.rstrip('.')}. Create it, or correct its name.")


def _needs(pod: Mapping[str, Any]) -> str:
    """Name what the pod mounts: that one of them is missing only stands in events, which not every worker may read."""
    names = [f"{words} {name!r}" for words, name in _mounted(pod)]
    return f"; see that there is {' and '.join(names)}" if names else ""


def _mounted(pod: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the pod mounts and names: what it is, in words, and its name."""
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    return [(words, one[kind][key]) for kind, (words, key) in _MOUNTED.items() for one in volumes if kind in one]


def _state(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    statuses: Iterable[Mapping[str, Any]] = status.get("containerStatuses") or ()
    return next((one["state"].get(name) or {} for one in statuses if one["name"] == CONTAINER), {})
