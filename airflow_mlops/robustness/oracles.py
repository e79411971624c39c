"""Oracles: what counts as a defect. Each is a function of one signature; a campaign composes them, and any that speaks makes a defect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from airflow_mlops.robustness.members import returned
from airflow_mlops.robustness.models import Answers
from airflow_mlops.robustness.mutators.base import Floats, Ints

Bits: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """What is known of N mutants: the `expected` answers (N,), what the model said, and what the `reference` model said (N, C), if there is one.

    An expected answer ``e >= 0`` must be given; ``~e`` (negative) stands for "any answer but e", which a negation without a partner expects.
    `tolerance` is the largest difference of a probability between the two models that is still agreement.
    """

    expected: Ints
    answers: Answers
    reference: Floats | None
    tolerance: float


def misclassified(evidence: Evidence) -> Bits:
    """The model answers, and not what was expected."""
    prediction, expected = evidence.answers.prediction, evidence.expected
    wrong = np.where(expected >= 0, prediction != expected, prediction == ~expected)
    return np.asarray(wrong & (prediction >= 0))


def disagrees(evidence: Evidence) -> Bits:
    """The reference model gives some class a probability that differs by more than the tolerance; without finite answers nobody disagrees."""
    if evidence.reference is None:
        return np.zeros(len(evidence.expected), dtype=np.bool_)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(evidence.answers.outputs - evidence.reference).max(axis=1, initial=0.0) > evidence.tolerance)


def not_finite(evidence: Evidence) -> Bits:
    """The model answers NaN or infinity: a defect of its own kind, whatever was expected."""
    return np.asarray(evidence.answers.prediction == -1)


Oracle: TypeAlias = Callable[[Evidence], Bits]

ORACLES: dict[str, Oracle] = {"misclassified": misclassified, "disagrees": disagrees, "not_finite": not_finite}


def verdicts(names: Sequence[str], evidence: Evidence) -> Ints:
    """Return (N,) which oracle speaks first, as its position in `names`, or -1 where none does."""
    shape = (len(evidence.expected),)
    spoken = np.stack([returned(f"Oracle {name!r}", "verdicts", ORACLES[name](evidence), shape=shape, kinds="b") for name in names])
    return np.where(spoken.any(axis=0), spoken.argmax(axis=0), -1)
