"""Distance to the nearest kept answer (TensorFuzz, ICML 2019): an answer unlike all kept ones is new."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from airflow_mlops.robustness.coverage.base import Arrays, Bits, CoverageOptions, Criterion
from airflow_mlops.robustness.models import Answers
from airflow_mlops.robustness.mutators.base import Floats, Ints
from airflow_mlops.robustness.profile import Profile

LEAST = 1e-7
# Inputs and kept vectors whose distances are taken at once: 2 MB.
ROWS, KEPT = 256, 1024


class NearestAnswer(Criterion):
    """ANN(t): an input is new, and kept, iff the squared L2 distance of its logits to the nearest kept ones is > t; the value is how many are kept.

    Logits are the logarithms of the class probabilities, at least 1e-7, in float32: those of a softmax layer up to a constant per input. What is
    kept depends on the order, so shards cannot be merged. TensorFuzz asks an approximate index; here the nearest is exact.
    """

    title: ClassVar[str] = "Answers kept as far from each other (ANN)"
    mergeable: ClassVar[bool] = False
    is_ratio: ClassVar[bool] = False

    def __init__(self, profile: Profile, options: CoverageOptions) -> None:
        super().__init__(profile, options)
        self._room: Floats = np.empty((0, 0), np.float32)
        self._num = 0

    def observe(self, answers: Answers) -> npt.NDArray[np.intp]:
        """Take in N answers; return (N,) 1 for each that was kept, else 0. An answer with NaN or infinity is not kept."""
        gained = np.zeros(len(answers.outputs), dtype=np.intp)
        usable = np.flatnonzero(np.isfinite(answers.outputs).all(axis=1))
        for start in range(0, len(usable), ROWS):
            rows = usable[start : start + ROWS]
            logits = np.log(np.maximum(answers.outputs[rows].astype(np.float64), LEAST)).astype(np.float32)
            far = self._far(logits)
            near = cdist(logits[far], logits[far], "sqeuclidean") <= self.options.ann_threshold
            new = far[_one_by_one(near)]
            self._keep(logits[new])
            gained[rows[new]] = 1
        return gained

    def value(self) -> float:
        """Return the number of kept answers."""
        return float(self._num)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"kept": self._room[: self._num].copy()}

    def absorb(self, arrays: Arrays) -> None:
        kept = arrays["kept"]
        if kept.dtype != np.float32 or kept.ndim != 2:
            raise ValueError(f"the kept answers are {kept.dtype} of shape {kept.shape}")
        self._keep(kept)

    def _far(self, logits: Floats) -> Ints:
        """Return which rows are farther than the threshold from everything kept."""
        far = np.arange(len(logits))
        for start in range(0, self._num, KEPT):
            kept = self._room[start : min(start + KEPT, self._num)]
            far = far[cdist(logits[far], kept, "sqeuclidean").min(axis=1) > self.options.ann_threshold]
        return far

    def _keep(self, logits: Floats) -> None:
        if len(logits) == 0:
            return
        end = self._num + len(logits)
        if end > len(self._room):
            # Twice the room, so that n answers are copied O(n) times in all.
            grown = np.empty((max(end, 2 * len(self._room)), logits.shape[1]), np.float32)
            grown[: self._num] = self._room[: self._num].reshape(self._num, logits.shape[1])
            self._room = grown
        self._room[self._num : end] = logits
        self._num = end


def _one_by_one(near: Bits) -> Bits:
    """Return which of n candidates (n,) are kept if they come in order and one near (n, n) a kept one is not.

    A candidate without an undecided earlier one near it can be decided now; in each round all such are, which takes a few rounds instead of n.
    """
    earlier = np.tril(near, -1)
    kept, undecided = np.zeros(len(near), dtype=np.bool_), np.ones(len(near), dtype=np.bool_)
    while undecided.any():
        clear = undecided & ~earlier[:, undecided].any(axis=1)
        kept |= clear
        undecided &= ~clear & ~earlier[:, clear].any(axis=1)
    return kept
