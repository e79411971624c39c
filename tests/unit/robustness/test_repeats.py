"""A mutant drawn twice is one observation."""

from __future__ import annotations

import numpy as np

from airflow_mlops.robustness.repeats import Drawn


def test_the_same_mutant_of_the_same_seed_is_first_once():
    drawn, mutants = Drawn(), np.zeros((4, 3), np.float32)
    mutants[2, 1] = 1e-30
    assert drawn.first(np.array([0, 0, 0, 1]), mutants).tolist() == [True, False, True, True]
    assert drawn.first(np.array([0, 1, 2, 1]), mutants).tolist() == [False, False, True, False]


def test_texts_are_told_apart_too():
    drawn = Drawn()
    assert drawn.first(np.array([0, 0, 0]), np.array(["one", "one ", "one"], object)).tolist() == [True, True, False]


def test_what_was_drawn_is_known_after_an_interruption():
    drawn, other, mutants = Drawn(), Drawn(), np.random.default_rng(0).random((50, 4))
    drawn.first(np.zeros(50, int), mutants)
    other.digests = drawn.digests.copy()
    assert not other.first(np.zeros(50, int), mutants).any()
