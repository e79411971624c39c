"""Where the stages of a pipeline run: as processes of the worker, or as pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from airflow_mlops.exceptions import SpecError, unknown_name
from airflow_mlops.operators.stage import RunStageOperator
from airflow_mlops.stages import STAGES
from airflow_mlops.stages.job import backend_of

if TYPE_CHECKING:
    from airflow_mlops.stages.job import JobSpec
    from airflow_mlops.stages.pod import PodSpec

_CONNECTION = ("kubernetes_conn_id", "config_file", "in_cluster")


class Runner(Protocol):
    """Names the operator of a stage and its further arguments; `extras` are those of the package that a worker needs for its tasks."""

    @property
    def extras(self) -> tuple[str, ...]: ...

    def operator(self, stage: str) -> tuple[type[Any], dict[str, Any]]: ...


@dataclass(frozen=True)
class Local:
    """Every stage is a process of the worker that has its task, the training `num_workers` of them, for a function that uses `fit_together`."""

    num_workers: int = 1

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise SpecError(f"num_workers is {self.num_workers}; give 1, or as many processes as shall train together.")

    @property
    def extras(self) -> tuple[str, ...]:
        """The worker runs everything itself."""
        return ("worker",)

    def operator(self, stage: str) -> tuple[type[Any], dict[str, Any]]:
        """Return the operator of any stage."""
        return RunStageOperator, {"stage": stage, **({"num_workers": self.num_workers} if stage == "train" else {})}


@dataclass(frozen=True)
class Pod:
    """Every stage is a pod.

    * `pod_spec`: of all stages that `stages` does not name; usually only ``train`` needs a GPU.
    * `deferrable`: the tasks wait in the triggerer and hold no worker.
    * `arguments`: further ones of KubernetesPodOperator, such as ``kubernetes_conn_id``, ``env_from`` or ``volumes``.
    * `train`: several pods that train together, in the place of one; of `arguments` they take only those that say which cluster.
    """

    pod_spec: PodSpec
    stages: Mapping[str, PodSpec] = field(default_factory=dict)
    deferrable: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)
    train: JobSpec | None = None

    def __post_init__(self) -> None:
        for name in self.stages:
            if name not in STAGES:
                raise unknown_name("stage", name, STAGES)
        if "spec" in self.arguments or "stage" in self.arguments:
            raise SpecError("arguments names stage or spec, which the pipeline decides: leave them out.")
        if self.train is not None:
            if "train" in self.stages:
                raise SpecError("Both stages and train say what trains: leave one of them out.")
            backend_of(self.train)

    @property
    def extras(self) -> tuple[str, ...]:
        """The images have what a stage needs."""
        return ("pod-worker",)

    def operator(self, stage: str) -> tuple[type[Any], dict[str, Any]]:
        """Return the operator of a stage with its pod, or pods."""
        if stage == "train" and self.train is not None:
            from airflow_mlops.operators.job import TrainModelJobOperator  # costs as much as the other

            where = {name: value for name, value in self.arguments.items() if name in _CONNECTION}
            return TrainModelJobOperator, {"job_spec": self.train, "deferrable": self.deferrable, **where}
        from airflow_mlops.operators.pod import StagePodOperator, TrainModelPodOperator  # costs a second, which DAG files without pods do not pay

        kind = TrainModelPodOperator if stage == "train" else StagePodOperator
        return kind, {"stage": stage, "pod_spec": self.stages.get(stage, self.pod_spec), "deferrable": self.deferrable, **self.arguments}
