"""Worker 0 of a distributed training among its pods: it alone tells how the training goes. Without Kubernetes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_mlops.results import STRICT
from airflow_mlops.stages.pod_log import Position
from airflow_mlops.training.progress import Progress

# On every pod of an Indexed Job, as kubernetes.io/docs/tasks/job/indexed-parallel-processing-static says; the label of that name is newer (1.28).
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
# On every pod of a JobSet (jobset.sigs.k8s.io/docs/concepts); a TrainJob's trainer is called node there (kubeflow/trainer, pkg/constants).
_GROUP_LABEL = "jobset.sigs.k8s.io/replicatedjob-name"
_TRAINER = "node"


@STRICT
@dataclass(frozen=True)
class ToldChief:
    """How far the log of each pod was told that is or was worker 0, by its name, and the looks at the training that were among the lines."""

    positions: dict[str, Position] = field(default_factory=dict)
    history: tuple[Progress, ...] = ()


def chiefs(pods: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return those of a Job's or TrainJob's pods that are or were worker 0, Kubernetes' JSON of them, from the first to the newest."""
    return sorted(filter(_is_chief, pods), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def _is_chief(pod: Mapping[str, Any]) -> bool:
    about = pod["metadata"]
    group = (about.get("labels") or {}).get(_GROUP_LABEL, _TRAINER)
    return group == _TRAINER and (about.get("annotations") or {}).get(INDEX_ANNOTATION) == "0"
