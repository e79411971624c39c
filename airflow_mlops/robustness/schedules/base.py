"""What a schedule decides, and what it is told of the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.robustness.corpus import Corpus
from airflow_mlops.robustness.members import returned
from airflow_mlops.robustness.mutators.base import Floats, Ints

LEVELS = 5  # severities are tallied in this many equal parts of the range


@dataclass(frozen=True)
class Space:
    """What a schedule may choose from: M mutators, of which some `moves` (M,) and some are `counted` (M,), on seeds with `num_classes` answers.

    `severity_budget` is the mean severity per mutator that a schedule which learns may reach.
    """

    moves: npt.NDArray[np.bool_]
    counted: npt.NDArray[np.bool_]
    num_classes: int
    severity_budget: float

    def barred(self, corpus: Corpus, parent: Ints) -> npt.NDArray[np.bool_]:
        """Return (N, M) which mutators may not follow N parents: a chain moves once, and counts once, as every step rounds up to a place."""
        moved, used = corpus["moved"][parent], corpus["spent"][parent] > 0.0
        return np.asarray(np.logical_and.outer(moved, self.moves) | (used & self.counted))


@dataclass(frozen=True)
class Proposals:
    """N candidates, each column (N,): corpus entry, position of the mutator, severity in [0, 1], 32-bit key."""

    parent: Ints
    mutator: Ints
    severity: Floats
    key: Ints

    def __getitem__(self, rows: Any) -> Proposals:
        return Proposals(self.parent[rows], self.mutator[rows], self.severity[rows], self.key[rows])

    def __len__(self) -> int:
        return len(self.parent)

    @property
    def level(self) -> Ints:
        """Which of `LEVELS` equal parts of the range each severity is in (N,)."""
        return np.minimum((self.severity * LEVELS).astype(np.intp), LEVELS - 1)


@dataclass(frozen=True)
class Outcome:
    """What came of N valid mutants, each column (N,): was it a defect, the first of its (seed, answer) pair, new to a criterion; the answers.

    `expected` is the answer that would have been right (see `oracles.Evidence`), `prediction` the model's, `outputs` (N, C) its probabilities.
    """

    defect: npt.NDArray[np.bool_]
    distinct: npt.NDArray[np.bool_]
    new: npt.NDArray[np.bool_]
    expected: Ints
    prediction: Ints
    outputs: Floats


class Schedule:
    """Which kept mutants are fuzzed next, and how. The base chooses every entry, allowed mutator and severity alike, and learns nothing.

    A schedule decides from the corpus, its own `state` and the random generator it is given, and from nothing else: so a campaign repeats
    itself and resumes.
    """

    mutants_per_parent: ClassVar[int] = 20  # DeepHunter's
    samples: ClassVar[bool] = False  # draws as if nothing had been tried before, so that its mutants are a random sample

    def __init__(self, space: Space) -> None:
        self.space = space

    def weights(self, corpus: Corpus) -> Floats:
        """Return the unnormalised weight (len(corpus),) with which each entry is chosen."""
        return np.ones(len(corpus))

    def steps(self, corpus: Corpus, parent: Ints, random: np.random.Generator) -> tuple[Ints, Floats]:
        """Return mutator and severity, each (N,), for N parents: by default any that is not `Space.barred`."""
        return allowed(~self.space.barred(corpus, parent), random), random.random(len(parent))

    def keeps(self, corpus: Corpus, proposals: Proposals, outcome: Outcome) -> npt.NDArray[np.bool_]:
        """Return (N,) which mutants become parents: by default those that are no defects and new to a criterion."""
        return outcome.new & ~outcome.defect

    def learn(self, corpus: Corpus, proposals: Proposals, outcome: Outcome) -> None:
        """Take in what came of the valid mutants of one generation."""

    def waste(self, proposals: Proposals) -> None:
        """Take in the candidates of one generation, perhaps none, that were no valid mutants; `learn` sees the others afterwards."""

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return what was learned as arrays, from which `restore` makes an equal schedule."""
        return {}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replace what was learned by a `state`."""


def allowed(free: npt.NDArray[np.bool_], random: np.random.Generator) -> Ints:
    """Return (N,) one mutator for each parent, uniform among those that are `free` (N, M) to follow it."""
    draw = (random.random(len(free)) * np.count_nonzero(free, axis=1)).astype(np.intp)
    return np.asarray(np.argmax(np.cumsum(free, axis=1) > draw[:, None], axis=1))


def propose(schedule: Schedule, corpus: Corpus, num: int, random: np.random.Generator) -> Proposals:
    """Return `num` candidates and count them in the corpus; a chain spends at most one whole severity range per mutator."""
    who = f"Schedule {type(schedule).__name__}"
    weights = returned(who, "weights", schedule.weights(corpus), shape=(len(corpus),), kinds="fiu")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise RobustnessError(f"{who} weighs entries from {weights.min()} to {weights.max()}; expected finite weights from 0 on, not all of them 0.")
    # What no mutator may follow is no parent; where that leaves none, the candidates are tried in vain, and `Arm` says so.
    going_on = np.where(schedule.space.barred(corpus, np.arange(len(corpus))).all(axis=1), 0.0, weights)
    weights = going_on if going_on.any() else weights
    num_parents = -(-num // schedule.mutants_per_parent)
    chosen = random.choice(len(corpus), size=num_parents, p=weights / weights.sum())
    np.add.at(corpus["times_fuzzed"], chosen, 1)
    parent = np.repeat(chosen, schedule.mutants_per_parent)[:num]
    steps, names, kinds = schedule.steps(corpus, parent, random), ("mutators", "severities"), ("iu", "fiu")
    mutator, severity = (returned(who, name, step, shape=(num,), kinds=kind) for name, step, kind in zip(names, steps, kinds, strict=True))
    if not (0 <= mutator.min() <= mutator.max() < len(schedule.space.moves) and np.isfinite(severity).all()):
        raise RobustnessError(f"{who} chose mutators {mutator.min()} to {mutator.max()} of {len(schedule.space.moves)}, or severities that are NaN.")
    left = np.where(schedule.space.barred(corpus, parent)[np.arange(num), mutator], 0.0, 1.0 - corpus["spent"][parent, mutator])
    severity = np.clip(severity, 0.0, np.maximum(left, 0.0)).astype(np.float32)
    return Proposals(parent, mutator, severity, random.integers(0, 2**32, num, dtype=np.uint32))
