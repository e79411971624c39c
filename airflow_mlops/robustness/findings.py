"""What an arm has found, as recipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from airflow_mlops.robustness.arm import Arm
from airflow_mlops.robustness.recipes import Recipe, Step

CURVE_POINTS = 40

Curve: TypeAlias = tuple[tuple[int, int], ...]  # (mutants, distinct defects in them)


def recipes_of(arm: Arm) -> list[Recipe]:
    """Return the defects of an arm in the order they were found."""
    columns: dict[str, list[Any]] = {name: column.tolist() for name, column in arm.defects().items()}
    names, labels = arm.lab.config.mutator_names, arm.lab.labels
    steps = _Steps(arm)
    recipes = []
    for seed, parent, mutator, severity, key, *rest in zip(*columns.values(), strict=True):
        expected, prediction, confidence, l0, linf, oracle, *_ = rest
        chain = (*steps.to(parent), Step(names[mutator], severity, key))
        name = arm.lab.config.oracles[oracle]
        recipes.append(Recipe(seed, chain, int(labels[seed]), expected, prediction, confidence, l0, linf, name))
    return recipes


def distinct_within(arms: Sequence[Arm], budgets: Sequence[int]) -> int:
    """Return how many different (seed, wrong answer) pairs the first mutants of each arm found, of each as many as its budget says."""
    return sum(int(np.searchsorted(_orders(arm), budget)) for arm, budget in zip(arms, budgets, strict=True))


def curve_of(arms: Sequence[Arm]) -> Curve:
    """Return the curve of one arm on all islands, each of which is at the same share of its mutants at a time; it begins at (0, 0)."""
    made = np.array([arm.num_mutants for arm in arms])
    budgets = (made * np.arange(CURVE_POINTS + 1)[:, None]) // CURVE_POINTS
    found = np.sum([np.searchsorted(_orders(arm), budgets[:, at]) for at, arm in enumerate(arms)], axis=0)
    return tuple(zip(budgets.sum(axis=1).tolist(), found.tolist(), strict=True))


def late(curve: Curve) -> int:
    """Return how many distinct defects the last quarter of a curve's mutants brought: few where there is hardly more to be found that way."""
    return curve[-1][1] - curve[3 * (len(curve) - 1) // 4][1]


def _orders(arm: Arm) -> npt.NDArray[np.int64]:
    """Return, ascending, the numbers of the mutants that found a pair first; pairs of different islands differ, as their seeds do."""
    found = arm.defects()
    return np.sort(found["order"][found["distinct"]])


class _Steps:
    """The chains of a corpus; many defects share their parents, and a parent's chain is put together once."""

    def __init__(self, arm: Arm) -> None:
        self._corpus, self._names = arm.corpus, arm.lab.config.mutator_names
        self._known: dict[int, tuple[Step, ...]] = {}

    def to(self, entry: int) -> tuple[Step, ...]:
        """Return the steps from the seed to `entry`."""
        if entry not in self._known:
            corpus = self._corpus
            steps = (Step(self._names[corpus["mutator"][at]], float(corpus["severity"][at]), int(corpus["key"][at])) for at in corpus.chain(entry))
            self._known[entry] = tuple(steps)
        return self._known[entry]
