"""Top-k neuron patterns (DeepGauge, ASE 2018): how many different combinations of most active neurons the inputs brought about."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from airflow_mlops.robustness.coverage.base import Arrays, CoverageOptions, Criterion
from airflow_mlops.robustness.coverage.top_k import highest
from airflow_mlops.robustness.models import Answers
from airflow_mlops.robustness.mutators.base import Floats
from airflow_mlops.robustness.profile import Profile

HASH = np.dtype("S16")


class TopKNeuronPatterns(Criterion):
    """TKNP(k) = |{(top_k of layer 1, ..., top_k of layer L) of x}|, a count: each entry is a set of neurons, ties as in TKNC.

    A pattern is kept as a 128-bit hash: the exclusive or of a fixed random word per member neuron (Zobrist, 1970). Two of n patterns share one,
    and are then counted once, with a probability of n^2 / 2^129: 1e-27 for a million. An input with NaN or infinity in any neuron has no pattern.
    """

    title: ClassVar[str] = "Top-k neuron patterns seen (TKNP)"
    is_ratio: ClassVar[bool] = False

    def __init__(self, profile: Profile, options: CoverageOptions) -> None:
        super().__init__(profile, options)
        # Raw words of a bit generator are the same in every version of NumPy, as hashes that outlive a process must be.
        self._words = np.random.Philox(key=0x746B6E70).random_raw(2 * len(profile.low)).astype("<u8").reshape(-1, 2)
        self._seen: npt.NDArray[np.bytes_] = np.empty(0, HASH)

    def observe(self, answers: Answers) -> npt.NDArray[np.intp]:
        """Take in the patterns of N inputs; return (N,) 1 for the first input of each new pattern, else 0."""
        gained = np.zeros(len(answers.neurons), dtype=np.intp)
        usable = np.flatnonzero(np.isfinite(answers.neurons).all(axis=1))
        parts = [self._hashes(chunk[np.isfinite(chunk).all(axis=1)]) for _, chunk in self._chunks(answers)]
        patterns, first = np.unique(np.concatenate([np.empty(0, HASH), *parts]), return_index=True)
        place = np.searchsorted(self._seen, patterns)
        padded = np.append(self._seen, b"")
        new = (place == len(self._seen)) | (padded[place] != patterns)
        gained[usable[first[new]]] = 1
        self._seen = np.insert(self._seen, place[new], patterns[new])
        return gained

    def value(self) -> float:
        """Return the number of distinct patterns; there is no denominator, their possible number is astronomical."""
        return float(len(self._seen))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"patterns": self._seen.copy()}

    def absorb(self, arrays: Arrays) -> None:
        patterns = arrays["patterns"]
        if patterns.dtype != HASH or patterns.ndim != 1:
            raise ValueError(f"the patterns are {patterns.dtype} of shape {patterns.shape}")
        self._seen = np.union1d(self._seen, patterns)

    def _hashes(self, activations: Floats) -> npt.NDArray[np.bytes_]:
        members = np.flatnonzero(highest(activations, self.profile.layers, self.options.pattern_k)) % activations.shape[1]
        # Every row has the same number of members.
        words = self._words[members.reshape(len(activations), -1)] if len(activations) else np.empty((0, 1, 2), "<u8")
        return np.ascontiguousarray(np.bitwise_xor.reduce(words, axis=1)).view(HASH)[:, 0]
