"""The queue of an island: its seeds and every kept mutant, as columns, so that a step reads and writes thousands of entries at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

COLUMNS: Mapping[str, Any] = {
    "seed": np.int32,  # row in the campaign's inputs
    "expected": np.int32,  # the answer that is right, see `oracles.Evidence`
    "parent": np.int32,  # entry it was mutated from; -1 for a seed
    "reference": np.int32,  # entry that Eq. 1 measures from: the seed, or the chain's moving mutant
    "depth": np.int32,  # steps from the seed
    "mutator": np.int16,
    "severity": np.float32,
    "key": np.uint32,
    "moved": np.bool_,  # the chain holds its one moving step
    "l0": np.int32,  # accumulated by Eq. 2 up to this entry
    "linf": np.float32,
    "l0_reference": np.int32,  # what Eq. 2 had accumulated at the reference
    "linf_reference": np.float32,
    "times_fuzzed": np.int32,
    "last_gain": np.int32,  # of its mutants when it was fuzzed last, how many brought something new
}


class Corpus:
    """Entries ``0 .. len - 1``: `inputs` (len, ...) and every column of `COLUMNS` (len,).

    Two more columns are wide: ``spent`` (len, num_mutators), the severity that the chain has used of every mutator, and ``outputs`` (len, C), the
    probabilities that the model answered with.
    """

    def __init__(self, inputs: npt.NDArray[Any], columns: Mapping[str, Any]) -> None:
        self._size = 0
        self._inputs: npt.NDArray[Any] = np.empty((0, *inputs.shape[1:]), dtype=inputs.dtype)
        wide = {name: np.empty((0, columns[name].shape[1]), np.float32) for name in ("spent", "outputs")}
        self._columns: dict[str, npt.NDArray[Any]] = {**{name: np.empty(0, dtype) for name, dtype in COLUMNS.items()}, **wide}
        self.append(inputs, columns)

    @classmethod
    def of_seeds(cls, inputs: npt.NDArray[Any], seeds: Any, labels: Any, outputs: Any, num_mutators: int) -> Corpus:
        """Return the corpus that begins with the rows `seeds` of the campaign's inputs (N of them, passed as `inputs`)."""
        start = {"seed": seeds, "expected": labels, "parent": -1, "reference": np.arange(len(inputs)), "outputs": outputs}
        return cls(inputs, {**dict.fromkeys(COLUMNS, 0), **start, "spent": np.zeros((len(inputs), num_mutators), np.float32)})

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, column: str) -> npt.NDArray[Any]:
        return self._columns[column][: self._size]

    @property
    def inputs(self) -> npt.NDArray[Any]:
        return self._inputs[: self._size]

    @property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Everything but the inputs, which follow from it and the seeds."""
        return {name: self[name] for name in self._columns}

    def append(self, inputs: npt.NDArray[Any], columns: Mapping[str, Any]) -> None:
        """Add N entries; `columns` has every column, each (N, ...) or one value for all."""
        end = self._size + len(inputs)
        if end > len(self._inputs):
            capacity = max(end, 2 * len(self._inputs))
            self._inputs = _grown(self._inputs, capacity)
            self._columns = {name: _grown(column, capacity) for name, column in self._columns.items()}
        self._inputs[self._size : end] = inputs
        for name, column in self._columns.items():
            column[self._size : end] = columns[name]
        self._size = end

    def chain(self, entry: int) -> list[int]:
        """Return the entries from the first mutant after the seed to `entry`."""
        entries: list[int] = []
        while self["parent"][entry] >= 0:
            entries.append(entry)
            entry = int(self["parent"][entry])
        return entries[::-1]


def by_depth(depth: npt.NDArray[Any], size: int) -> Iterator[npt.NDArray[np.intp]]:
    """Yield the entries of every depth from 1 on, in parts of `size`: a parent always comes before its mutants."""
    for level in range(1, int(depth.max(initial=0)) + 1):
        rows = np.flatnonzero(depth == level)
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def _grown(array: npt.NDArray[Any], capacity: int) -> npt.NDArray[Any]:
    grown = np.empty((capacity, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown
