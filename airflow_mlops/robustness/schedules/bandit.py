"""The default schedule: where is a defect that is not known yet likely, and what is it worth to look there once more?

A defect is worth something once: a pair of a seed and a wrong answer. So the schedule holds, for every pair that is not found, its *gap* (by how
many nats of log-probability the nearest mutant so far misses that answer) and how many mutants of the seed were made in vain since the gap last
shrank. How often a mutant finds a pair, by gap and vain mutants, is counted over all pairs alike, and begins with a belief. The sum of these chances
over the pairs of a seed is what one more mutant of it is expected to find: an estimate of the undiscovered, like that of Good and Turing (Biometrika
40, 1953). Parents are drawn in proportion to it. It falls with every pair found and every mutant made in vain, so the search spreads by itself.

A mutant that comes closest to an answer becomes the parent for it, also one that is wrong already: beyond one wrong answer often lies another.

Mutators and levels of severity are drawn by the square of what they lately were worth: a new pair, or the better chance of one by a smaller gap.
Of each as much is believed beforehand as two finds say, of the mean over all: while finds are many the schedule takes sides at once, and where they
become rare, and what found the first defects does not find the last, all are tried alike. A fixed share of parents and of steps is drawn without any
guidance.

A reward per defect drifts to severities that destroy the label. So the mean severity of every mutator stays within a budget (by default what
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

UNGUIDED = 0.2  # share of the parents, of the seeds and of the steps that is drawn as if nothing was known
FROM_SEED = 0.3  # share of the guided mutants that begin a new chain
GAPS = np.array([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 13.0])  # nats, edges of the bins in which pairs are alike
VAIN = np.array([4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048])  # mutants, edges of the same
# What is believed of a bin before anything was tried, in as many tries: a tenth of exp(-gap / 2), and less the more was in vain.
PRIOR_TRIES = 10.0
PRIOR_RATES = 0.1 * np.exp(-np.append(GAPS, 2 * GAPS[-1] - GAPS[-2]) / 2.0)[:, None] / np.arange(1, len(VAIN) + 2)
PRIOR_WINS = 2.0  # finds that are believed of every mutator and level before it is tried, at the mean rate of all
LEAST_RATE = 1e-4  # mean rate where nothing is found
FORGET = 0.8  # per generation, of what mutators were worth
MARGIN = 0.1  # nats that a record is broken by at least, so that the corpus does not fill with hairbreadths
SMALLEST = 1e-7


class Bandit(Schedule):
    """Where a new (seed, wrong answer) pair is likely: chances learned by gap and by mutants made in vain; mutators by what they lately found."""

    mutants_per_parent: ClassVar[int] = 1

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        num, bins, no_seeds = len(space.moves), PRIOR_RATES.shape, (0, space.num_classes)
        self.wins, self.tries = np.zeros((num, LEVELS)), np.zeros((num, LEVELS))
        self.spent, self.counts = np.zeros(num), np.zeros(num)
        self.pair_wins, self.pair_tries = np.zeros(bins), np.zeros(bins)
        # By seed, in the order of the corpus, and answer: is the pair found, by what do its record and its nearest entry miss it, mutants in vain.
        self.found = np.zeros(no_seeds, np.bool_)
        self.gap: Floats = np.zeros(no_seeds)
        self.record, self.vain = np.zeros(no_seeds, np.intp), np.zeros(no_seeds)
        self.num_known = np.zeros(1, np.intp)  # entries of the corpus that the records are of

    def weights(self, corpus: Corpus) -> Floats:
        self._begin(corpus)
        chances = self._rates()[self._bins()] * ~self.found
        num_seeds, worth = len(chances), chances.sum(axis=1)
        guided = (1.0 - FROM_SEED) * chances
        weights: Floats = np.bincount(self.record.ravel(), weights=guided.ravel(), minlength=len(corpus)).astype(np.float64)
        weights[:num_seeds] += FROM_SEED * worth
        weights[:num_seeds] += UNGUIDED / (1.0 - UNGUIDED) * (weights.sum() or 1.0) / num_seeds
        return weights

    def steps(self, corpus: Corpus, parent: Ints, random: np.random.Generator) -> tuple[Ints, Floats]:
        mean = max(LEAST_RATE, self.wins.sum() / max(1.0, self.tries.sum()))
        worth = ((PRIOR_WINS + self.wins) / (PRIOR_WINS / mean + self.tries)) ** 2
        worth = (1.0 - UNGUIDED) * worth / worth.sum() + UNGUIDED / worth.size
        mutator = _drawn(np.where(self.space.barred(corpus, parent), 0.0, worth.sum(axis=1)), random)
        level = _drawn(worth[mutator], random)
        return mutator, self._within_budget(mutator, (level + random.random(len(parent))) / LEVELS)

    def keeps(self, corpus: Corpus, proposals: Proposals, outcome: Outcome) -> npt.NDArray[np.bool_]:
        seed, rows = self._seeds(corpus, proposals.parent), np.arange(len(proposals))
        gap = np.where(self.found[seed], np.inf, gaps(outcome.outputs, outcome.expected))
        gap[rows[outcome.defect], outcome.prediction[outcome.defect]] = np.inf  # it has just been found
        answer = gap.argmin(axis=1)
        nearest, pair = gap[rows, answer], seed * self.space.num_classes + answer
        # Of several that break the same record only the best.
        order = np.lexsort((nearest, pair))
        best = order[np.unique(pair[order], return_index=True)[1]]
        keeps = np.zeros(len(proposals), np.bool_)
        keeps[best] = nearest[best] < self.gap[seed[best], answer[best]] - MARGIN
        return keeps

    def waste(self, proposals: Proposals) -> None:
        # A try that found nothing: without it, a mutator that finds nothing to change would be believed in for ever.
        np.add.at(self.tries, (proposals.mutator, proposals.level), 1.0)

    def learn(self, corpus: Corpus, proposals: Proposals, outcome: Outcome) -> None:
        seed = self._seeds(corpus, proposals.parent)
        self._learn_chances(seed, outcome)
        self._take_records(corpus)
        value = self._rates()[:, 0]
        before = value[np.searchsorted(GAPS, gaps(corpus["outputs"][proposals.parent], corpus["expected"][proposals.parent]))]
        nearer = value[np.searchsorted(GAPS, gaps(outcome.outputs, outcome.expected))] - before
        worth = outcome.distinct + np.where(self.found[seed], 0.0, nearer).max(axis=1).clip(0.0)
        self.wins *= FORGET
        self.tries *= FORGET
        np.add.at(self.wins, (proposals.mutator, proposals.level), worth)
        np.add.at(self.tries, (proposals.mutator, proposals.level), 1.0)
        np.add.at(self.spent, proposals.mutator, proposals.severity)
        np.add.at(self.counts, proposals.mutator, 1.0)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        vars(self).update({name: state[name].copy() for name in self.state()})

    def _begin(self, corpus: Corpus) -> None:
        """Take the seeds, with which a corpus begins, as the first records."""
        if len(self.gap):
            return
        num = np.count_nonzero(corpus["depth"] == 0)
        self.gap = gaps(corpus["outputs"][:num], corpus["expected"][:num])
        self.record = np.repeat(np.arange(num)[:, None], self.space.num_classes, axis=1)
        self.vain, self.found, self.num_known = np.zeros(self.gap.shape), np.zeros(self.gap.shape, np.bool_), np.array([num])

    def _seeds(self, corpus: Corpus, entries: Ints) -> Ints:
        """Return which of the corpus' seeds, that come in ascending order, each of `entries` (N,) stems from."""
        self._begin(corpus)
        return np.searchsorted(corpus["seed"][: len(self.gap)], corpus["seed"][entries])

    def _rates(self) -> Floats:
        return np.asarray((PRIOR_TRIES * PRIOR_RATES + self.pair_wins) / (PRIOR_TRIES + self.pair_tries))

    def _bins(self) -> tuple[Ints, Ints]:
        return np.searchsorted(GAPS, self.gap), np.searchsorted(VAIN, self.vain, side="right")

    def _learn_chances(self, seed: Ints, outcome: Outcome) -> None:
        """Count what N mutants of the seeds `seed` (N,) won and lost for each pair that was open."""
        won, wrong = np.zeros(self.found.shape, np.bool_), outcome.distinct & (outcome.prediction >= 0)
        won[seed[wrong], outcome.prediction[wrong]] = True
        num, missing = np.bincount(seed, minlength=len(won))[:, None], ~self.found
        tried = np.where(won, (num + 1) / 2.0, num)  # a pair that was found was open for half of them, on average
        bins = tuple(place[missing] for place in self._bins())
        np.add.at(self.pair_tries, bins, tried[missing])
        np.add.at(self.pair_wins, bins, won[missing])
        self.found, self.vain = self.found | won, self.vain + num

    def _take_records(self, corpus: Corpus) -> None:
        """Compare what the corpus has gained with the records."""
        entries = np.arange(self.num_known[0], len(corpus))
        seed, gap = self._seeds(corpus, entries), gaps(corpus["outputs"][entries], corpus["expected"][entries])
        row, answer = np.nonzero(gap < self.gap[seed] - MARGIN)
        order = np.argsort(-gap[row, answer], kind="stable")  # the nearest is written last
        row, answer = row[order], answer[order]
        self.gap[seed[row], answer], self.record[seed[row], answer], self.vain[seed[row], answer] = gap[row, answer], entries[row], 0.0
        self.num_known = np.array([len(corpus)])

    def _within_budget(self, mutator: Ints, severity: Floats) -> Floats:
        """Scale severities down so that the mean of every mutator, over the campaign so far and these, is within the budget."""
        num = len(self.counts)
        asked = np.bincount(mutator, weights=severity, minlength=num)
        granted = self.space.severity_budget * (self.counts + np.bincount(mutator, minlength=num)) - self.spent
        factor = np.clip(granted / np.maximum(asked, SMALLEST), 0.0, 1.0)
        return severity * factor[mutator]


def gaps(outputs: Floats, expected: Ints) -> Floats:
    """Return (N, C) by how many nats each wrong answer misses being given; infinite for the right answer (see `oracles.Evidence`) and for NaN."""
    logs = np.log(np.clip(np.nan_to_num(outputs), SMALLEST, 1.0))
    is_label = np.arange(outputs.shape[1]) == np.where(expected >= 0, expected, ~expected)[:, None]
    right = np.where((expected >= 0)[:, None], is_label, ~is_label) | np.isnan(outputs).any(axis=1, keepdims=True)
    return np.where(right, np.inf, logs.max(axis=1, keepdims=True) - logs)


def _drawn(weights: Floats, random: np.random.Generator) -> Ints:
    """Return (N,) a place in each row of `weights` (N, K), in proportion to them."""
    sums = weights.cumsum(axis=1)
    at = np.count_nonzero(sums <= (random.random(len(weights)) * sums[:, -1])[:, None], axis=1)
    return np.asarray(np.minimum(at, weights.shape[1] - 1))
