"""The whole campaign on real digits: what it claims can be checked mutant by mutant."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from scipy.stats import binomtest

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness import constraints
from airflow_mlops.robustness.campaign import CampaignConfig, replay, run_campaign
from airflow_mlops.robustness.corpus import Corpus
from airflow_mlops.robustness.coverage import CRITERIA
from airflow_mlops.robustness.loop import ArmPlan, explore
from airflow_mlops.robustness.mutators import MUTATORS, NAMES
from airflow_mlops.robustness.recipes import RecipeBook
from airflow_mlops.robustness.statistics import defect_rate

CONFIG = CampaignConfig(max_mutants=3_000, sample_mutants=2_700, batch_size=512, kmnc_sections=100, seed=3)


@pytest.fixture(scope="module")
def result(digits, tmp_path_factory):
    return run_campaign(digits.model, digits.inputs, digits.labels, config=CONFIG, out_dir=tmp_path_factory.mktemp("first"), profile=digits.profile)


@pytest.fixture(scope="module")
def explored(digits):
    """The guided arm with its corpus in sight."""
    seeds = np.flatnonzero(digits.probe.answer(digits.inputs).prediction == digits.labels)
    corpus = Corpus(digits.inputs[seeds], seeds, digits.labels[seeds])
    criteria = [CRITERIA[name](digits.profile, CONFIG.coverage_options) for name in CONFIG.criteria]
    arm = explore(digits.probe, corpus, criteria, config=CONFIG, plan=ArmPlan("deephunter", 3_000, 20, 0))
    return arm, corpus


def test_seeds_are_the_inputs_answered_correctly(digits, result):
    correct = digits.model.predict(digits.inputs, verbose=0).argmax(axis=1) == digits.labels
    assert result.num_seeds == correct.sum()
    assert all(correct[recipe.seed] for recipe in result.defects)


def test_every_defect_replays_to_its_wrong_answer_on_any_batch_size(digits, result):
    mutants = replay(result.defects, digits.inputs, batch_size=7)
    assert result.num_defects == len(result.defects) > 5
    assert np.array_equal(mutants, replay(result.defects, digits.inputs, batch_size=4096))
    answers = digits.probe.answer(mutants)
    # The picture is equal to the bit; the model's sums may differ in the last bits between batch sizes, which can flip an exact tie.
    assert np.mean(answers.prediction == [recipe.prediction for recipe in result.defects]) > 0.99
    np.testing.assert_allclose(answers.confidence, [recipe.confidence for recipe in result.defects], atol=1e-4)
    assert all(recipe.label == digits.labels[recipe.seed] != recipe.prediction for recipe in result.defects)


def test_distinct_defects_are_pairs_of_seed_and_wrong_answer(result):
    assert result.num_distinct_defects == len({(recipe.seed, recipe.prediction) for recipe in result.defects})


def test_the_same_seed_gives_the_same_result_bit_for_bit(digits, result, tmp_path):
    again = run_campaign(digits.model, digits.inputs, digits.labels, config=CONFIG, out_dir=tmp_path, profile=digits.profile)
    paths = {"recipes": result.recipes, "report": result.report}
    assert dataclasses.replace(again, **paths) == result
    assert again.recipes.read_bytes() == result.recipes.read_bytes()
    assert again.report.read_bytes() == result.report.read_bytes()


def test_another_seed_gives_other_mutants(digits, result, tmp_path):
    other = dataclasses.replace(CONFIG, seed=4)
    assert run_campaign(digits.model, digits.inputs, digits.labels, config=other, out_dir=tmp_path, profile=digits.profile).defects != result.defects


def test_rates_are_of_the_random_sample_with_exact_intervals(result):
    rates = result.defect_rates
    assert sum(rate.num_mutants for rate in rates.values()) == result.sample.num_mutants == 2_700
    assert sum(rate.num_defects for rate in rates.values()) == result.sample.num_defects > 0
    assert result.sample_rate == result.sample.num_defects / 2_700
    assert list(rates) == list(NAMES)
    for rate in rates.values():
        assert rate.num_mutants > 150
        exact = binomtest(rate.num_defects, rate.num_mutants).proportion_ci(0.95, method="exact")
        assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_the_random_sample_knows_nothing_of_the_guided_arm(digits, result, tmp_path):
    config = dataclasses.replace(CONFIG, schedule="uniform", mutants_per_parent=5, criteria=("nc",), max_mutants=500)
    other = run_campaign(digits.model, digits.inputs, digits.labels, config=config, out_dir=tmp_path, profile=digits.profile)
    assert other.defect_rates == result.defect_rates
    assert other.defects != result.defects


def test_an_interval_over_nothing_is_everything():
    rate = defect_rate(0, 0)
    assert (rate.rate, rate.low, rate.high) == (0.0, 0.0, 1.0)
    assert defect_rate(4, 4).high == 1.0
    assert defect_rate(0, 4).low == 0.0


def test_the_recipes_file_holds_the_defects_and_what_they_belong_to(digits, result):
    book = RecipeBook.load(result.recipes)
    assert book.recipes == result.defects
    assert book.model_digest == digits.probe.digest == result.model_digest
    assert np.array_equal(book.replay(digits.inputs), replay(result.defects, digits.inputs))


def test_kept_mutants_obey_both_equations_along_their_chains(digits, explored):
    _, corpus = explored
    deep = np.flatnonzero(corpus["depth"] >= 2)
    assert len(deep) > 50
    for entry in range(len(corpus)):
        l0_reference, linf_reference, parent = corpus["l0_reference"][entry], corpus["linf_reference"][entry], corpus["parent"][entry]
        reference = corpus["reference"][entry]
        l0, linf = constraints.distances(corpus.images[[reference]], corpus.images[[entry]])
        total = constraints.accumulated(l0, linf, np.array([l0_reference]), np.array([linf_reference]))
        assert constraints.satisfied(*total, size=64, span=1.0).all()
        assert total[0][0] == corpus["l0"][entry]
        if parent >= 0 and MUTATORS[NAMES[corpus["mutator"][entry]]].affine:
            assert reference == entry
            assert (l0_reference, linf_reference) == (corpus["l0"][parent], corpus["linf"][parent])


def test_a_chain_has_at_most_one_affine_step(explored):
    arm, corpus = explored
    chains = [corpus.chain(entry) for entry in range(len(corpus))] + [recipe.chain for recipe in arm.recipes]
    affine = [sum(MUTATORS[step.mutator].affine for step in chain) for chain in chains]
    assert set(affine) == {0, 1}
    assert max(map(len, chains)) >= 3


def test_kept_mutants_replay_to_the_corpus_and_are_answered_correctly(digits, explored):
    arm, corpus = explored
    kept = np.flatnonzero(corpus["depth"] > 0)
    recipes = [dataclasses.replace(arm.recipes[0], seed=int(corpus["seed"][entry]), chain=corpus.chain(entry)) for entry in kept]
    assert np.array_equal(replay(recipes, digits.inputs, batch_size=100), corpus.images[kept])
    assert np.array_equal(digits.probe.answer(corpus.images).prediction, corpus["label"])


def test_the_corpus_is_bounded_and_the_report_says_so(digits, result, tmp_path):
    config = dataclasses.replace(CONFIG, max_corpus=600, max_mutants=2000)
    bounded = run_campaign(digits.model, digits.inputs, digits.labels, config=config, out_dir=tmp_path, profile=digits.profile)
    assert any("corpus was full at 600" in note for note in bounded.notes)
    assert not any("corpus was full" in note for note in result.notes)


def test_too_fine_sections_are_reported(digits, tmp_path):
    config = dataclasses.replace(CONFIG, max_mutants=500, kmnc_sections=5000)
    notes = run_campaign(digits.model, digits.inputs, digits.labels, config=config, out_dir=tmp_path).notes
    assert any("counted as new coverage" in note for note in notes)
    assert any("No profile of the training data" in note for note in notes)


@pytest.mark.parametrize("mutators", [("rotation", "scale"), ("blur",)])
def test_a_campaign_may_use_some_mutators_only(digits, tmp_path, mutators):
    config = dataclasses.replace(CONFIG, mutators=mutators, max_mutants=1000, sample_mutants=500)
    few = run_campaign(digits.model, digits.inputs, digits.labels, config=config, out_dir=tmp_path)
    assert set(few.defect_rates) == set(mutators)
    assert {step.mutator for recipe in few.defects for step in recipe.chain} <= set(mutators)
    assert all(sum(MUTATORS[step.mutator].affine for step in recipe.chain) <= 1 for recipe in few.defects)


def test_a_constraint_that_admits_nothing_ends_with_advice(digits, monkeypatch):
    monkeypatch.setattr(constraints, "BETA", 0.0)
    config = dataclasses.replace(CONFIG, mutators=("brightness",), max_mutants=64)
    corpus = Corpus(digits.inputs[:10], np.arange(10), digits.labels[:10])
    with pytest.raises(RobustnessError, match="gentler mutators than brightness"):
        explore(digits.probe, corpus, [], config=config, plan=ArmPlan("uniform", 64, 20, 0))


def run(model, inputs, labels, tmp_path, **config):
    return run_campaign(model, inputs, labels, config=dataclasses.replace(CONFIG, **config), out_dir=tmp_path)


def test_no_correctly_answered_input_says_what_to_do(digits, tmp_path):
    with pytest.raises(RobustnessError, match=r"none of the 597 inputs correctly.*Check that the labels"):
        run(digits.model, digits.inputs, digits.labels + 10, tmp_path)


def test_a_model_that_answers_nan_is_refused(digits, tmp_path):
    broken = keras.models.clone_model(digits.model)
    broken.set_weights([np.full_like(weight, np.nan) for weight in broken.get_weights()])
    with pytest.raises(RobustnessError, match=r"NaN or infinity\. Train it again"):
        run(broken, digits.inputs, digits.labels, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, labels: (images[..., 0], labels), r"shape \(N, height, width, channels\)"),
        (lambda images, labels: (images[:0], labels[:0]), "N >= 1"),
        (lambda images, labels: ((images * 255).astype(np.uint8), labels), "floating-point images"),
        (lambda images, labels: (images, labels[:-1]), "one class number for each"),
        (lambda images, labels: (images, np.eye(10)[labels]), "labels.argmax"),
        (lambda images, labels: (images * 16, labels), "set value_range"),
        (lambda images, labels: (np.where(images > 0.9, np.nan, images), labels), "hold NaN"),
    ],
)
def test_unusable_inputs_are_refused_with_advice(digits, tmp_path, change, message):
    with pytest.raises(RobustnessError, match=message):
        run(digits.model, *change(digits.inputs, digits.labels), tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mutators", ("rotatoin",), "Did you mean 'rotation'"),
        ("mutators", (), "at least one name"),
        ("mutators", ("blur", "blur"), "each once"),
        ("criteria", ("kmc",), "Did you mean 'kmnc'"),
        ("schedule", "deephuntr", "Did you mean 'deephunter'"),
        ("max_mutants", 0, "max_mutants is 0"),
        ("batch_size", -1, "batch_size is -1"),
        ("seed", -1, "seed is -1"),
        ("nc_threshold", 1.0, "nc_threshold"),
        ("value_range", (1.0, 0.0), "value_range"),
        ("value_range", (0.0, float("inf")), "value_range"),
    ],
)
def test_an_impossible_configuration_is_refused(field, value, message):
    with pytest.raises(SpecError, match=message):
        CampaignConfig(**{field: value})
