"""What a training starts from, and which rows it may learn from: the champion decides both, where there is one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_mlops.exceptions import EvaluationError, ModelNotFound, UnsafeModel, unknown_name
from airflow_mlops.splits import SplitDefinition
from airflow_mlops.stages.inputs import defined
from airflow_mlops.stages.models import champion_of, definition_of, load_registered

if TYPE_CHECKING:
    import pandas as pd

    from airflow_mlops.registry.base import ModelRegistry, ModelVersion
    from airflow_mlops.stages import train

log = logging.getLogger(__name__)

STARTS = ("champion", "scratch")


class Start(NamedTuple):
    """`champion` and its `model` to start from, or twice None; `problem` says why not, where that was asked for; `definition` is the training's."""

    champion: ModelVersion | None
    model: Any
    problem: str | None
    definition: SplitDefinition


def start_of(registry: ModelRegistry, spec: train.Spec, frame: pd.DataFrame, out_dir: Path) -> Start:
    """Return what the training begins with; the team's own code must have been imported, because a champion may have layers of it.

    A champion that no training can start from does not block its successors: they begin from scratch, and their record says so.

    :raises DatasetError: the columns of `frame` are not those of the layout, or of the champion.
    """
    if spec.start not in STARTS:
        raise unknown_name("start", spec.start, STARTS)
    champion = champion_of(registry, spec.model_name)
    known = definition_of(registry, champion, out_dir) if champion else None
    definition = defined(frame, spec.layout, spec.held_out_fraction, known)
    if champion is None or spec.start == "scratch":
        return Start(None, None, None, definition)
    name = f"champion v{champion.version}"
    reason = _others(known, definition)
    if not reason:
        try:
            model = load_registered(registry, champion, out_dir, code_allowed=spec.unsafe_models_allowed)
            return Start(champion, model, None, definition.after(known, name))
        except (EvaluationError, UnsafeModel, ModelNotFound) as error:
            reason = f"it could not be loaded: {error}"
    problem = f"The training was asked to start from {name}, and began from scratch instead: {reason}"
    log.warning("%s", problem)
    return Start(None, None, problem, definition)


def _others(known: SplitDefinition | None, definition: SplitDefinition) -> str:
    """Return why weights that were learned for `known` inputs do not fit these, or nothing."""
    if known is None:
        return ""
    found = known.differences(definition) or ["another order of the columns"] * (known.columns != definition.columns)
    return f"its inputs are others ({'; '.join(found)})." if found else ""
