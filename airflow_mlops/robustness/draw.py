"""The random choices of one step: which parents, which mutators, how severe. Nothing else in a campaign is random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from airflow_mlops.robustness.corpus import Corpus
from airflow_mlops.robustness.mutators import MUTATORS, NAMES
from airflow_mlops.robustness.mutators.base import Floats, Ints
from airflow_mlops.robustness.schedules import Schedule

_LOW = np.array([MUTATORS[name].low for name in NAMES])
_HIGH = np.array([MUTATORS[name].high for name in NAMES])
AFFINE = np.array([MUTATORS[name].affine for name in NAMES])


@dataclass(frozen=True)
class Proposals:
    """N candidates, each column (N,): corpus entry, position in `NAMES`, severity in the mutator's unit, 32-bit key."""

    parent: Ints
    mutator: Ints
    severity: Floats
    key: Ints

    @property
    def affine(self) -> Ints:
        return AFFINE[self.mutator]


def generator(seed: int, arm: int, step: int) -> np.random.Generator:
    """Return the generator of one step, a function of its address only, so that steps can be redone or shared out."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, arm, step])))


def propose(corpus: Corpus, num: int, *, names: Sequence[str], schedule: Schedule, mutants_per_parent: int, random: np.random.Generator) -> Proposals:
    """Return `num` candidates: parents by the schedule, up to `mutants_per_parent` each, mutators and severities uniform.

    `names` are in the order of `MUTATORS`, pixel mutators first; a parent with an affine step behind it draws from those alone.
    """
    weights = schedule(corpus["times_fuzzed"], corpus["depth"])
    chosen = random.choice(len(corpus), size=-(-num // mutants_per_parent), p=weights / weights.sum())
    np.add.at(corpus["times_fuzzed"], chosen, 1)
    parent = np.repeat(chosen, mutants_per_parent)[:num]
    positions = np.array([NAMES.index(name) for name in names])
    num_allowed = np.where(corpus["affine"][parent], np.count_nonzero(~AFFINE[positions]), len(positions))
    mutator = positions[(random.random(num) * num_allowed).astype(np.intp)]
    severity = _LOW[mutator] + random.random(num) * (_HIGH - _LOW)[mutator]
    return Proposals(parent, mutator, severity.astype(np.float32), random.integers(0, 2**32, num, dtype=np.uint32))
