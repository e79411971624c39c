"""Neuron coverage (DeepXplore, SOSP 2017): neurons whose activation, scaled within the layer, exceeded a threshold."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from airflow_mlops.robustness.coverage.base import BitmapCriterion, Bits
from airflow_mlops.robustness.mutators.base import Floats


class NeuronCoverage(BitmapCriterion):
    """NC(t) = |{n : exists x with s(phi(x, n)) > t}| / M; s scales an input's layer to [0, 1], a constant layer to 0."""

    title: ClassVar[str] = "Neuron coverage (NC)"

    def num_cells(self) -> int:
        return len(self.profile.low)

    def touched(self, activations: Floats) -> tuple[Bits, npt.NDArray[np.intp]]:
        low = np.minimum.reduceat(activations, self.starts, axis=1).astype(np.float64)
        span = np.maximum.reduceat(activations, self.starts, axis=1) - low
        span[span == 0] = 1
        scaled = activations - low.take(self.layer, axis=1)
        scaled /= span.take(self.layer, axis=1)
        return scaled > self.options.nc_threshold, np.arange(self.num_cells())
