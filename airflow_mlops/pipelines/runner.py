"""Where the stages of a pipeline run: as processes of the worker, or as pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from airflow_mlops.exceptions import SpecError, unknown_name
from airflow_mlops.operators.stage import RunStageOperator
from airflow_mlops.stages import STAGES

if TYPE_CHECKING:
    from airflow_mlops.stages.pod import PodSpec


class Runner(Protocol):
    """Names the operator of a stage, and what it needs beside the stage and its spec."""

    def operator(self, stage: str) -> tuple[type[Any], dict[str, Any]]: ...


@dataclass(frozen=True)
class Local:
    """Every stage is a process of the worker that has its task, the training `num_workers` of them, for a function that uses `fit_together`."""

    num_workers: int = 1

    def operator(self, stage: str) -> tuple[type[Any], dict[str, Any]]:
        """Return the operator of any stage."""
        return RunStageOperator, {"num_workers": self.num_workers} if stage == "train" else {}


@dataclass(frozen=True)
class Pod:
    """Every stage is a pod.

    * `pod_spec`: of all stages that `stages` does not name; usually only ``train`` needs a GPU.
    * `deferrable`: the tasks wait in the triggerer and hold no worker.
    * `arguments`: further ones of KubernetesPodOperator, such as ``kubernetes_conn_id``, ``env_from`` or ``volumes``.
    """

    pod_spec: PodSpec
    stages: Mapping[str, PodSpec] = field(default_factory=dict)
    deferrable: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.stages:
            if name not in STAGES:
                raise unknown_name("stage", name, STAGES)
        if "spec" in self.arguments or "stage" in self.arguments:
            raise SpecError("arguments names stage or spec, which the pipeline decides: leave them out.")

    def operator(self, stage: str) -> tuple[type[Any], dict[str, Any]]:
        """Return the operator of a stage with its pod."""
        from airflow_mlops.operators.pod import StagePodOperator, TrainModelPodOperator  # costs a second, which DAG files without pods do not pay

        kind = TrainModelPodOperator if stage == "train" else StagePodOperator
        return kind, {"pod_spec": self.stages.get(stage, self.pod_spec), "deferrable": self.deferrable, **self.arguments}
