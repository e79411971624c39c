"""Hyperparameter search: which parameters to try, decided before anything runs, and which training was best.

Light, because DAG files name it. The trials are independent of each other, so that they run as one mapped task.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from airflow_mlops.exceptions import SpecError, TrainingError

Value = str | int | float | bool
Trial = dict[str, Value]
DIRECTIONS = ("max", "min")


class Range(NamedTuple):
    """Numbers from `low` to `high`, whole ones where both are whole; `log` draws every order of magnitude equally often."""

    low: float
    high: float
    log: bool = False

    def draw(self, generator: random.Random) -> float:
        """Return one number of the range."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        if not self.log:
            return generator.randint(int(self.low), int(self.high)) if whole else generator.uniform(self.low, self.high)
        number = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return round(number) if whole else number


@dataclass(frozen=True)
class Grid:
    """Every combination of the `values` of each parameter; the training with the best `metric`, by `direction` ``max`` or ``min``, is chosen."""

    values: Mapping[str, Sequence[Value]]
    metric: str
    direction: str = "max"

    def __post_init__(self) -> None:
        _check(self.values, self.direction)

    def trials(self) -> list[Trial]:
        """Return the parameters of every trial; the last parameter changes first."""
        return [dict(zip(self.values, chosen, strict=True)) for chosen in itertools.product(*self.values.values())]


@dataclass(frozen=True)
class RandomSearch:
    """`num_trials` random combinations, the same for the same `seed`, each parameter drawn from its values or its `Range`; see `Grid`."""

    values: Mapping[str, Sequence[Value] | Range]
    num_trials: int
    metric: str
    direction: str = "max"
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.values, self.direction)
        if self.num_trials < 1:
            raise SpecError(f"num_trials is {self.num_trials}; a search needs at least 1.")

    def trials(self) -> list[Trial]:
        """Return the parameters of every trial; they do not depend on how many are drawn after them."""
        generator = random.Random(self.seed)
        return [{name: _draw(values, generator) for name, values in self.values.items()} for _ in range(self.num_trials)]


Search = Grid | RandomSearch


def best(metrics: Sequence[Mapping[str, float]], metric: str, direction: str) -> int:
    """Return which of the trainings, each given by its last value of every metric, is best by `metric`; of equal ones the first.

    Trainings that did not log it take no part; raise `TrainingError` if none did.
    """
    found = {number: logged[metric] for number, logged in enumerate(metrics) if metric in logged}
    if not found:
        known = ", ".join(sorted({name for logged in metrics for name in logged})) or "none"
        raise TrainingError(
            f"None of {len(metrics)} trainings logged the metric {metric!r}; logged were: {known}. Call context.log_metric({metric!r}, ...) "
            "in the train function, or search by another metric."
        )
    return (max if direction == "max" else min)(found, key=lambda number: found[number])


def _draw(values: Sequence[Value] | Range, generator: random.Random) -> Value:
    return values.draw(generator) if isinstance(values, Range) else generator.choice(values)


def _check(values: Mapping[str, Sequence[Value] | Range], direction: str) -> None:
    if direction not in DIRECTIONS:
        raise SpecError(f"direction is {direction!r}; expected 'max' where more of the metric is better, else 'min'.")
    if not values:
        raise SpecError("The search names no parameter; give at least one, with the values to try.")
    for name, tried in values.items():
        if isinstance(tried, str) or not len(tried):
            raise SpecError(f"The search tries {tried!r} for {name!r}; expected a list of at least one value.")
        if isinstance(tried, Range) and not (tried.low < tried.high and (tried.low > 0 or not tried.log)):
            raise SpecError(f"The search tries {tried} for {name!r}; expected low < high, and 0 < low where log is set.")
