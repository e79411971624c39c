"""The default schedule: Thompson sampling of what finds defects that are not known yet, within a budget of severity.

Two bandits learn from the same outcomes. One chooses (mutator, severity level), rewarded by the first mutant of a (seed, answer) pair only: failing
mutants of a known pair are worth nothing. The other chooses parents by their gap, the distance in log-probability from the right answer to the
nearest wrong one that this seed has not given yet. Mutants that come closer to such an answer become parents.

A reward per defect alone drifts to severities that destroy the label. So the mean severity of every mutator stays within a budget (by default what
unguided mutants spend), and a chain never spends more than one whole severity range per mutator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from airflow_mlops.robustness.corpus import Corpus
from airflow_mlops.robustness.mutators.base import Floats, Ints
from airflow_mlops.robustness.schedules.base import LEVELS, Outcome, Proposals, Schedule, Space

GAPS = np.array([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 13.0])  # nats, edges of the bins in which parents are alike
# What is believed of a bin before anything was tried: this many tries, won at a rate of exp(-gap / 2). A parent of which the model is sure is
# seldom worth one; without the belief a whole generation would be spent to learn it.
PRIOR_TRIES = 10.0
PRIOR_RATES = np.exp(-np.append(GAPS, 2 * GAPS[-1] - GAPS[-2]) / 2.0)
FORGET = 0.9  # per generation: what was worth a lot is mined out
SMALLEST = 1e-7


class Bandit(Schedule):
    """Thompson sampling over (mutator, severity level) and over the parents' gaps (Thompson 1933; Chapelle and Li, NIPS 2011)."""

    mutants_per_parent: ClassVar[int] = 1

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        num = len(space.moves)
        self.wins, self.losses = np.zeros((num, LEVELS)), np.zeros((num, LEVELS))
        self.gap_wins, self.gap_losses = np.zeros(len(GAPS) + 1), np.zeros(len(GAPS) + 1)
        self.spent, self.counts = np.zeros(num), np.zeros(num)
        self.found: npt.NDArray[np.bool_] = np.zeros((0, space.num_classes), dtype=np.bool_)

    def weights(self, corpus: Corpus) -> Floats:
        return self._rates()[self._bins(corpus)] / (1.0 + corpus["times_fuzzed"])

    def steps(self, corpus: Corpus, parent: Ints, random: np.random.Generator) -> tuple[Ints, Floats]:
        draws = random.beta(1.0 + self.wins, 1.0 + self.losses, size=(len(parent), *self.wins.shape))
        draws[self.space.barred(corpus, parent)] = -1.0
        best = draws.reshape(len(parent), -1).argmax(axis=1)
        mutator, level = np.divmod(best, LEVELS)
        return mutator, self._within_budget(mutator, (level + random.random(len(parent))) / LEVELS)

    def keeps(self, corpus: Corpus, proposals: Proposals, outcome: Outcome) -> npt.NDArray[np.bool_]:
        parent = proposals.parent
        gap = gaps(outcome.outputs, outcome.expected, self._found(corpus)[corpus["seed"][parent]])
        return gap < self._gaps(corpus)[parent]

    def waste(self, proposals: Proposals) -> None:
        # A try that found nothing: without it, a mutator that finds nothing to change would be believed in for ever.
        np.add.at(self.losses, (proposals.mutator, proposals.level), 1.0)

    def learn(self, corpus: Corpus, proposals: Proposals, outcome: Outcome) -> None:
        for counts in (self.wins, self.losses, self.gap_wins, self.gap_losses):
            counts *= FORGET
        bins, won = self._bins(corpus)[proposals.parent], outcome.distinct
        for wins, losses, places in ((self.wins, self.losses, (proposals.mutator, proposals.level)), (self.gap_wins, self.gap_losses, (bins,))):
            np.add.at(wins, tuple(place[won] for place in places), 1.0)
            np.add.at(losses, tuple(place[~won] for place in places), 1.0)
        np.add.at(self.spent, proposals.mutator, proposals.severity)
        np.add.at(self.counts, proposals.mutator, 1.0)
        wrong = outcome.distinct & (outcome.prediction >= 0)
        self.found = self._found(corpus)
        self.found[corpus["seed"][proposals.parent][wrong], outcome.prediction[wrong]] = True

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        vars(self).update({name: state[name].copy() for name in self.state()})

    def _rates(self) -> Floats:
        return (PRIOR_TRIES * PRIOR_RATES + self.gap_wins) / (PRIOR_TRIES + self.gap_wins + self.gap_losses)

    def _bins(self, corpus: Corpus) -> Ints:
        return np.searchsorted(GAPS, self._gaps(corpus))

    def _gaps(self, corpus: Corpus) -> Floats:
        return gaps(corpus["outputs"], corpus["expected"], self._found(corpus)[corpus["seed"]])

    def _found(self, corpus: Corpus) -> npt.NDArray[np.bool_]:
        """Return by seed and answer what is known to go wrong, for as many seeds as the corpus begins with."""
        num = int(corpus["seed"].max()) + 1
        missing = np.zeros((max(0, num - len(self.found)), self.space.num_classes), dtype=np.bool_)
        return np.concatenate([self.found, missing])

    def _within_budget(self, mutator: Ints, severity: Floats) -> Floats:
        """Scale severities down so that the mean of every mutator, over the campaign so far and these, is within the budget."""
        num = len(self.counts)
        asked = np.bincount(mutator, weights=severity, minlength=num)
        granted = self.space.severity_budget * (self.counts + np.bincount(mutator, minlength=num)) - self.spent
        factor = np.clip(granted / np.maximum(asked, SMALLEST), 0.0, 1.0)
        return severity * factor[mutator]


def gaps(outputs: Floats, expected: Ints, found: npt.NDArray[np.bool_]) -> Floats:
    """Return (N,) nats from the right answer to the nearest wrong one not `found` (N, C) yet; infinite where all are, or the answer is NaN."""
    logs = np.log(np.clip(np.nan_to_num(outputs), SMALLEST, 1.0))
    right = np.where(expected >= 0, expected, ~expected)
    rows = np.arange(len(outputs))
    wrong = np.where(found, -np.inf, logs)
    wrong[rows, right] = -np.inf
    return np.asarray(logs[rows, right] - wrong.max(axis=1, initial=-np.inf))
