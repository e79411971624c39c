"""k-multisection neuron coverage (DeepGauge): how evenly the inputs fill the range each neuron had in training."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from airflow_mlops.robustness.coverage.base import BitmapCriterion, Bits
from airflow_mlops.robustness.mutators.base import Floats


class KMultisectionNeuronCoverage(BitmapCriterion):
    """KMNC(k) = sum_n |{i : exists x with phi(x, n) in S_i}| / (k M), S_i the k equal sections of the closed interval [low, high].

    ``phi == low`` is in the first section and ``phi == high`` in the last (implementations disagree here); a neuron that is constant over the
    profile covers nothing and stays in the denominator.
    """

    def num_cells(self) -> int:
        return len(self.profile.low) * self.options.kmnc_sections

    def touched(self, activations: Floats) -> tuple[Bits, npt.NDArray[np.intp]]:
        low, high, num = self.profile.low, self.profile.high, self.options.kmnc_sections
        values = activations.astype(np.float64)
        inside = (values >= low) & (values <= high) & (high > low)
        width = np.where(high > low, high - low, 1.0)
        sections = (np.where(inside, values - low, 0.0) / width * num).astype(np.intp)
        return inside, np.arange(len(low)) * num + np.minimum(sections, num - 1)
