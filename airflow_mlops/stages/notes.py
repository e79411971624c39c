"""What a training was asked for and did not do, as sentences for its record, so that none of it passes in silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow_mlops.splits import SplitDefinition, listed

if TYPE_CHECKING:
    from airflow_mlops.training.checkpoints import CheckpointManager


def notes_of(columns: Sequence[str], definition: SplitDefinition, checkpoints: CheckpointManager, authors: Sequence[str]) -> tuple[str, ...]:
    """Return what a reader of the training's record should know.

    :param columns: of the dataset version.
    :param authors: of the code, as far as Git knows them.
    """
    notes = []
    if left_out := [name for name in columns if name not in {*definition.columns, definition.label_column}]:
        notes.append(f"The columns {listed(left_out)} of the dataset are no inputs: the layout does not name them.")
    if definition.unknown:
        notes.append(f"Which rows it has learned from is not known: {definition.unknown}.")
    if checkpoints.spoiled:
        notes.append(
            f"The checkpoints {listed(checkpoints.spoiled)} were altered after they were written and were put aside: what was trained since the one "
            "before them was trained again."
        )
    if not authors:
        notes.append("Git knows no author of the code where the training ran: nothing keeps whoever wrote it from approving it.")
    return tuple(notes)
