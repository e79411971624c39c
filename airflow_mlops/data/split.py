"""Which rows are held out, decided by each row's own content.

A row's side depends on its inputs alone, by the names of their columns. So no row ever changes side in a later version, whatever the order of its
columns and whether its numbers are whole, and duplicates and relabelled copies of a training row cannot leak into the held-out rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from airflow_mlops.data.arrays import LabelledArrays
from airflow_mlops.exceptions import DatasetError, SpecError


class Split(NamedTuple):
    """The two sides, each in the order of the rows given."""

    train: LabelledArrays
    held_out: LabelledArrays


def split(arrays: LabelledArrays, held_out_fraction: float = 0.2) -> Split:
    """Return about `held_out_fraction` of the distinct inputs as held out; a larger fraction keeps every row that a smaller one held out.

    Raises `DatasetError` if a side is empty and `SpecError` for a fraction outside (0, 1).
    """
    if not 0.0 < held_out_fraction < 1.0:
        raise SpecError(f"held_out_fraction is {held_out_fraction}: expected a number between 0 and 1, both excluded. 0.2 is usual.")
    held_out = below(arrays, held_out_fraction)
    sides = Split(arrays.where(~held_out), arrays.where(held_out))
    for name, side in sides._asdict().items():
        if len(side) == 0:
            raise DatasetError(
                f"The {name} side is empty: {len(arrays)} rows with {len(np.unique(arrays.row_digests))} distinct inputs at a held-out fraction of "
                f"{held_out_fraction}. Publish more distinct rows or change the fraction."
            )
    return sides


def below(arrays: LabelledArrays, fraction: float) -> NDArray[np.bool_]:
    """Return which of N rows (N,) a training that holds out `fraction` of the rows does not learn from."""
    # The first 52 bits of the digest as a number in [0, 1): uniform, exact in a float, the same on every machine.
    position = np.array([int(digest[:13], 16) for digest in arrays.row_digests], dtype=np.float64) / 16.0**13
    return np.asarray(position < fraction)
