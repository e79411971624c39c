"""Which mutants are still the same picture: DeepHunter's Eq. 1 and Eq. 2 (ISSTA 2019, section 3.2).

Distances are taken in signed arithmetic: on uint8, ``reference - image`` wraps around, and published code admits invalid mutants that way.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from airflow_mlops.robustness.mutators.base import Floats, Ints

ALPHA = 0.02
BETA = 0.2


def distances(reference: npt.NDArray[np.generic], images: npt.NDArray[np.generic]) -> tuple[Ints, Floats]:
    """Return per row (L0: number of values that differ, L-infinity: largest difference) of two (N, ...) batches of any numeric type."""
    wide = np.promote_types(np.result_type(reference, images), np.float32)
    change: Floats = images.astype(wide, copy=False) - reference.astype(wide, copy=False)
    change = np.abs(change, out=change).reshape(len(images), -1)  # a second array would cost more than the arithmetic
    return np.count_nonzero(change, axis=1), change.max(axis=1, initial=0)


def satisfied(l0: Ints, linf: Floats, *, size: int, span: float) -> npt.NDArray[np.bool_]:
    """Eq. 1: few changed values may be anything, many may change only a little; `size` = values per image, `span` = high - low."""
    return (l0 < ALPHA * size) | (linf < BETA * span)


def accumulated(l0: Ints, linf: Floats, l0_reference: Ints, linf_reference: Floats) -> tuple[Ints, Floats]:
    """Eq. 2: past an affine step, distances to the moved reference come on top of those spent before it (L0 adds, L-infinity is the larger)."""
    return l0 + l0_reference, np.maximum(linf, linf_reference)
