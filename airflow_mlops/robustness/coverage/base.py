"""The plumbing of every bitmap criterion; a member is only its idea of which cells an input touches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.robustness.mutators.base import Floats, Ints
from airflow_mlops.robustness.profile import Profile

Bits: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CoverageOptions:
    """`nc_threshold`: scaled activation above which a neuron is covered; `kmnc_sections`: equal sections of each neuron's range."""

    nc_threshold: float = 0.75
    kmnc_sections: int = 1000


class BitmapCriterion(ABC):
    """A set of cells, each covered or not: monotone, independent of order, mergeable; NaN and infinite activations never cover."""

    def __init__(self, profile: Profile, options: CoverageOptions) -> None:
        self.profile = profile
        self.options = options
        self.bitmap: Bits = np.zeros(self.num_cells(), dtype=np.bool_)

    @abstractmethod
    def num_cells(self) -> int:
        """Return the number of cells, which is the denominator of the ratio."""

    @abstractmethod
    def touched(self, activations: Floats) -> tuple[Bits, npt.NDArray[np.intp]]:
        """Return for (N, M) activations which entries cover a cell (N, M), and which cell that is, broadcastable to (N, M)."""

    def observe(self, activations: Floats) -> npt.NDArray[np.intp]:
        """Cover the cells of (N, M) activations; return (N,) how many each input covered first, as if they came one by one."""
        mask, cells = self.touched(activations)
        cells = np.broadcast_to(cells, mask.shape)
        rows, columns = np.nonzero(mask & ~self.bitmap[cells])
        # np.nonzero goes row by row, so the first place of each cell is the earliest input that covers it.
        fresh, first = np.unique(cells[rows, columns], return_index=True)
        self.bitmap[fresh] = True
        return np.bincount(rows[first], minlength=len(activations))

    def merge(self, other: BitmapCriterion) -> None:
        """Take over the cells of another shard's criterion; raise `RobustnessError` if it counted something else."""
        mine, theirs = self._identity(), other._identity()
        if mine != theirs:
            raise RobustnessError(f"Coverage of {theirs} can not be merged into {mine}. Merge only shards of one campaign.")
        self.bitmap |= other.bitmap

    def ratio(self) -> float:
        """Return covered cells / all cells, in [0, 1]."""
        return float(self.bitmap.mean())

    def _identity(self) -> tuple[Any, ...]:
        return type(self).__name__, self.profile.model_digest, self.options


def bounds(profile: Profile) -> tuple[Ints, Ints]:
    """Return for every neuron the index of its layer (M,), and for every layer its first neuron (L,)."""
    starts = np.array([span.start for span in profile.layers])
    widths = np.array([span.stop - span.start for span in profile.layers])
    return np.repeat(np.arange(len(starts)), widths), starts
