"""Which mutants of a random sample were drawn before: an input has one mirror image, and drawing it twice is not a second observation of a rate."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from airflow_mlops.robustness.mutators.base import Ints


class Drawn:
    """The mutants seen so far, as 64-bit digests of the seed and every bit; two of a million differing ones are taken for one with p = 3e-8."""

    def __init__(self) -> None:
        self.digests = np.empty(0, np.uint64)

    def first(self, seeds: Ints, mutants: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return (N,) which mutants (N, ...) of the inputs number `seeds` (N,) are here for the first time, and remember them."""
        rows = [row.encode() if isinstance(row, str) else row.tobytes() for row in mutants]
        marks = [int(seed).to_bytes(8, "little") + row for seed, row in zip(seeds, rows, strict=True)]
        digests = np.frombuffer(b"".join(hashlib.blake2b(mark, digest_size=8).digest() for mark in marks), np.uint64)
        found, first = np.unique(digests, return_index=True)
        fresh = ~np.isin(found, self.digests)
        self.digests = np.concatenate([self.digests, found[fresh]])
        is_first = np.zeros(len(digests), dtype=np.bool_)
        is_first[first[fresh]] = True
        return is_first
