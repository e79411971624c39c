"""Stage ``evaluate``: challenger and champion on the same rows, which neither has learned from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_mlops.exceptions import EvaluationError, ModelNotFound, NotComparable, UnsafeModel
from airflow_mlops.records import ResultRef, load
from airflow_mlops.results import EvaluationResult, TrainingResult
from airflow_mlops.splits import JudgedRows, SplitDefinition
from airflow_mlops.stages.inputs import layout_of, unseen
from airflow_mlops.stages.models import champion_of, definition_of, load_challenger, load_champion
from airflow_mlops.stages.served import served_challenger

if TYPE_CHECKING:
    from airflow_mlops.data.arrays import LabelledArrays
    from airflow_mlops.registry.base import ModelRegistry, ModelVersion


class Spec(NamedTuple):
    """`training` refers to the challenger's result record, which says how its rows were split; the registry at `tracking_uri` has the champion.

    `extensions` are modules below `code_path` that are imported first, because they register a team's own layers; `unsafe_models_allowed` lets a
    model file bring code of its own.
    """

    training: ResultRef
    model_name: str
    tracking_uri: str
    code_path: str = ""
    extensions: tuple[str, ...] = ()
    unsafe_models_allowed: bool = False


Result = EvaluationResult


class Opponent(NamedTuple):
    """The champion: its `model`, the `rows` by which it is compared, and how many of the version it held out; or the `problem` with it."""

    model: Any
    rows: LabelledArrays
    num_held_out: int | None = None
    unknown: str | None = None
    problem: str | None = None


def run(spec: Spec, out_dir: Path) -> EvaluationResult:
    """Measure the challenger, and the champion if there is one and both can be compared."""
    from airflow_mlops.artifacts import bytes_digest
    from airflow_mlops.data.arrays import to_arrays
    from airflow_mlops.data.readers import read_frame
    from airflow_mlops.evaluation.comparison import compare
    from airflow_mlops.registry.mlflow import MlflowRegistry
    from airflow_mlops.training.function import import_all

    import_all(Path(spec.code_path), spec.extensions)
    training = load(spec.training, TrainingResult)
    rows = to_arrays(read_frame(training.dataset), layout_of(training.split))
    held_out = unseen(rows, training.split)
    challenger = served_challenger(training, load_challenger(training, code_allowed=spec.unsafe_models_allowed), held_out.inputs)
    registry = MlflowRegistry(spec.tracking_uri)
    champion = champion_of(registry, spec.model_name)
    other = _opponent(spec, registry, champion, training.split, rows, out_dir) if champion else Opponent(None, held_out)
    metrics, champion_metrics, problem = compare(challenger.model, other.model, other.rows.inputs, other.rows.labels)
    unknown = {"the challenger": training.split.unknown, f"champion v{champion.version}" if champion else "": other.unknown}
    return EvaluationResult(
        num_rows=len(other.rows),
        rows_digest=bytes_digest("".join(sorted(other.rows.row_digests)).encode()),
        metrics=metrics,
        champion_version=str(champion.version) if champion else None,
        champion_metrics=champion_metrics,
        judged=JudgedRows(len(held_out), other.num_held_out, tuple(f"of {name}: {why}" for name, why in unknown.items() if why)),
        champion_problem=other.problem or problem,
        start_problem=training.start_problem,
        served_difference=challenger.difference,
    )


def _opponent(spec: Spec, registry: ModelRegistry, champion: ModelVersion, split: SplitDefinition, rows: LabelledArrays, out_dir: Path) -> Opponent:
    """Return the champion, or why it cannot be loaded: one that today's Keras cannot load, or must not, does not block its successors."""
    from airflow_mlops.data.split import below
    from airflow_mlops.training.served import InferenceModel

    known, held_out = definition_of(registry, champion, out_dir), unseen(rows, split)
    unknown = known.unknown if known else "it has no record of the rows it learned from"
    num_held_out = None
    try:
        if known is not None:
            if differences := known.differences(split):
                raise NotComparable(f"The inputs of champion v{champion.version} and of the challenger differ: {'; '.join(differences)}.")
            num_held_out = int(below(rows, known.unseen_fraction).sum())
            held_out = _both(held_out, known.unseen_fraction, f"champion v{champion.version}", num_held_out)
        model = InferenceModel(load_champion(registry, champion, out_dir, code_allowed=spec.unsafe_models_allowed))
    except (EvaluationError, UnsafeModel, ModelNotFound) as error:
        return Opponent(None, unseen(rows, split), num_held_out, unknown, str(error))
    return Opponent(_in_order(model, known, split), held_out, num_held_out, unknown)


def _both(held_out: LabelledArrays, fraction: float, champion: str, num_held_out: int) -> LabelledArrays:
    from airflow_mlops.data.split import below

    both = held_out.where(below(held_out, fraction))
    if not len(both):
        raise NotComparable(
            f"The challenger never learned from {len(held_out)} rows of this version, {champion} from {num_held_out}, and none of them are the same: "
            "there is no row to compare them by. Publish more rows, or train from scratch."
        )
    return both


class _Reordered:
    """A model that takes its columns in another order than the rows have them."""

    def __init__(self, model: Any, order: list[int]) -> None:
        self._model, self._order = model, order

    def predict(self, x: Any, *, verbose: Any = 0) -> Any:
        return self._model.predict(x.reshape(len(x), -1)[:, self._order].reshape(x.shape), verbose=verbose)


def _in_order(model: Any, known: SplitDefinition | None, split: SplitDefinition) -> Any:
    if known is None or known.columns == split.columns:
        return model
    places = {name: place for place, name in enumerate(split.columns)}
    return _Reordered(model, [places[name] for name in known.columns])
