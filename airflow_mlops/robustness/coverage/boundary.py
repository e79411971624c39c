"""Neuron boundary coverage and strong neuron activation coverage (DeepGauge, ASE 2018): inputs that leave the range seen in training."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from airflow_mlops.robustness.coverage.base import BitmapCriterion, Bits, CoverageOptions
from airflow_mlops.robustness.mutators.base import Floats
from airflow_mlops.robustness.profile import Profile


class NeuronBoundaryCoverage(BitmapCriterion):
    """NBC(m) = (|{n : exists x with phi(x, n) > high_n + m std_n}| + |{n : exists x with phi(x, n) < low_n - m std_n}|) / (2 M).

    Both are strict: a value at the edge was seen in training (dnn-tip counts it). Each side is one cell, however far outside (DeepHunter's code
    has several). Cells 0 .. M - 1 are above, M .. 2 M - 1 below.
    """

    title: ClassVar[str] = "Neuron boundary coverage (NBC)"

    def __init__(self, profile: Profile, options: CoverageOptions) -> None:
        super().__init__(profile, options)
        self._low, self._high = _widened(profile, options)

    def num_cells(self) -> int:
        return 2 * len(self.profile.low)

    def touched(self, activations: Floats) -> tuple[Bits, npt.NDArray[np.intp]]:
        below = activations < self._low
        num = len(self._low)
        return below | (activations > self._high), below * num + np.arange(num)


class StrongNeuronActivationCoverage(BitmapCriterion):
    """SNAC(m) = |{n : exists x with phi(x, n) > high_n + m std_n}| / M; strict, as in NBC."""

    title: ClassVar[str] = "Strong neuron activation coverage (SNAC)"

    def num_cells(self) -> int:
        return len(self.profile.low)

    def touched(self, activations: Floats) -> tuple[Bits, npt.NDArray[np.intp]]:
        return activations > _widened(self.profile, self.options)[1], np.arange(self.num_cells())


def _widened(profile: Profile, options: CoverageOptions) -> tuple[Floats, Floats]:
    """Return the range (low, high), each (M,), widened by `boundary_deviations`."""
    margin = options.boundary_deviations * profile.std
    return profile.low - margin, profile.high + margin
