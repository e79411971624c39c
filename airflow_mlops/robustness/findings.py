"""What an arm has found, as recipes."""

from __future__ import annotations

from typing import Any

import numpy as np

from airflow_mlops.robustness.arm import Arm
from airflow_mlops.robustness.recipes import Recipe, Step


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


def distinct_within(arm: Arm, num_mutants: int) -> int:
    """Return how many different (seed, wrong answer) pairs the first `num_mutants` mutants of an arm found."""
    found = arm.defects()
    return int(np.count_nonzero(found["distinct"] & (found["order"] < num_mutants)))


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
