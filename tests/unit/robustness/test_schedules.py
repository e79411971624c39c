"""Which parents are chosen, and what a schedule learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from airflow_mlops.robustness.corpus import Corpus
from airflow_mlops.robustness.draw import generator
from airflow_mlops.robustness.schedules import SCHEDULES
from airflow_mlops.robustness.schedules.bandit import gaps
from airflow_mlops.robustness.schedules.base import LEVELS, Outcome, Proposals, Space, propose

MOVES = np.array([False, False, True, True])
COUNTED = np.array([False, True, False, False])
OUTPUTS = np.array([[0.6, 0.3, 0.1]], np.float32)


def corpus_of(num):
    inputs = np.zeros((num, 2), np.float32)
    return Corpus.of_seeds(inputs, np.arange(num), np.zeros(num, int), np.repeat(OUTPUTS, num, axis=0), len(MOVES))


def made(name, budget=0.5):
    return SCHEDULES[name](Space(MOVES, COUNTED, 3, budget))


def outcome(num, won=()):
    distinct = np.isin(np.arange(num), won)
    return Outcome(distinct, distinct, np.zeros(num, bool), np.zeros(num, int), np.where(distinct, 1, 0), np.repeat(OUTPUTS, num, axis=0))


@pytest.fixture(params=sorted(SCHEDULES))
def schedule(request):
    return made(request.param)


def test_weights_are_a_choice_among_all_entries(schedule):
    weights = schedule.weights(corpus_of(7))
    assert weights.shape == (7,)
    assert (weights >= 0).all()
    assert weights.sum() > 0


def test_a_schedule_that_was_stored_goes_on_as_if_it_had_not_been(schedule):
    corpus = corpus_of(40)
    for generation in range(4):
        proposals = propose(schedule, corpus, 64, generator(0, 0, 0, generation))
        schedule.learn(corpus, proposals, outcome(64, won=range(0, 64, 5)))
    other = type(schedule)(schedule.space)
    other.restore(schedule.state())
    copy = Corpus(corpus.inputs, corpus.columns)
    one, two = propose(schedule, corpus, 64, generator(0, 0, 0, 9)), propose(other, copy, 64, generator(0, 0, 0, 9))
    assert all(np.array_equal(mine, its) for mine, its in zip(vars(one).values(), vars(two).values(), strict=True))


def test_a_parent_that_moved_draws_mutators_that_do_not(schedule):
    corpus = corpus_of(2)
    corpus["moved"][0] = True
    proposals = propose(schedule, corpus, 2000, generator(0, 0, 0, 0))
    assert set(proposals.mutator[proposals.parent == 0]) == {0, 1}
    assert set(proposals.mutator[proposals.parent == 1]) == {0, 1, 2, 3}


def test_a_counted_mutator_is_used_once_in_a_chain(schedule):
    corpus = corpus_of(2)
    corpus["spent"][0, 1] = 0.01
    proposals = propose(schedule, corpus, 2000, generator(0, 0, 0, 0))
    assert set(proposals.mutator[proposals.parent == 0]) == {0, 2, 3}
    assert set(proposals.mutator[proposals.parent == 1]) == {0, 1, 2, 3}


def test_a_parent_that_moved_is_none_where_everything_moves():
    corpus = corpus_of(2)
    corpus["moved"][0] = True
    proposals = propose(
        SCHEDULES["uniform"](Space(np.array([True, True]), np.array([False, False]), 3, 0.5)),
        corpus_of_two_movers(corpus),
        100,
        generator(0, 0, 0, 0),
    )
    assert set(proposals.parent) == {1}


def corpus_of_two_movers(corpus):
    columns = {**corpus.columns, "spent": corpus["spent"][:, :2]}
    return Corpus(corpus.inputs, columns)


def test_severities_fill_the_range_and_a_chain_spends_it_once(schedule):
    corpus = corpus_of(2)
    corpus["spent"][0] = 0.75
    proposals = propose(schedule, corpus, 4000, generator(0, 0, 0, 0))
    first, second = (proposals.severity[proposals.parent == parent] for parent in (0, 1))
    assert 0.0 <= first.min() < first.max() == 0.25
    assert 0.0 <= second.min() < 0.05
    assert 0.9 < second.max() <= 1.0


def test_choices_are_counted(schedule):
    corpus = corpus_of(30)
    proposals = propose(schedule, corpus, 45, generator(0, 0, 0, 0))
    assert len(proposals) == 45
    assert corpus["times_fuzzed"].sum() == -(-45 // schedule.mutants_per_parent)


def test_twenty_mutants_of_one_parent_stand_together_and_the_unguided_have_one_each():
    proposals = propose(made("deephunter"), corpus_of(50), 45, generator(0, 0, 0, 0))
    assert [len(set(proposals.parent[part])) for part in (slice(0, 20), slice(20, 40), slice(40, 45))] == [1, 1, 1]
    assert len(set(propose(made("unguided"), corpus_of(50), 45, generator(0, 0, 0, 0)).parent)) > 20


def test_deephunter_decays_with_use_and_never_below_p_min():
    corpus = corpus_of(5)
    corpus["times_fuzzed"][:] = [0, 1, 2, 3, 1000]
    assert made("deephunter").weights(corpus) == pytest.approx([0.8, 0.6, 0.4, 0.3, 0.3])


def test_uniform_treats_all_alike_and_unguided_knows_only_seeds():
    corpus = corpus_of(3)
    corpus["depth"][1] = 1
    assert made("uniform").weights(corpus).tolist() == [1, 1, 1]
    assert made("unguided").weights(corpus).tolist() == [1, 0, 1]
    assert not made("unguided").keeps(corpus, Proposals(*np.zeros((4, 1), int)), outcome(1, won=[0])).any()


def test_tensorfuzz_takes_one_of_the_last_five_or_any():
    weights = made("tensorfuzz").weights(corpus_of(10))
    assert weights / weights.sum() == pytest.approx([0.1 / 6] * 5 + [1.1 / 6] * 5)


def test_deeptest_takes_the_newest_and_pops_what_gained_nothing():
    corpus = corpus_of(8)
    assert np.flatnonzero(made("deeptest").weights(corpus)).tolist() == [3, 4, 5, 6, 7]
    corpus["times_fuzzed"][5:] = 1
    corpus["last_gain"][7] = 2
    assert np.flatnonzero(made("deeptest").weights(corpus)).tolist() == [1, 2, 3, 4, 7]
    corpus["times_fuzzed"][:] = 1
    corpus["last_gain"][:] = 0
    assert made("deeptest").weights(corpus).tolist() == [1] * 8


def test_parents_are_drawn_in_proportion_to_their_weights():
    corpus, drawn = corpus_of(2), np.zeros(2)
    schedule = made("deephunter")
    for generation in range(300):
        corpus["times_fuzzed"][:] = [0, 1000]
        drawn += np.bincount(propose(schedule, corpus, 400, generator(0, 0, 0, generation)).parent[::20], minlength=2)
    assert drawn[0] / drawn.sum() == pytest.approx(0.8 / 1.1, abs=0.03)


def test_a_gap_is_what_a_wrong_answer_misses_of_being_given():
    outputs = np.repeat(OUTPUTS, 4, axis=0)
    outputs[3] = np.nan
    found = gaps(outputs, np.array([0, 2, ~1, 0]))
    assert found[0] == pytest.approx([np.inf, np.log(2), np.log(6)])
    assert found[1] == pytest.approx([0, np.log(2), np.inf])
    assert found[2] == pytest.approx([np.inf, np.log(2), np.inf])  # any answer but 1 is right
    assert np.isinf(found[3]).all()


def taught(schedule, corpus, num_generations, wins):
    """Tell the schedule that, of 200 mutants in each generation, those chosen by `wins(proposals)` found a pair for the first time."""
    for generation in range(num_generations):
        proposals = propose(schedule, corpus, 200, generator(0, 0, 0, generation))
        told = outcome(200, won=np.flatnonzero(wins(proposals)))
        schedule.learn(corpus, proposals, replace(told, prediction=np.full(200, -1)))


def share_of(schedule, corpus, seeds):
    weights = schedule.weights(corpus)
    return weights[seeds].sum() / weights.sum()


def test_the_bandit_learns_mutators_and_keeps_the_others_in_play():
    schedule, corpus = made("bandit"), corpus_of(60)
    taught(schedule, corpus, 12, lambda proposals: proposals.mutator == 1)
    last = propose(schedule, corpus, 4000, generator(0, 0, 0, 99))
    shares = np.bincount(last.mutator, minlength=4) / 4000
    assert shares[1] > 0.4
    assert shares.min() > 0.05


def test_the_bandit_prefers_seeds_that_are_near_a_wrong_answer_and_drops_none():
    schedule, corpus = made("bandit"), corpus_of(60)
    corpus["outputs"][:20] = [0.45, 0.44, 0.11]
    corpus["outputs"][20:] = [0.998, 0.001, 0.001]
    assert share_of(schedule, corpus, slice(0, 20)) > 0.75
    assert schedule.weights(corpus)[20:].min() > 0.19 / 60 * schedule.weights(corpus).sum()


def test_a_pair_that_is_known_is_worth_nothing_to_the_bandit():
    schedule, corpus = made("bandit"), corpus_of(60)
    corpus["outputs"][:] = [0.5, 0.49, 0.01]
    before = share_of(schedule, corpus, slice(0, 20))
    proposals = Proposals(np.arange(20), *np.zeros((3, 20), int))
    schedule.learn(corpus, proposals, outcome(20, won=range(20)))  # the near answer of the first twenty
    assert share_of(schedule, corpus, slice(0, 20)) < before - 0.1
    repeated = replace(outcome(20), defect=np.ones(20, bool), prediction=np.ones(20, int))
    wins = schedule.wins.sum(), schedule.pair_wins.sum()
    schedule.learn(corpus, proposals, repeated)
    assert (schedule.wins.sum(), schedule.pair_wins.sum()) <= wins


def test_what_was_tried_in_vain_leaves_its_place_to_others():
    schedule, corpus = made("bandit"), corpus_of(60)
    corpus["outputs"][:20] = [0.45, 0.44, 0.11]
    before = share_of(schedule, corpus, slice(0, 20))
    for _ in range(10):
        schedule.learn(corpus, Proposals(np.repeat(np.arange(20), 10), *np.zeros((3, 200), int)), outcome(200))
    assert share_of(schedule, corpus, slice(0, 20)) < before - 0.1


def test_the_bandit_spends_no_more_than_its_budget_per_mutator():
    schedule, corpus = made("bandit", budget=0.3), corpus_of(60)
    spent, count = np.zeros(4), np.zeros(4)
    for generation in range(20):
        proposals = propose(schedule, corpus, 100, generator(0, 0, 0, generation))
        worth = np.flatnonzero(proposals.severity * LEVELS >= LEVELS - 1)  # only the most severe ones win
        schedule.learn(corpus, proposals, outcome(100, won=worth))
        np.add.at(spent, proposals.mutator, proposals.severity)
        np.add.at(count, proposals.mutator, 1)
    assert (spent / count <= 0.3 + 1e-6).all()


def test_the_bandit_keeps_what_comes_closest_to_an_answer_that_is_not_known():
    schedule, corpus = made("bandit"), corpus_of(2)
    outputs = np.array([[0.5, 0.41, 0.09], [0.5, 0.45, 0.05], [0.9, 0.05, 0.05], [np.nan] * 3], np.float32)
    told = Outcome(*np.zeros((3, 4), bool), *np.zeros((2, 4), int), outputs)
    proposals = Proposals(np.array([0, 0, 1, 1]), *np.zeros((3, 4), int))
    assert schedule.keeps(corpus, proposals, told).tolist() == [False, True, False, False]  # of two of one seed the better
    schedule.found[0, 1] = True
    assert not schedule.keeps(corpus, proposals, told).any()


def test_the_bandit_goes_on_from_a_wrong_answer_to_the_next_one():
    schedule, corpus = made("bandit"), corpus_of(1)
    won = replace(outcome(1, won=[0]), outputs=np.array([[0.2, 0.45, 0.35]], np.float32))
    proposals = Proposals(*np.zeros((4, 1), int))
    assert schedule.keeps(corpus, proposals, won).all()
    far = replace(won, outputs=np.array([[0.09, 0.9, 0.01]], np.float32))
    assert not schedule.keeps(corpus, proposals, far).any()


def test_the_bandit_measures_a_mirrored_mutant_by_the_answer_expected_of_it():
    schedule, corpus = made("bandit"), corpus_of(1)
    proposals = Proposals(*np.zeros((4, 1), int))
    told = Outcome(*np.zeros((3, 1), bool), np.array([1]), np.array([1]), np.array([[0.1, 0.85, 0.05]], np.float32))
    assert schedule.keeps(corpus, proposals, told).all()  # the answer 0, right for the seed, is wrong for its mirror image
    schedule.found[0, 0] = True
    assert not schedule.keeps(corpus, proposals, told).any()
    assert schedule.keeps(corpus, proposals, replace(told, outputs=np.array([[0.1, 0.5, 0.4]], np.float32))).all()


def test_every_step_of_every_arm_has_its_own_random_numbers():
    addresses = [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0)]
    assert len({generator(*address).integers(2**60) for address in addresses}) == 5
    assert generator(3, 1, 4).integers(2**60) == generator(3, 1, 4).integers(2**60)
