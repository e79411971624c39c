"""Stage ``evaluate``: challenger and champion on the same rows, which neither has learned from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.exceptions import EvaluationError, UnsafeModel
from airflow_mlops.records import ResultRef, load
from airflow_mlops.results import EvaluationResult, TrainingResult
from airflow_mlops.stages.inputs import read_split
from airflow_mlops.stages.models import champion_of, load_challenger, load_champion

if TYPE_CHECKING:
    from airflow_mlops.registry.base import ModelRegistry, ModelVersion


class Spec(NamedTuple):
    """`training` refers to the challenger's result record; the champion is asked of the registry at `tracking_uri`.

    `extensions` are modules below `code_path` that are imported first, because they register a team's own layers; `unsafe_models_allowed` lets a
    model file bring code of its own.
    """

    training: ResultRef
    layout: ArrayLayout
    model_name: str
    tracking_uri: str
    held_out_fraction: float = 0.2
    code_path: str = ""
    extensions: tuple[str, ...] = ()
    unsafe_models_allowed: bool = False


Result = EvaluationResult


def run(spec: Spec, out_dir: Path) -> EvaluationResult:
    """Measure the challenger, and the champion if there is one."""
    from airflow_mlops.artifacts import bytes_digest
    from airflow_mlops.evaluation.comparison import compare
    from airflow_mlops.registry.mlflow import MlflowRegistry
    from airflow_mlops.training.function import import_from

    for module in spec.extensions:
        import_from(Path(spec.code_path).resolve(), module)
    training = load(spec.training, TrainingResult)
    held_out = read_split(training.dataset, spec.layout, spec.held_out_fraction).held_out
    registry = MlflowRegistry(spec.tracking_uri)
    champion = champion_of(registry, spec.model_name)
    model, problem = _champion(registry, champion, out_dir, code_allowed=spec.unsafe_models_allowed)
    return compare(
        load_challenger(training, code_allowed=spec.unsafe_models_allowed),
        model,
        held_out.inputs,
        held_out.labels,
        rows_digest=bytes_digest("".join(sorted(held_out.row_digests)).encode()),
        champion_version=str(champion.version) if champion else None,
        champion_problem=problem,
    )


def _champion(registry: ModelRegistry, champion: ModelVersion | None, out_dir: Path, *, code_allowed: bool) -> tuple[Any, str | None]:
    """Return the champion's model and why it can not be had: one that today's Keras can not load, or must not, shall not block its successors."""
    if champion is None:
        return None, None
    try:
        return load_champion(registry, champion, out_dir, code_allowed=code_allowed), None
    except (EvaluationError, UnsafeModel) as error:
        return None, str(error)
