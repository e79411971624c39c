"""Top-k and bottom-k neuron coverage (DeepGauge, ASE 2018): neurons that were among the most, or the least, active of their layer."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from airflow_mlops.robustness.coverage.base import BitmapCriterion, Bits
from airflow_mlops.robustness.models import LayerSpan
from airflow_mlops.robustness.mutators.base import Floats


class TopKNeuronCoverage(BitmapCriterion):
    """TKNC(k) = |union over inputs and layers of the k highest neurons| / M; ties: lowest index first; a layer of at most k neurons counts whole."""

    title: ClassVar[str] = "Top-k neuron coverage (TKNC)"

    def num_cells(self) -> int:
        return len(self.profile.low)

    def touched(self, activations: Floats) -> tuple[Bits, npt.NDArray[np.intp]]:
        return highest(activations, self.profile.layers, self.options.top_k), np.arange(self.num_cells())


class BottomKNeuronCoverage(TopKNeuronCoverage):
    """BKNC(k): as TKNC, of the k lowest neurons; ties again go to the lowest index."""

    title: ClassVar[str] = "Bottom-k neuron coverage (BKNC)"

    def touched(self, activations: Floats) -> tuple[Bits, npt.NDArray[np.intp]]:
        return super().touched(-activations)


def highest(activations: Floats, layers: tuple[LayerSpan, ...], k: int) -> Bits:
    """Return for (N, M) finite activations which are among the k highest of their layer (N, M): in every row min(k, width) per layer."""
    chosen = np.ones(activations.shape, dtype=np.bool_)
    for span in layers:
        if span.stop - span.start > k:
            chosen[:, span.start : span.stop] = _highest(activations[:, span.start : span.stop], k)
    return chosen


def _highest(layer: Floats, k: int) -> Bits:
    least = np.partition(layer, -k, axis=1)[:, [-k]]
    chosen = layer >= least
    # Where several are as high as the k-th, more than k were chosen; rectified layers, whose neurons are often 0, have many such rows.
    crowded = np.flatnonzero(np.count_nonzero(chosen, axis=1) > k)
    if len(crowded):
        above, tied = layer[crowded] > least[crowded], layer[crowded] == least[crowded]
        room = k - np.count_nonzero(above, axis=1, keepdims=True)
        chosen[crowded] = above | (tied & (np.cumsum(tied, axis=1, dtype=np.int32) <= room))
    return chosen
