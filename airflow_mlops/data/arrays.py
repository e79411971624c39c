"""A frame of rows to the arrays a model takes, refusing what would otherwise fail late or train on nonsense.

Imports NumPy and pandas at the top: for stages only.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.exceptions import DatasetError
from airflow_mlops.splits import listed


@dataclass(frozen=True, eq=False)
class LabelledArrays:
    """N rows: `inputs` float32 (N, *input_shape), `labels` int64 (N,), `row_digests` (N,) 32 hex digits of each row's unscaled inputs by name."""

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    row_digests: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, mask: NDArray[np.bool_]) -> LabelledArrays:
        """Return the rows where `mask` (N,) is true."""
        return LabelledArrays(self.inputs[mask], self.labels[mask], self.row_digests[mask])


def input_columns(frame: pd.DataFrame, layout: ArrayLayout, known: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the names of the inputs in their order: those that `layout` names, else those `known` from before, else all but the label.

    Raises `DatasetError` naming the columns that are missing or, where the layout names none, that are new.
    """
    if layout.label_column not in frame.columns:
        found = listed(tuple(frame.columns))
        raise DatasetError(f"There is no column {layout.label_column!r}: found {found}. Name the label column in the layout.")
    given = tuple(name for name in frame.columns if name != layout.label_column)
    wanted = tuple(layout.columns) or known or given
    lost = [name for name in wanted if name not in set(given)]
    new = [] if layout.columns else [name for name in given if name not in set(wanted)]
    if lost or new:
        problems = [f"lacks {listed(lost)}"] * bool(lost) + [f"has {listed(new)}, which the model does not know"] * bool(new)
        raise DatasetError(
            f"The dataset {' and '.join(problems)}: expected the input columns {listed(wanted)}. Publish a version with these columns, or name "
            "the inputs in the layout's columns."
        )
    if len(set(wanted)) != len(wanted) or len(wanted) != math.prod(layout.input_shape):
        raise DatasetError(
            f"There are {len(set(wanted))} different input columns ({listed(wanted)}); expected {math.prod(layout.input_shape)} for the shape "
            f"{tuple(layout.input_shape)}. Name those that are inputs in the layout's columns, each once, or correct input_shape."
        )
    return wanted


def to_arrays(frame: pd.DataFrame, layout: ArrayLayout) -> LabelledArrays:
    """Return the rows of `frame` as arrays; raise `DatasetError` naming the column, what was found and what was expected."""
    names = input_columns(frame, layout)
    if frame.empty:
        raise DatasetError("The dataset has no rows: expected at least one. Publish a version with data.")
    labels = _labels(frame[layout.label_column], layout)
    values = _values(frame[list(names)], layout)
    inputs = (values * np.float32(layout.scale)).reshape(-1, *layout.input_shape)
    return LabelledArrays(inputs, labels, _row_digests(names, values))


def _labels(column: pd.Series, layout: ArrayLayout) -> NDArray[np.int64]:
    expected = f"expected integers in 0..{layout.num_classes - 1}"
    numbers = _numbers(column, expected)
    bad = ~(np.isfinite(numbers) & (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < layout.num_classes))
    if bad.any():
        examples = ", ".join(f"{value:g}" for value in np.unique(numbers[bad])[:5])
        raise DatasetError(
            f"Column {layout.label_column!r}: {int(bad.sum())} of {len(bad)} labels are unusable, for example {examples} "
            f"(first in row {int(bad.argmax())}); {expected}. Correct the labels or num_classes."
        )
    return numbers.astype(np.int64)


def _values(frame: pd.DataFrame, layout: ArrayLayout) -> NDArray[np.float32]:
    columns = [_numbers(frame[name], "expected numbers") for name in frame.columns]
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite and is refused below
        values = np.stack(columns, axis=1).astype(np.float32)
    bad = ~np.isfinite(values * np.float32(layout.scale))
    if bad.any():
        column = int(bad.any(axis=0).argmax())
        raise DatasetError(
            f"Column {frame.columns[column]!r}: {int(bad[:, column].sum())} of {len(values)} values are missing, infinite or too large for float32 "
            f"(first in row {int(bad[:, column].argmax())}); expected finite numbers. Correct the rows or leave them out."
        )
    return values


def _numbers(column: pd.Series, expected: str) -> NDArray[np.float64]:
    try:
        if column.dtype.kind in "mMc":
            raise TypeError("times and complex numbers would silently become other numbers")
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    except (TypeError, ValueError) as error:
        raise DatasetError(f"Column {column.name!r} is of type {column.dtype} ({error}): {expected}. Convert it before publishing.") from error


def _row_digests(names: tuple[str, ...], values: NDArray[np.float32]) -> NDArray[np.str_]:
    """Return a digest of each row of `values` (N, columns), whatever the order of the columns, whose `names` are a part of it."""
    order = sorted(range(len(names)), key=lambda index: names[index])
    columns = hashlib.blake2b(json.dumps([names[index] for index in order]).encode(), digest_size=16)
    # Adding 0.0 makes -0.0 and 0.0 one value; little-endian bytes make the digest the same on every machine.
    rows = np.ascontiguousarray(values[:, order] + np.float32(0.0), dtype="<f4")
    return np.array([_with(columns, row) for row in rows])


def _with(columns: Any, row: NDArray[np.float32]) -> str:
    digest = columns.copy()
    digest.update(row.tobytes())
    return str(digest.hexdigest())
