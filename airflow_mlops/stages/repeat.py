"""Stage ``repeat``: train again as asked before, by the same code, and leave the registry as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from airflow_mlops.artifacts import Artifact
from airflow_mlops.exceptions import ModelNotFound, SpecError
from airflow_mlops.results import STRICT, DatasetVersion, StageResult, TrainingResult
from airflow_mlops.stages import train

if TYPE_CHECKING:
    from airflow_mlops.registry.base import ModelRegistry, ModelVersion


class Spec(NamedTuple):
    """Which training is repeated.

    * `training`: its spec, and `dataset` what it learns from, whether validated or not.
    * `champion`: version to continue from; None starts from scratch.
    * `every`: trace the weights after each so many steps; 0 leaves no trace.
    """

    training: train.Spec
    dataset: DatasetVersion
    champion: int | None = None
    every: int = 0


@STRICT
@dataclass(frozen=True)
class Repetition(StageResult):
    """What the training came to, and its trace as `training.twin` reads it."""

    training: TrainingResult
    trace: Artifact | None

    def headline(self) -> str:
        return self.training.headline()


Result = Repetition


def run(spec: Spec, out_dir: Path) -> Repetition:
    """Train, and trace every `every`-th step."""
    from airflow_mlops.registry.mlflow import MlflowRegistry
    from airflow_mlops.training.twin import traced

    registry = cast("ModelRegistry", Recalled(MlflowRegistry(spec.training.tracking_uri), spec.champion))
    trace = out_dir / "trace.jsonl"
    alone = spec.training._replace(checkpoints=str(out_dir / "checkpoints"), keep_checkpoints=False)  # going on from another's would prove nothing
    with traced(trace, spec.every) if spec.every else contextlib.nullcontext():
        result = train.run(alone, out_dir, registry=registry, dataset=spec.dataset)
    if not isinstance(result, TrainingResult):
        raise SpecError("A training of several workers cannot be repeated by one process. Repeat it without TF_CONFIG.")
    return Repetition(result, Artifact.of(trace) if spec.every else None)


class Recalled:
    """The registry as a training saw it: `champion` is the version it began with, and whatever is logged is forgotten."""

    run_id = artifact_uri = "none"

    def __init__(self, registry: ModelRegistry, champion: int | None) -> None:
        self._registry, self._champion = registry, champion
        self.download = registry.download

    def get_by_alias(self, name: str, alias: str) -> ModelVersion:
        """Return the champion of then; raise `ModelNotFound` where there was none."""
        if self._champion is None:
            raise ModelNotFound(f"Model {name!r} had no {alias} when this training began.")
        return self._registry.get(name, self._champion)

    @contextlib.contextmanager
    def start_run(self, experiment: str, *, name: str, tags: Mapping[str, str]) -> Iterator[Recalled]:
        """Open no run."""
        yield self

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Forget them."""

    def log_metric(self, name: str, value: float, step: int = 0) -> None:
        """Forget it; the result has it."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Forget them."""

    def log_dict(self, data: Mapping[str, Any], file_name: str) -> None:
        """Forget it."""

    def log_artifact(self, path: Path) -> None:
        """Forget it; it stays where it is."""
