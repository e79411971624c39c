"""A frame of rows to the arrays a model takes, refusing what would otherwise fail late or train on nonsense.

Imports NumPy and pandas at the top: for stages only.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.exceptions import DatasetError


@dataclass(frozen=True, eq=False)
class LabelledArrays:
    """N rows: `inputs` float32 (N, *input_shape), `labels` int64 (N,), `row_digests` (N,) 32 hex digits of each row's unscaled inputs."""

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    row_digests: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, mask: NDArray[np.bool_]) -> LabelledArrays:
        """Return the rows where `mask` (N,) is true."""
        return LabelledArrays(self.inputs[mask], self.labels[mask], self.row_digests[mask])


def to_arrays(frame: pd.DataFrame, layout: ArrayLayout) -> LabelledArrays:
    """Return the rows of `frame` as arrays; raise `DatasetError` naming the column, what was found and what was expected."""
    if layout.label_column not in frame.columns:
        found = ", ".join(map(str, frame.columns[:10]))
        raise DatasetError(f"There is no column {layout.label_column!r}: found {found}. Name the label column in the layout.")
    if frame.empty:
        raise DatasetError("The dataset has no rows: expected at least one. Publish a version with data.")
    labels = _labels(frame[layout.label_column], layout)
    values = _values(frame.drop(columns=layout.label_column), layout)
    inputs = (values * np.float32(layout.scale)).reshape(-1, *layout.input_shape)
    return LabelledArrays(inputs, labels, _row_digests(values))


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
    expected = math.prod(layout.input_shape)
    if frame.shape[1] != expected:
        raise DatasetError(
            f"The dataset has {frame.shape[1]} input columns ({', '.join(map(str, frame.columns[:3]))}, ...): expected {expected} for the shape "
            f"{layout.input_shape}. Remove columns that are no inputs, or correct input_shape."
        )
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


def _row_digests(values: NDArray[np.float32]) -> NDArray[np.str_]:
    # Adding 0.0 makes -0.0 and 0.0 one value; little-endian bytes make the digest the same on every machine.
    rows = np.ascontiguousarray(values + np.float32(0.0), dtype="<f4")
    return np.array([hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in rows])
