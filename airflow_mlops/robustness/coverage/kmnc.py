"""k-multisection neuron coverage (DeepGauge, ASE 2018): how evenly the inputs fill the range each neuron had in training."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from airflow_mlops.robustness.coverage.base import BitmapCriterion, Bits, CoverageOptions
from airflow_mlops.robustness.models import Answers, LayerSpan
from airflow_mlops.robustness.mutators.base import Floats
from airflow_mlops.robustness.profile import Profile

WIDE = 4_096  # neurons whose cells are looked up together: 4 MB of them stay in the cache, and a large network's do not


class KMultisectionNeuronCoverage(BitmapCriterion):
    """KMNC(k) = sum_n |{i : exists x with phi(x, n) in S_i}| / (k M), S_i the k equal sections of the closed interval [low, high].

    ``phi == low`` is in the first section and ``phi == high`` in the last (implementations disagree here); a neuron that is constant over the
    profile covers nothing and stays in the denominator. The section of phi is ``min(int((phi - low) / (high - low) * k), k - 1)`` in float64.
    """

    title: ClassVar[str] = "k-multisection neuron coverage (KMNC)"

    def __init__(self, profile: Profile, options: CoverageOptions) -> None:
        super().__init__(profile, options)
        varies = profile.high > profile.low
        # Nothing is at or above infinity, so that a constant neuron needs no case of its own.
        self._low = np.where(varies, profile.low, np.inf)
        self._width = np.where(varies, profile.high - profile.low, 1.0)
        self._first = np.arange(len(profile.low)) * options.kmnc_sections
        self._values, self._cells = np.empty((0, len(profile.low))), np.empty((0, len(profile.low)), np.intp)
        groups = [tuple(group) for _, group in itertools.groupby(profile.layers, lambda span: span.start // WIDE)]
        self._parts = [self._part(layers) for layers in groups] if len(groups) > 1 else []

    def _part(self, layers: tuple[LayerSpan, ...]) -> tuple[slice, KMultisectionNeuronCoverage]:
        """Return the neurons of some layers, and a criterion for them whose bitmap is a part of this one's."""
        neurons, k = slice(layers[0].start, layers[-1].stop), self.options.kmnc_sections
        part = type(self)(self.profile.part(layers), self.options)
        part.bitmap = self.bitmap[neurons.start * k : neurons.stop * k]
        return neurons, part

    def observe(self, answers: Answers) -> npt.NDArray[np.intp]:
        """Cover the cells of N inputs, as every criterion does."""
        if not self._parts:
            return super().observe(answers)
        self._check(answers)
        gained = np.zeros(len(answers.neurons), dtype=np.intp)
        for neurons, part in self._parts:
            gained += part.observe(replace(answers, neurons=answers.neurons[:, neurons]))
        return gained

    def num_cells(self) -> int:
        return len(self.profile.low) * self.options.kmnc_sections

    def touched(self, activations: Floats) -> tuple[Bits, npt.NDArray[np.intp]]:
        """Return as every criterion; the cells are good until the next call."""
        values, cells = self._scratch(activations.shape)
        values[...] = activations
        inside = values >= self._low
        inside &= values <= self.profile.high
        # A reciprocal would be faster and put values at a boundary into the wrong section. What is outside is clipped and then not looked at.
        with np.errstate(over="ignore"):
            values -= self._low
            values /= self._width
            values *= self.options.kmnc_sections
        np.clip(values, 0, self.options.kmnc_sections - 1, out=values)
        np.copyto(cells, values, casting="unsafe")
        cells += self._first
        return inside, cells

    def _scratch(self, shape: tuple[int, ...]) -> tuple[Floats, npt.NDArray[np.intp]]:
        """Return two arrays to write into: taking them anew from the system for every chunk can cost more than the arithmetic."""
        if len(self._values) < shape[0]:
            self._values, self._cells = np.empty(shape), np.empty(shape, np.intp)
        return self._values[: shape[0]], self._cells[: shape[0]]
