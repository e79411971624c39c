"""The whole campaign on real digits: what it claims can be checked mutant by mutant."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from scipy.stats import binomtest

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness import constraints
from airflow_mlops.robustness.campaign import CampaignConfig, RecipeBook, finish, run_campaign
from airflow_mlops.robustness.config import config_of
from airflow_mlops.robustness.coverage import CoverageOptions
from airflow_mlops.robustness.kinds import Images
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.mutators.base import Mutator
from airflow_mlops.robustness.shards import GUIDED, SHARD_FILE, arm_of, run_shard
from airflow_mlops.robustness.statistics import defect_rate

from .conftest import finished

CONFIG = CampaignConfig(max_mutants=3_000, sample_mutants=2_700, batch_size=512, coverage=CoverageOptions(kmnc_sections=100), seed=3)


def campaign(digits, out_dir, config=CONFIG, **changes):
    config = dataclasses.replace(config, **changes)
    return run_campaign(digits.model, digits.inputs, digits.labels, config=config, out_dir=out_dir, profile=digits.profile)


def lab(digits, **changes):
    return Lab.of(digits.model, digits.inputs, digits.labels, dataclasses.replace(CONFIG, **changes), digits.profile)


@pytest.fixture(scope="module")
def result(digits, tmp_path_factory):
    return campaign(digits, tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module", params=["bandit", "deephunter"])
def arm(request, digits):
    """The guided arm of the only island, with its corpus in sight."""
    return finished(lab(digits, schedule=request.param, num_islands=1))


def test_seeds_are_the_inputs_answered_correctly(digits, result):
    correct = digits.model.predict(digits.inputs, verbose=0).argmax(axis=1) == digits.labels
    assert result.num_seeds == correct.sum()
    assert all(correct[recipe.seed] for recipe in result.defects)


def test_every_defect_replays_to_its_wrong_answer_on_any_batch_size(digits, result):
    book = RecipeBook.load(result.recipes)
    mutants = book.replay(digits.inputs, batch_size=7)
    assert result.num_defects == len(book.recipes) > 20
    assert np.array_equal(mutants, book.replay(digits.inputs, batch_size=4096))
    answers = digits.probe.answer(mutants)
    assert answers.prediction.tolist() == [recipe.prediction for recipe in book.recipes]
    assert answers.confidence.tolist() == [recipe.confidence for recipe in book.recipes]
    assert all(recipe.label == recipe.expected == digits.labels[recipe.seed] != recipe.prediction for recipe in book.recipes)


def test_distinct_defects_are_pairs_of_seed_and_wrong_answer(result):
    book = RecipeBook.load(result.recipes)
    pairs = {(recipe.seed, recipe.prediction) for recipe in book.recipes}
    assert {(recipe.seed, recipe.prediction) for recipe in result.defects} == pairs
    assert result.num_distinct_defects == len(result.defects) == len(pairs)
    assert set(result.defects) <= set(book.recipes)


def test_every_defect_has_an_id_of_its_own(result):
    assert len(result.defect_ids) == len(set(result.defect_ids)) == result.num_defects
    assert {recipe.id for recipe in result.defects} <= set(result.defect_ids)


def test_a_smallest_form_fails_in_the_same_way_and_is_no_larger(digits, result):
    book = RecipeBook.load(result.recipes)
    examined = dataclasses.replace(book, recipes=result.defects)
    answers = digits.probe.answer(examined.replay(digits.inputs, minimal=True))
    assert answers.prediction.tolist() == [recipe.prediction for recipe in result.defects]
    for recipe in result.defects:
        left = iter(recipe.chain)
        # Steps are left out or lowered, never added or exchanged.
        assert all(any(old.key == step.key and old.severity >= step.severity for old in left) for step in recipe.minimal)
    spent = [[sum(step.severity for step in chain) for chain in (recipe.minimal, recipe.chain)] for recipe in result.defects]
    smaller, larger = np.sum(spent, axis=0)
    assert smaller < 0.8 * larger


def test_clusters_share_out_the_distinct_defects(result):
    members = sorted(member for cluster in result.clusters for member in cluster.members)
    assert members == list(range(len(result.defects)))
    for cluster in result.clusters:
        assert cluster.representative in cluster.members
        assert {result.defects[member].cluster for member in cluster.members} == {cluster.number}
        defects = [result.defects[member] for member in cluster.members]
        assert {(defect.label, defect.prediction) for defect in defects} == {(cluster.label, cluster.prediction)}
    assert len(result.clusters) < len(result.defects)


def test_the_same_seed_gives_the_same_result_bit_for_bit(digits, result, tmp_path):
    again = campaign(digits, tmp_path)
    paths = {"recipes": result.recipes, "report": result.report}
    assert dataclasses.replace(again, **paths) == result
    assert again.recipes.read_bytes() == result.recipes.read_bytes()
    assert again.report.read_bytes() == result.report.read_bytes()


def test_another_seed_gives_other_mutants(digits, result, tmp_path):
    other = campaign(digits, tmp_path, seed=4, max_mutants=500, sample_mutants=500)
    assert not set(other.defect_ids) & set(result.defect_ids)


def test_the_batch_size_decides_nothing(digits, result, tmp_path):
    assert campaign(digits, tmp_path, batch_size=64).ledger_hash == result.ledger_hash


@pytest.mark.parametrize("num_shards", [2, 4])
def test_the_number_of_shards_decides_nothing(digits, result, tmp_path, num_shards):
    files = [tmp_path / f"shard-{shard}.npz" for shard in range(num_shards)]
    for shard, file in enumerate(files):
        run_shard(lab(digits), file, (shard, num_shards))
    merged = finish(lab(digits), files[::-1], tmp_path)
    assert dataclasses.replace(merged, recipes=result.recipes, report=result.report) == result
    with pytest.raises(RobustnessError, match=r"Island \d of 4 is missing"):
        finish(lab(digits), files[1:], tmp_path)


def test_a_campaign_leaves_three_files(result):
    assert sorted(path.name for path in result.recipes.parent.iterdir()) == ["islands.npz", "recipes.jsonl", "report.html"]


def test_rates_are_of_the_random_sample_with_exact_intervals(result):
    rates = result.defect_rates
    assert sum(rate.num_mutants for rate in rates.values()) == result.sample.num_mutants == 2_700
    assert sum(rate.num_defects for rate in rates.values()) == result.sample.num_defects > 0
    assert result.sample_rate == result.sample.num_defects / 2_700
    assert list(rates) == list(Images.default)
    for rate in rates.values():
        assert rate.num_mutants > 150
        exact = binomtest(rate.num_defects, rate.num_mutants).proportion_ci(0.95, method="exact")
        assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_the_random_sample_knows_nothing_of_the_guided_arm(digits, result, tmp_path):
    other = campaign(digits, tmp_path, schedule="uniform", criteria=("nc",), max_mutants=500)
    assert other.defect_rates == result.defect_rates
    assert other.defects != result.defects


def test_guidance_finds_more_than_chance_at_the_same_budget(result):
    assert result.control.num_mutants == 2_700
    assert result.control.guided > 1.3 * result.control.unguided > 10


def test_an_interval_over_nothing_is_everything():
    rate = defect_rate(0, 0)
    assert (rate.rate, rate.low, rate.high) == (0.0, 0.0, 1.0)
    assert defect_rate(4, 4).high == 1.0
    assert defect_rate(0, 4).low == 0.0


def test_kept_mutants_obey_both_equations_along_their_chains(arm):
    corpus = arm.corpus
    assert np.count_nonzero(corpus["depth"] >= 2) > 50
    for entry in range(len(corpus)):
        l0_reference, linf_reference, parent = corpus["l0_reference"][entry], corpus["linf_reference"][entry], corpus["parent"][entry]
        reference = corpus["reference"][entry]
        l0, linf = constraints.distances(corpus.inputs[[reference]], corpus.inputs[[entry]])
        total = constraints.accumulated(l0, linf, np.array([l0_reference]), np.array([linf_reference]))
        assert constraints.satisfied(*total, size=64, span=1.0).all()
        assert total[0][0] == corpus["l0"][entry]
        if parent >= 0 and Images.mutators[Images.default[corpus["mutator"][entry]]].moves:
            assert reference == entry
            assert (l0_reference, linf_reference) == (corpus["l0"][parent], corpus["linf"][parent])


def test_a_chain_moves_at_most_once_and_spends_no_range_twice(arm):
    corpus = arm.corpus
    chains = [corpus.chain(entry) for entry in range(len(corpus))]
    moves = np.array([Images.mutators[name].moves for name in Images.default])
    assert {int(moves[corpus["mutator"][chain]].sum()) for chain in chains} == {0, 1}
    assert max(map(len, chains)) >= 3
    for chain in chains:
        spent = np.bincount(corpus["mutator"][chain], weights=corpus["severity"][chain], minlength=9) if chain else np.zeros(9)
        assert spent.max() <= 1.0 + 1e-6


def test_what_coverage_keeps_is_answered_correctly_and_only_the_bandit_goes_on_from_defects(digits, arm):
    right = digits.probe.answer(arm.corpus.inputs).prediction == arm.corpus["expected"]
    assert right.all() == (arm.lab.config.schedule != "bandit")
    assert right.mean() > 0.5


def test_the_bandit_stays_within_its_severity_budget(digits):
    arm = arm_of(lab(digits, severity_budget=0.3), 0, GUIDED)
    while not arm.done:
        arm.step()
    num_tried = arm.tallies[0].sum(axis=1)
    mean_level = (arm.tallies[0] * np.arange(5)).sum(axis=1) / num_tried / 5  # the lower end of a level
    assert (mean_level[num_tried > 20] <= 0.3).all()


def test_the_corpus_is_bounded_and_the_report_says_so(digits, result, tmp_path):
    bounded = campaign(digits, tmp_path, max_corpus=600, max_mutants=2000, sample_mutants=100)
    assert any("corpus was full at 600" in note for note in bounded.notes)
    assert not any("corpus was full" in note for note in result.notes)


def test_too_fine_sections_are_reported(digits, tmp_path):
    config = dataclasses.replace(CONFIG, max_mutants=500, sample_mutants=50, schedule="deephunter", coverage=CoverageOptions(kmnc_sections=5000))
    notes = run_campaign(digits.model, digits.inputs, digits.labels, config=config, out_dir=tmp_path).notes
    assert any("counted as new coverage" in note for note in notes)
    assert any("No profile of the training data" in note for note in notes)


@pytest.mark.parametrize("mutators", [("rotation", "scale"), ("blur",)])
def test_a_campaign_may_use_some_mutators_only(digits, tmp_path, mutators):
    few = campaign(digits, tmp_path, mutators=mutators, max_mutants=1000, sample_mutants=500)
    assert set(few.defect_rates) == set(mutators)
    chains = [recipe.chain for recipe in RecipeBook.load(few.recipes).recipes]
    assert {step.mutator for chain in chains for step in chain} <= set(mutators)
    assert all(sum(Images.mutators[step.mutator].moves for step in chain) <= 1 for chain in chains)


def test_a_user_adds_a_mutator_by_one_function_and_one_entry(digits, tmp_path, monkeypatch):
    def ink(images, severity, key, kind):
        return images * (1.0 - 0.15 * severity[:, None, None, None])

    monkeypatch.setitem(Images.mutators, "ink", Mutator(ink, 0.15, "less", "a paler stroke is the same stroke"))
    own = campaign(digits, tmp_path, mutators=("ink", "rotation"), max_mutants=600, sample_mutants=300)
    assert own.defect_rates["ink"].num_mutants > 100
    book = RecipeBook.load(own.recipes)
    assert np.array_equal(digits.probe.answer(book.replay(digits.inputs)).prediction, [recipe.prediction for recipe in book.recipes])


def test_a_constraint_that_admits_nothing_ends_with_advice(digits, monkeypatch, tmp_path):
    monkeypatch.setattr(constraints, "BETA", 0.0)
    with pytest.raises(RobustnessError, match="gentler mutators than brightness"):
        campaign(digits, tmp_path, mutators=("brightness",), max_mutants=64, sample_mutants=64)


def run(model, inputs, labels, tmp_path, **config):
    return run_campaign(model, inputs, labels, config=dataclasses.replace(CONFIG, **config), out_dir=tmp_path)


def test_no_correctly_answered_input_says_what_to_do(digits, tmp_path):
    with pytest.raises(RobustnessError, match=r"none of the 597 inputs correctly.*Check that the labels"):
        run(digits.model, digits.inputs, (digits.model.predict(digits.inputs, verbose=0).argmax(axis=1) + 1) % 10, tmp_path)


def test_labels_that_the_model_has_no_output_for_are_refused(digits, tmp_path):
    with pytest.raises(RobustnessError, match=r"labels go from .* to 19.* 10 outputs"):
        run(digits.model, digits.inputs, digits.labels + 10, tmp_path)


def test_a_model_that_answers_nan_is_refused(digits, tmp_path):
    broken = keras.models.clone_model(digits.model)
    broken.set_weights([np.full_like(weight, np.nan) for weight in broken.get_weights()])
    with pytest.raises(RobustnessError, match=r"Train it again"):
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
        (lambda images, labels: (images[:, :4], labels), "Prepare them as in training"),
    ],
)
def test_unusable_inputs_are_refused_with_advice(digits, tmp_path, change, message):
    with pytest.raises(RobustnessError, match=message):
        run(digits.model, *change(digits.inputs, digits.labels), tmp_path)


def test_pictures_that_a_model_of_whole_numbers_would_cut_off_are_refused(tmp_path):
    model = keras.Sequential(
        [keras.Input((8, 8, 1), dtype="uint8"), keras.layers.Rescaling(1 / 16), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")]
    )
    with pytest.raises(RobustnessError, match=r"takes uint8, and these inputs, from 0.0 to 0.5, are other numbers"):
        run(model, np.linspace(0, 0.5, 128, dtype=np.float32).reshape(2, 8, 8, 1), np.zeros(2, int), str(tmp_path))


def test_rows_of_different_lengths_are_no_array(digits, tmp_path):
    with pytest.raises(RobustnessError, match="The inputs are no array"):
        run(digits.model, [[1.0], [1.0, 2.0]], digits.labels, tmp_path)


def test_another_campaign_in_the_same_directory_is_refused(digits, tmp_path):
    small = {"max_mutants": 40, "sample_mutants": 40}
    campaign(digits, tmp_path, **small)
    with pytest.raises(RobustnessError, match=r"belongs to another campaign.*directory of its own"):
        campaign(digits, tmp_path, **small, seed=99)
    assert campaign(digits, tmp_path, **small).num_mutants == 40


def test_a_damaged_file_of_islands_is_refused(digits, tmp_path):
    (tmp_path / SHARD_FILE).write_bytes(b"PK not quite")
    with pytest.raises(RobustnessError, match="holds no islands"):
        campaign(digits, tmp_path)


def test_a_shard_that_does_not_exist_is_refused(digits, tmp_path):
    with pytest.raises(SpecError, match="numbered from 0 to 1"):
        run_shard(lab(digits), tmp_path / SHARD_FILE, (2, 2))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mutators", ("rotatoin",), "Did you mean 'rotation'"),
        ("mutators", (), "at least one name"),
        ("mutators", ("blur", "blur"), "each once"),
        ("criteria", ("kmc",), "Did you mean 'kmnc'"),
        ("criteria", ("ann",), "set num_islands=1"),
        ("schedule", "deephuntr", "Did you mean 'deephunter'"),
        ("oracles", ("misclasified",), "Did you mean 'misclassified'"),
        ("max_mutants", 0, "max_mutants is 0"),
        ("batch_size", -1, "batch_size is -1"),
        ("num_islands", 0, "num_islands is 0"),
        ("micro_batch", 0, "micro_batch is 0"),
        ("seed", -1, "seed is -1"),
        ("severity_budget", 0.0, "severity_budget"),
        ("tolerance", 1.0, "tolerance"),
        ("tolerance", float("nan"), "tolerance is nan"),
        ("max_mutants", 7.5, "max_mutants is 7.5; expected a whole number from 1 on"),
        ("max_mutants", True, "max_mutants is True"),
        ("seed", 1e3, "seed is 1000.0; expected a whole number from 0 on"),
        ("batch_size", "64", "batch_size is '64'"),
        ("criteria", "kmnc", "criteria is 'kmnc'; expected a tuple of names"),
        ("mutators", (None,), "expected a tuple of names"),
        ("schedule", None, "schedule is None; expected the name of one"),
        ("kind", None, "kind is None"),
        ("kind", Images(mirrored_labels=[[0, 1]]), "expected tuples where"),
        ("coverage", None, "coverage None; expected"),
    ],
)
def test_an_impossible_configuration_is_refused(field, value, message):
    with pytest.raises(SpecError, match=message):
        CampaignConfig(**{field: value})


@pytest.mark.parametrize("data", [None, [], {1: 2}, {"max_mutant": 3}])
def test_options_that_are_none_are_told(data):
    with pytest.raises(SpecError, match=r"expected an object with fields|Unknown field"):
        config_of(data)


@pytest.mark.parametrize("value_range", [(1.0, 0.0), (0.0, float("inf"))])
def test_an_impossible_value_range_is_refused(value_range):
    with pytest.raises(SpecError, match="value_range"):
        Images(value_range=value_range)


def test_a_model_that_always_says_one_class_does_not_pass_for_a_robust_one(digits, tmp_path):
    layers = keras.layers
    bias = keras.initializers.Constant([1.0] + [0.0] * 9)
    constant = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10, "softmax", kernel_initializer="zeros", bias_initializer=bias)]
    )
    small = CampaignConfig(max_mutants=200, sample_mutants=200)
    found = run_campaign(constant, digits.inputs, digits.labels, config=small, out_dir=tmp_path)
    said = " ".join(found.notes)
    num_seeds = int((digits.labels == 0).sum())
    assert (found.num_inputs, found.num_seeds, found.num_defects) == (len(digits.labels), num_seeds, 0)
    assert f"Only {num_seeds} of {len(digits.labels)} inputs are seeds" in said
    assert "All seeds are of class 0, and the inputs are of 10 classes" in said
    assert "exactly the same probabilities for every seed" in said
    assert f"of {len(digits.labels)} inputs, answered correctly" in found.report.read_text()


def test_classes_without_a_seed_are_named(digits, tmp_path):
    labels = np.select([digits.labels == 3, digits.labels == 8], [8, 3], digits.labels)
    rows = ~(np.isin(labels, (3, 8)) & (digits.probe.answer(digits.inputs).prediction == labels))
    small = CampaignConfig(max_mutants=100, sample_mutants=100)
    found = run_campaign(digits.model, digits.inputs[rows], labels[rows], config=small, out_dir=tmp_path)
    assert "No seed is of class 3, 8: the model answers none of their inputs correctly" in " ".join(found.notes)


def test_a_sampled_mutant_that_was_drawn_before_counts_once(digits, tmp_path):
    flips = CampaignConfig(max_mutants=100, sample_mutants=900, mutators=("horizontal_flip", "noise"))
    found = run_campaign(digits.model, digits.inputs[:60], digits.labels[:60], config=flips, out_dir=tmp_path)
    mirrored, noisy = found.defect_rates["horizontal_flip"], found.defect_rates["noise"]
    assert 0.9 * found.num_seeds < mirrored.num_mutants <= found.num_seeds
    assert noisy.num_mutants > 400
    assert found.sample.num_mutants == mirrored.num_mutants + noisy.num_mutants
    repeated = 900 - found.sample.num_mutants
    assert f"{repeated} of 900 mutants of the random sample were drawn before, to the bit, and are left out of the rates" in " ".join(found.notes)
    assert f"{found.sample.num_mutants:,} single-step mutants" in found.report.read_text()
