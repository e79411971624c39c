"""What several stages read: a dataset version as arrays, split for good into rows to learn from and rows to judge by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.exceptions import EvaluationError
from airflow_mlops.results import DatasetVersion
from airflow_mlops.splits import SplitDefinition

if TYPE_CHECKING:
    import pandas as pd

    from airflow_mlops.data.arrays import LabelledArrays
    from airflow_mlops.data.split import Split


def defined(frame: pd.DataFrame, layout: ArrayLayout, fraction: float, champion: SplitDefinition | None) -> SplitDefinition:
    """Return what a training on `frame` is defined by: a layout that names no columns has those of the champion, where their number is the same.

    Raises `DatasetError` naming columns that are missing or new.
    """
    from airflow_mlops.data.arrays import input_columns

    fits = champion is not None and (champion.input_shape, champion.label_column) == (tuple(layout.input_shape), layout.label_column)
    columns = input_columns(frame, layout, champion.columns if champion is not None and fits else ())
    shape = tuple(layout.input_shape)
    return SplitDefinition(columns, shape, layout.num_classes, layout.label_column, layout.scale, fraction, fraction)


def layout_of(definition: SplitDefinition) -> ArrayLayout:
    """Return the layout that a training wrote down, its columns named."""
    return ArrayLayout(definition.input_shape, definition.num_classes, definition.label_column, definition.scale, definition.columns)


def learned_and_held_out(frame: pd.DataFrame, definition: SplitDefinition) -> Split:
    """Return the rows of `frame` as the training with this definition sees them: those it learns from, and those it holds out."""
    from airflow_mlops.data.arrays import to_arrays
    from airflow_mlops.data.split import split

    return split(to_arrays(frame, layout_of(definition)), definition.held_out_fraction)


def read_split(version: DatasetVersion, definition: SplitDefinition) -> Split:
    """Return what the model of this definition learned from of `version`, and what neither it nor any model it started from has learned from.

    Raises `EvaluationError` if there are no rows of the second kind.
    """
    from airflow_mlops.data.arrays import to_arrays
    from airflow_mlops.data.readers import read_frame
    from airflow_mlops.data.split import Split, below

    rows = to_arrays(read_frame(version), layout_of(definition))
    return Split(rows.where(~below(rows, definition.held_out_fraction)), unseen(rows, definition))


def unseen(rows: LabelledArrays, definition: SplitDefinition) -> LabelledArrays:
    """Return those of `rows` that the model of this definition was never trained on; raise `EvaluationError` if there are none."""
    from airflow_mlops.data.split import below

    found = rows.where(below(rows, definition.unseen_fraction))
    if not len(found):
        raise EvaluationError(
            f"There is no row to judge the model by: it, or a model it started from, learned from all {len(rows)} rows but a share of "
            f"{definition.unseen_fraction:g}. Publish more rows, or train from scratch with a larger held_out_fraction."
        )
    return found
