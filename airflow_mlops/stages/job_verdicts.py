"""What is made of how a distributed training ended, or does not begin: pure, of Kubernetes' JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from airflow_mlops.stages.pod import Outcome, Verdict
from airflow_mlops.stages.verdicts import judge as judge_pod
from airflow_mlops.stages.worker import LOST_CODE


def judge(workload: Mapping[str, Any] | None, pods: Sequence[Mapping[str, Any]], *, has_record: bool, waited_long: bool = False) -> Verdict:
    """Return what is to be made of a Job or TrainJob, Kubernetes' JSON of it, or None when it is gone.

    :param pods: those of it that are there still; they say why it failed.
    :param has_record: whether worker 0's result record is there.
    :param waited_long: whether it has had the time to start that it may have, without its time in a queue.
    """
    if workload is None:
        return Verdict(Outcome.RECORD) if has_record else Verdict(Outcome.INTERRUPTED, "The job was deleted before it left a result record.")
    ended = _conditions(workload)
    if has_ended(workload):
        if has_record:
            return Verdict(Outcome.RECORD)
        if "Complete" in ended:
            return Verdict(Outcome.FAILED, "The job ended as complete and left no result record: nothing shows that the training was done.")
        return _why(pods) or Verdict(Outcome.FAILED, f"The job failed: {ended['Failed'].get('message') or ended['Failed'].get('reason')}.")
    if is_suspended(workload):
        return Verdict(None, "The job waits in its queue.")
    if late := came_too_late(pods):
        return Verdict(Outcome.RECORD) if has_record else Verdict(Outcome.INTERRUPTED, f"Worker {late} was replaced when others had ended already.")
    waiting = [judge_pod(pod, has_record=False, waited_long=waited_long) for pod in pods if _phase(pod) == "Pending"]
    return _worst(waiting) or Verdict(None)


def has_ended(workload: Mapping[str, Any]) -> bool:
    """Whether a Job or TrainJob is complete or has failed."""
    return not {"Complete", "Failed"}.isdisjoint(_conditions(workload))


def came_too_late(pods: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of a pod that has not ended and was made when another worker was done already, for which it would wait for ever."""
    done = [_instant(end["finishedAt"]) for pod in pods if _phase(pod) == "Succeeded" for end in _ends(pod) if end.get("finishedAt")]
    late = [pod for pod in pods if done and _phase(pod) in ("Pending", "Running") and _instant(pod["metadata"]["creationTimestamp"]) > min(done)]
    return str(late[0]["metadata"]["name"]) if late else ""


def _phase(pod: Mapping[str, Any]) -> str:
    return str((pod.get("status") or {}).get("phase"))


def _ends(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one["state"].get("terminated") or {} for one in pod["status"].get("containerStatuses") or ()]


def _instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _conditions(workload: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the conditions that hold, by type."""
    return {each["type"]: each for each in (workload.get("status") or {}).get("conditions") or () if each["status"] == "True"}


def is_suspended(workload: Mapping[str, Any]) -> bool:
    """Whether a queue holds the workload back: that is no failure, however long it takes."""
    return bool((workload.get("spec") or {}).get("suspend"))


def waited_seconds(pods: Sequence[Mapping[str, Any]], now: float) -> float:
    """Return for how long, at `now` in epoch seconds, the pod that waits longest to start has been there; a queue makes pods only when it lets go."""
    made = [_instant(pod["metadata"]["creationTimestamp"]) for pod in pods if _phase(pod) == "Pending"]
    return max(now - min(made), 0.0) if made else 0.0


def _why(pods: Sequence[Mapping[str, Any]]) -> Verdict | None:
    """Return the reason why a job failed: that of a worker which did not end because of the others, where such a one is there still."""
    failed = [pod for pod in pods if _phase(pod) == "Failed"]
    own = _worst([judge_pod(pod, has_record=False) for pod in failed if not _followed_others(pod)])
    lost = Verdict(Outcome.INTERRUPTED, "A worker is gone without a trace, and the others could not go on without it.")
    return own or (lost if failed else None)


def _followed_others(pod: Mapping[str, Any]) -> bool:
    """Whether a pod that failed only lost another one, or was only stopped, as Kubernetes does with the others when one fails the job."""
    status = pod["status"]
    disrupted = any((one["type"], one["status"]) == ("DisruptionTarget", "True") for one in status.get("conditions") or ())
    stopped = judge_pod(pod, has_record=False).outcome == Outcome.INTERRUPTED and not (status.get("reason") or disrupted)
    return stopped or any(end.get("exitCode") == LOST_CODE for end in _ends(pod))


def _worst(verdicts: Sequence[Verdict]) -> Verdict | None:
    """Return the verdict that decides: when one worker is taken away, the programs of the others may fail by it."""
    order = (Outcome.OUT_OF_MEMORY, Outcome.INTERRUPTED, Outcome.FAILED)
    found = [verdict for verdict in verdicts if verdict.outcome is not None]
    return min(found, key=lambda verdict: order.index(verdict.outcome or Outcome.FAILED)) if found else None
