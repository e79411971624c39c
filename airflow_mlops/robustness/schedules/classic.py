"""The schedules of the papers, and the control without any guidance."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from airflow_mlops.robustness.corpus import Corpus
from airflow_mlops.robustness.mutators.base import Floats
from airflow_mlops.robustness.schedules.base import Outcome, Proposals, Schedule

BETA, GAMMA, P_MIN = 0.8, 5.0, 0.3
NUM_RECENT = 5


class Uniform(Schedule):
    """Every entry alike."""


class Unguided(Schedule):
    """Only the seeds, every seed alike, one mutant each: the control that every campaign is compared with, and the sample of its rates.

    Twenty mutants of one seed would not be independent, and the exact interval of a rate would be too narrow.
    """

    mutants_per_parent: ClassVar[int] = 1
    samples: ClassVar[bool] = True

    def weights(self, corpus: Corpus) -> Floats:
        return np.asarray(corpus["depth"] == 0, dtype=np.float64)

    def keeps(self, corpus: Corpus, proposals: Proposals, outcome: Outcome) -> np.ndarray:
        return np.zeros(len(proposals), dtype=np.bool_)


class DeepHunter(Schedule):
    """P(s) = max(p_min, beta - f(s) / gamma): fresh entries first, and none is ever forgotten (DeepHunter, section 3.3)."""

    def weights(self, corpus: Corpus) -> Floats:
        return np.asarray(np.maximum(P_MIN, BETA - corpus["times_fuzzed"] / GAMMA))


class TensorFuzz(Schedule):
    """One of the five newest entries or any entry, each of the six alike (TensorFuzz, section 3.2)."""

    def weights(self, corpus: Corpus) -> Floats:
        weights = np.full(len(corpus), 1.0 / len(corpus))
        weights[-NUM_RECENT:] += 1.0
        return weights


class DeepTest(Schedule):
    """The newest entries that still gain something; one that was fuzzed and gained nothing is popped, and after the last all are back."""

    def weights(self, corpus: Corpus) -> Floats:
        alive = np.flatnonzero((corpus["times_fuzzed"] == 0) | (corpus["last_gain"] > 0))
        weights = np.zeros(len(corpus))
        weights[alive[-NUM_RECENT:] if len(alive) else slice(None)] = 1.0
        return weights
