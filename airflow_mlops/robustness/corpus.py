"""The queue of a campaign: the seeds and every kept mutant, as columns, so that a step reads and writes thousands of entries at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from airflow_mlops.robustness.mutators import NAMES
from airflow_mlops.robustness.mutators.base import Floats, Ints
from airflow_mlops.robustness.recipes import Step

_COLUMNS: Mapping[str, Any] = {
    "seed": np.int64,  # row in the campaign's inputs
    "label": np.int64,
    "parent": np.int64,  # entry it was mutated from; -1 for a seed
    "reference": np.int64,  # entry that Eq. 1 measures from: the seed, or the chain's affine mutant
    "depth": np.int64,  # steps from the seed
    "mutator": np.int64,
    "severity": np.float32,
    "key": np.uint32,
    "affine": np.bool_,  # the chain holds its one affine step
    "l0": np.int64,  # accumulated by Eq. 2 up to this entry
    "linf": np.float32,
    "l0_reference": np.int64,  # what Eq. 2 had accumulated at the reference
    "linf_reference": np.float32,
    "times_fuzzed": np.int64,
}


class Corpus:
    """Entries ``0 .. len - 1``; `images` is (len, H, W, C) float32 and every column of `_COLUMNS` is (len,)."""

    def __init__(self, images: Floats, seeds: Ints, labels: Ints) -> None:
        self._size = 0
        self._images: Floats = np.empty((0, *images.shape[1:]), dtype=np.float32)
        self._columns: dict[str, npt.NDArray[Any]] = {name: np.empty(0, dtype) for name, dtype in _COLUMNS.items()}
        start = {"seed": seeds, "label": labels, "parent": -1, "reference": np.arange(len(images))}
        self.append(images, {**dict.fromkeys(_COLUMNS, 0), **start})

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, column: str) -> npt.NDArray[Any]:
        return self._columns[column][: self._size]

    @property
    def images(self) -> Floats:
        return self._images[: self._size]

    def append(self, images: Floats, columns: Mapping[str, Any]) -> None:
        """Add N entries; `columns` has every column, each (N,) or one value for all."""
        end = self._size + len(images)
        if end > len(self._images):
            capacity = max(end, 2 * len(self._images))
            self._images = _grown(self._images, capacity)
            self._columns = {name: _grown(column, capacity) for name, column in self._columns.items()}
        self._images[self._size : end] = images
        for name, column in self._columns.items():
            column[self._size : end] = columns[name]
        self._size = end

    def chain(self, entry: int) -> tuple[Step, ...]:
        """Return the steps from the seed to `entry`."""
        steps: list[Step] = []
        while self["parent"][entry] >= 0:
            steps.append(Step(NAMES[self["mutator"][entry]], float(self["severity"][entry]), int(self["key"][entry])))
            entry = self["parent"][entry]
        return tuple(reversed(steps))


def _grown(array: npt.NDArray[Any], capacity: int) -> npt.NDArray[Any]:
    grown = np.empty((capacity, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown
