"""Selection weights, and drawing by them."""

from __future__ import annotations

import numpy as np
import pytest

from airflow_mlops.robustness.corpus import Corpus
from airflow_mlops.robustness.draw import AFFINE, generator, propose
from airflow_mlops.robustness.mutators import MUTATORS, NAMES
from airflow_mlops.robustness.schedules import SCHEDULES


def corpus_of(num):
    return Corpus(np.zeros((num, 8, 8, 1), np.float32), np.arange(num), np.zeros(num, int))


def test_deephunter_decays_with_use_and_never_below_p_min():
    weights = SCHEDULES["deephunter"](np.array([0, 1, 2, 3, 1000]), np.zeros(5, int))
    assert weights == pytest.approx([0.8, 0.6, 0.4, 0.3, 0.3])


def test_uniform_treats_all_alike_and_unguided_knows_only_seeds():
    fuzzed, depth = np.array([0, 9, 3]), np.array([0, 1, 0])
    assert SCHEDULES["uniform"](fuzzed, depth).tolist() == [1, 1, 1]
    assert SCHEDULES["unguided"](fuzzed, depth).tolist() == [1, 0, 1]


def test_parents_are_drawn_in_proportion_to_their_weights_and_counted():
    corpus = corpus_of(2)
    for step in range(300):
        corpus["times_fuzzed"][:] = [0, 1000]
        propose(corpus, 20, names=NAMES, schedule=SCHEDULES["deephunter"], mutants_per_parent=1, random=generator(0, 0, step))
        if step == 0:
            drawn = np.zeros(2)
        drawn += corpus["times_fuzzed"] - [0, 1000]
    assert drawn.sum() == 6000
    assert drawn[0] / 6000 == pytest.approx(0.8 / 1.1, abs=0.03)


def test_each_parent_gets_up_to_its_share_of_mutants():
    proposals = propose(corpus_of(50), 45, names=NAMES, schedule=SCHEDULES["uniform"], mutants_per_parent=20, random=generator(0, 0, 0))
    assert [len(set(proposals.parent[part])) for part in (slice(0, 20), slice(20, 40), slice(40, 45))] == [1, 1, 1]
    assert len(proposals.parent) == 45


def test_a_parent_with_an_affine_step_draws_pixel_mutators_only():
    corpus = corpus_of(2)
    corpus["affine"][0] = True
    proposals = propose(corpus, 2000, names=NAMES, schedule=SCHEDULES["uniform"], mutants_per_parent=1, random=generator(0, 0, 0))
    assert set(proposals.mutator[proposals.parent == 0]) == set(np.flatnonzero(~AFFINE))
    assert set(proposals.mutator[proposals.parent == 1]) == set(range(len(NAMES)))


def test_severities_fill_the_documented_range():
    proposals = propose(corpus_of(2), 5000, names=NAMES, schedule=SCHEDULES["uniform"], mutants_per_parent=1, random=generator(0, 0, 0))
    for position, mutator in enumerate(MUTATORS.values()):
        severity = proposals.severity[proposals.mutator == position]
        span = mutator.high - mutator.low
        assert mutator.low <= severity.min() < mutator.low + 0.05 * span
        assert mutator.high - 0.05 * span < severity.max() <= mutator.high + 1e-6


def test_every_step_of_every_arm_has_its_own_random_numbers():
    addresses = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    assert len({generator(*address).integers(2**60) for address in addresses}) == 4
    assert generator(3, 1, 4).integers(2**60) == generator(3, 1, 4).integers(2**60)
