"""Every edge rule of the criteria is stated, above all where published implementations disagree."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dnn_tip import neuron_coverage as dnn_tip

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness.coverage import CRITERIA, CoverageOptions, kmnc
from airflow_mlops.robustness.models import Answers, LayerSpan
from airflow_mlops.robustness.profile import Profile

LAYERS = (LayerSpan("a", 0, 3), LayerSpan("b", 3, 7))


def answers_of(neurons, outputs=None):
    neurons = np.asarray(neurons, np.float32)
    outputs = np.full((len(neurons), 2), 0.5, np.float32) if outputs is None else np.asarray(outputs)
    return Answers(outputs, outputs.argmax(axis=1), outputs.max(axis=1), neurons)


def profile_of(low, high, std=1.0, layers=None):
    low, high = np.asarray(low, float), np.asarray(high, float)
    layers = layers or (LAYERS if len(low) == 7 else (LayerSpan("only", 0, len(low)),))
    return Profile("sha256:model", layers, 10, low, high, (low + high) / 2, np.full(len(low), std))


def criterion_of(name, low=(0.0,), high=(1.0,), *, std=1.0, **options):
    return CRITERIA[name](profile_of(low, high, std), CoverageOptions(**options))


def covered(criterion, *rows):
    criterion.observe(answers_of(rows))
    return np.flatnonzero(criterion.bitmap).tolist()


@pytest.mark.parametrize(("value", "section"), [(0.0, 0), (0.25, 1), (0.2499, 0), (1.0, 3), (0.75, 3)])
def test_kmnc_sections_are_of_a_closed_interval(value, section):
    assert covered(criterion_of("kmnc", kmnc_sections=4), [value]) == [section]


def test_a_value_at_the_top_of_the_range_is_in_the_last_section_where_dnn_tip_drops_it():
    assert covered(criterion_of("kmnc", kmnc_sections=4), [1.0]) == [3]
    assert dnn_tip.KMNC([np.zeros(1)], [np.ones(1)], 4)([np.ones((1, 1))])[0].tolist() == [0]


def test_a_value_at_the_bottom_of_the_range_is_in_the_first_section_where_nlc_drops_it():
    lowest = np.float32(-0.7)
    criterion = criterion_of("kmnc", [lowest], [1.3], kmnc_sections=4)
    assert covered(criterion, [np.nextafter(lowest, np.float32(-1))]) == []
    assert covered(criterion, [lowest]) == [0]


@pytest.mark.parametrize("value", [-1e-6, 1.000001, np.nan, np.inf, -np.inf])
def test_kmnc_covers_nothing_outside_the_range_or_for_nan(value):
    assert covered(criterion_of("kmnc", kmnc_sections=4), [value]) == []


def test_a_value_just_above_a_range_far_from_zero_is_outside_although_its_scaled_value_rounds_to_one():
    low, above = -(2.0**60), np.nextafter(np.float32(1.0), np.float32(2.0))
    assert (float(above) - low) / (1.0 - low) == 1.0
    assert covered(criterion_of("kmnc", [low], [1.0], kmnc_sections=4), [above]) == []
    assert covered(criterion_of("kmnc", [low], [1.0], kmnc_sections=4), [1.0]) == [3]


def test_values_at_boundaries_fall_into_the_section_that_division_says_where_a_reciprocal_errs():
    highs = np.arange(1, 200)
    whole = [(value / high, value * (1 / high), high) for high in highs.tolist() for value in range(high)]
    assert any(int(exact * high) != int(quick * high) for exact, quick, high in whole)
    for high in highs.tolist():
        values = np.arange(high)
        expected = sorted({int(value / high * high) for value in values.tolist()})
        assert covered(criterion_of("kmnc", [0.0], [high], kmnc_sections=high), *values[:, None]) == expected


def test_a_constant_neuron_covers_nothing_and_stays_in_the_denominator():
    criterion = criterion_of("kmnc", [0, 5], [1, 5], kmnc_sections=2)
    criterion.observe(answers_of([[0.1, 5.0], [0.9, 5.0]]))
    assert criterion.value() == 2 / 4


def test_a_range_too_narrow_for_a_float32_takes_wide_values_without_a_warning(recwarn):
    assert covered(criterion_of("kmnc", [0.0], [1e-310], kmnc_sections=4), [3e38], [-3e38], [0.0]) == [0]
    assert not recwarn.list


def test_a_wide_network_is_looked_at_in_parts_with_the_same_result(monkeypatch):
    random = np.random.default_rng(0)
    batches = [answers_of(random.uniform(-0.1, 1.1, (40, 7))) for _ in range(3)]
    batches[1].neurons[5, 1], batches[2].neurons[7, 4] = np.nan, np.inf
    whole = criterion_of("kmnc", np.zeros(7), np.ones(7), kmnc_sections=20)
    monkeypatch.setattr(kmnc, "WIDE", 3)  # every layer is a part
    parts = criterion_of("kmnc", np.zeros(7), np.ones(7), kmnc_sections=20)
    for answers in batches:
        assert parts.observe(answers).tolist() == whole.observe(answers).tolist()
        stored, parts = parts.state(), criterion_of("kmnc", np.zeros(7), np.ones(7), kmnc_sections=20)
        parts.restore(stored)
    assert np.array_equal(parts.bitmap, whole.bitmap)
    other = criterion_of("kmnc", np.zeros(7), np.ones(7), kmnc_sections=20)
    other.merge(parts)
    assert other.observe(batches[0]).sum() == 0 < whole.value() < 1.0


def test_nc_is_strictly_above_the_threshold_and_a_constant_layer_is_zero():
    assert covered(criterion_of("nc", [0] * 7, [1] * 7, nc_threshold=0.5), [0, 0.5, 1, 3, 3, 3, 3]) == [2]
    assert covered(criterion_of("nc", [0] * 7, [1] * 7, nc_threshold=0.0), [0, 0.5, 1, 3, 3, 3, 3]) == [1, 2]


def test_a_constant_layer_is_no_reason_for_a_warning(recwarn):
    assert covered(criterion_of("nc", [0] * 7, [1] * 7), [2, 2, 2, 3, 3, 3, 3]) == []
    assert not recwarn.list


def test_nc_scales_a_layer_that_spans_all_of_float32():
    assert covered(criterion_of("nc", [0] * 7, [1] * 7), [-3e38, 0, 3e38, 0, 0, 0, 1]) == [2, 6]


@pytest.mark.parametrize(("value", "cells"), [(0.0, []), (1.0, []), (1.000001, [0]), (-1e-6, [1]), (900.0, [0]), (-900.0, [1])])
def test_nbc_is_strict_where_dnn_tip_is_not_and_has_one_cell_per_side_where_deephunter_has_eleven(value, cells):
    assert covered(criterion_of("nbc"), [value]) == cells
    both_edges = dnn_tip.NBC([np.zeros(1)], [np.ones(1)], [np.ones(1)], 0)([np.array([[0.0], [1.0]])])[0]
    assert both_edges.tolist() == [1, 1]


def test_nbc_counts_two_sides_per_neuron():
    criterion = criterion_of("nbc", [0, 0], [1, 1])
    criterion.observe(answers_of([[2.0, -2.0], [2.0, 0.5]]))
    assert criterion.value() == 2 / 4


@pytest.mark.parametrize(("value", "cells"), [(0.0, []), (1.0, []), (1.000001, [0]), (-5.0, [])])
def test_snac_is_the_upper_side_of_nbc(value, cells):
    assert covered(criterion_of("snac"), [value]) == cells


@pytest.mark.parametrize("name", ["nbc", "snac"])
def test_a_boundary_is_widened_by_standard_deviations_and_stays_strict(name):
    criterion = criterion_of(name, std=0.5, boundary_deviations=2.0)
    assert covered(criterion, [1.5], [2.0]) == []
    assert covered(criterion, [2.001]) == [0]


@pytest.mark.parametrize(("name", "cells"), [("tknc", [0, 1, 3, 5]), ("bknc", [0, 2, 3, 4])])
def test_ties_for_the_highest_and_the_lowest_go_to_the_lowest_index(name, cells):
    criterion = criterion_of(name, [0] * 7, [1] * 7, top_k=2)
    row = [7, 7, 7, 1, 0, 2, 0] if name == "tknc" else [1, 2, 1, 0, 0, 0, 3]
    assert covered(criterion, row) == cells


def test_negative_zero_ties_with_zero():
    assert covered(criterion_of("tknc", [0] * 7, [1] * 7, top_k=1), [-0.0, 0.0, -1, 0.0, -0.0, -1, -1]) == [0, 3]


@pytest.mark.parametrize("name", ["tknc", "bknc"])
def test_a_layer_of_at_most_k_neurons_is_covered_whole(name):
    assert covered(criterion_of(name, [0] * 7, [1] * 7, top_k=3), [1, 2, 3, 4, 5, 6, 7])[:3] == [0, 1, 2]
    assert criterion_of(name, [0] * 7, [1] * 7, top_k=4).observe(answers_of([[0] * 7])).tolist() == [7]


def test_a_pattern_is_of_sets_so_the_order_within_a_layer_is_no_news():
    criterion = criterion_of("tknp", [0] * 7, [1] * 7, pattern_k=2)
    rows = [[3, 2, 1, 9, 8, 0, 0], [2, 3, 1, 8, 9, 0, 0], [3, 1, 2, 9, 8, 0, 0], [3, 2, 1, 0, 0, 8, 9]]
    assert criterion.observe(answers_of(rows)).tolist() == [1, 0, 1, 1]
    assert criterion.value() == 3.0


def test_a_pattern_is_of_the_layers_together():
    criterion = criterion_of("tknp", [0] * 7, [1] * 7, pattern_k=1)
    one, other = ([1, 0, 0], [0, 1, 0]), ([1, 0, 0, 0], [0, 1, 0, 0])
    assert criterion.observe(answers_of([a + b for a in one for b in other])).tolist() == [1, 1, 1, 1]


def test_an_input_with_one_broken_layer_has_no_pattern():
    criterion = criterion_of("tknp", [0] * 7, [1] * 7)
    assert criterion.observe(answers_of([[np.nan, 0, 0, 4, 3, 2, 1], [1, 0, 0, 4, 3, 2, 1]])).tolist() == [0, 1]


def test_many_patterns_are_all_told_apart():
    layers = tuple(LayerSpan(str(at), 2 * at, 2 * at + 2) for at in range(14))
    criterion = CRITERIA["tknp"](profile_of([0] * 28, [1] * 28, layers=layers), CoverageOptions(pattern_k=1))
    bits = np.arange(1 << 14)[:, None] >> np.arange(14) & 1
    rows = np.stack([bits, 1 - bits], axis=2).reshape(-1, 28)
    assert criterion.observe(answers_of(rows)).sum() == criterion.value() == 1 << 14
    assert criterion.observe(answers_of(rows[::-1])).sum() == 0


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "cells"), [("nc", [6]), ("kmnc", [6, 8, 10]), ("nbc", [6]), ("snac", [6]), ("tknc", [6]), ("bknc", [3])])
def test_a_layer_with_nan_or_infinity_covers_nothing_and_the_others_do(name, cells, broken):
    criterion = criterion_of(name, [0] * 7, [1] * 7, kmnc_sections=2, top_k=1, nc_threshold=0.5)
    assert covered(criterion, [0, broken, 1, 0, 0.1, 0.2, 9]) == cells


def logits(*rows):
    """Probabilities whose logarithms are `rows` up to a constant per row that is the same for all, because each row is a permutation."""
    powers = np.exp(np.array(rows, float))
    return powers / powers.sum(axis=1, keepdims=True)


def test_an_answer_is_new_if_it_is_farther_than_the_threshold_from_the_nearest_kept():
    outputs = logits([0, 1, 2], [0, 1, 2], [0, 2, 1], [2, 1, 0])
    # Squared distances to the first: 0, 2 and 8; of the last to the third: 2^2 + 1 + 1 = 6.
    assert criterion_of("ann", ann_threshold=1.9).observe(answers_of(np.zeros((4, 1)), outputs)).tolist() == [1, 0, 1, 1]
    assert criterion_of("ann", ann_threshold=2.1).observe(answers_of(np.zeros((4, 1)), outputs)).tolist() == [1, 0, 0, 1]
    assert criterion_of("ann", ann_threshold=8.1).observe(answers_of(np.zeros((4, 1)), outputs)).tolist() == [1, 0, 0, 0]


def test_the_distance_must_exceed_the_threshold_so_that_a_repeated_answer_is_old_even_at_zero():
    whole = answers_of(np.zeros((3, 1)), logits([0, 1, 2], [0, 1, 2], [0, 1.001, 2]))
    criterion = criterion_of("ann", ann_threshold=0.0)
    assert criterion.observe(whole).tolist() == [1, 0, 1]
    assert criterion.observe(whole).tolist() == [0, 0, 0]


def test_a_probability_of_zero_counts_as_one_in_ten_million():
    outputs = np.array([[1.0, 0.0], [1.0, 1e-7], [1.0, 1e-12], [1.0, 1e-6]])
    assert criterion_of("ann", ann_threshold=1.0).observe(answers_of(np.zeros((4, 1)), outputs)).tolist() == [1, 0, 0, 1]
    assert math.log(1e-6 / 1e-7) ** 2 > 1.0


def test_a_chain_of_answers_each_near_the_last_keeps_every_other_one():
    steps = np.arange(700) * 0.02
    outputs = np.stack([np.exp(-steps), np.full(700, 0.5)], axis=1)
    gained = criterion_of("ann", ann_threshold=0.03**2).observe(answers_of(np.zeros((700, 1)), outputs))
    assert gained[:5].tolist() == [1, 0, 1, 0, 1]
    assert gained.sum() == 350


def test_answers_kept_long_ago_are_compared_with_too():
    random = np.random.default_rng(0)
    outputs = random.dirichlet(np.full(6, 0.1), 3000)
    criterion = criterion_of("ann")
    assert criterion.observe(answers_of(np.zeros((3000, 1)), outputs)).sum() > 2 * 1024
    assert criterion.observe(answers_of(np.zeros((3000, 1)), random.permutation(outputs))).sum() == 0


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "ann"])
def test_answers_of_another_width_than_the_profile_are_refused(name):
    with pytest.raises(RobustnessError, match="hold 6 neurons and the profile 7"):
        criterion_of(name, [0] * 7, [1] * 7).observe(answers_of(np.zeros((2, 6))))


@pytest.mark.parametrize(
    "options",
    [
        {"nc_threshold": 1.0},
        {"nc_threshold": float("nan")},
        {"kmnc_sections": 0},
        {"kmnc_sections": 2.5},
        {"boundary_deviations": -0.1},
        {"boundary_deviations": float("inf")},
        {"top_k": 0},
        {"pattern_k": True},
        {"ann_threshold": -1.0},
        {"ann_threshold": float("nan")},
    ],
)
def test_impossible_options_are_refused_by_name(options):
    with pytest.raises(SpecError, match=next(iter(options))):
        CoverageOptions(**options)
