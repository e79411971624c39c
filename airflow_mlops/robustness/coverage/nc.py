"""Neuron coverage (DeepXplore): neurons whose activation, scaled within the layer, exceeded a threshold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from airflow_mlops.robustness.coverage.base import BitmapCriterion, Bits, bounds
from airflow_mlops.robustness.mutators.base import Floats


class NeuronCoverage(BitmapCriterion):
    """NC(t) = |{n : exists x with s(phi(x, n)) > t}| / M; s scales an input's layer to [0, 1], a constant layer to 0."""

    def num_cells(self) -> int:
        return len(self.profile.low)

    def touched(self, activations: Floats) -> tuple[Bits, npt.NDArray[np.intp]]:
        layer, starts = bounds(self.profile)
        low = np.minimum.reduceat(activations, starts, axis=1)
        # NaN and infinity leave their layer without a finite span, and a comparison with NaN is false: such a layer covers nothing.
        with np.errstate(invalid="ignore"):
            span = np.maximum.reduceat(activations, starts, axis=1) - low
            span = np.where(np.isfinite(span), np.where(span > 0, span, 1), np.nan)
            scaled = (activations - low[:, layer]) / span[:, layer]
        return scaled > self.options.nc_threshold, np.arange(self.num_cells())
