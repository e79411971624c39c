"""Vectorised coverage is the naive definition to the bit, and every edge rule is stated."""

from __future__ import annotations

import numpy as np
import pytest

from airflow_mlops.robustness.coverage import CRITERIA, CoverageOptions
from airflow_mlops.robustness.models import LayerSpan
from airflow_mlops.robustness.profile import Profile

LAYERS = (LayerSpan("a", 0, 3), LayerSpan("b", 3, 7))


def profile_of(low, high):
    low, high = np.asarray(low, float), np.asarray(high, float)
    layers = LAYERS if len(low) == 7 else (LayerSpan("only", 0, len(low)),)
    return Profile("sha256:model", layers, 10, low, high, (low + high) / 2, np.ones_like(low))


def naive_nc(activations, threshold):
    covered, gains = set(), []
    for row in activations:
        before = len(covered)
        for span in LAYERS:
            layer = row[span.start : span.stop]
            low, high = min(layer), max(layer)
            for offset, value in enumerate(layer):
                scaled = (value - low) / (high - low) if high > low else 0.0
                if scaled > threshold:
                    covered.add(span.start + offset)
        gains.append(len(covered) - before)
    return covered, gains


def naive_kmnc(activations, low, high, num):
    covered, gains = set(), []
    for row in activations:
        before = len(covered)
        for neuron, value in enumerate(map(float, row)):
            if high[neuron] > low[neuron] and low[neuron] <= value <= high[neuron]:
                section = int((value - low[neuron]) / (high[neuron] - low[neuron]) * num)
                covered.add(neuron * num + min(section, num - 1))
        gains.append(len(covered) - before)
    return covered, gains


@pytest.mark.parametrize("seed", range(3))
def test_vectorised_nc_equals_the_naive_loop(seed):
    activations = np.random.default_rng(seed).normal(size=(200, 7)).astype(np.float32)
    criterion = CRITERIA["nc"](profile_of([0] * 7, [1] * 7), CoverageOptions(nc_threshold=0.9))
    gains = np.concatenate([criterion.observe(activations[:1]), criterion.observe(activations[1:])])
    covered, expected = naive_nc(activations, np.float32(0.9))
    assert gains.tolist() == expected
    assert set(np.flatnonzero(criterion.bitmap)) == covered


@pytest.mark.parametrize("seed", range(3))
def test_vectorised_kmnc_equals_the_naive_loop(seed):
    random = np.random.default_rng(seed)
    activations = random.normal(size=(300, 7)).astype(np.float32)
    low, high = random.uniform(-1.5, -0.5, 7), random.uniform(0.5, 1.5, 7)
    criterion = CRITERIA["kmnc"](profile_of(low, high), CoverageOptions(kmnc_sections=37))
    gains = np.concatenate([criterion.observe(part) for part in np.split(activations, [3, 100])])
    covered, expected = naive_kmnc(activations, low, high, 37)
    assert gains.tolist() == expected
    assert set(np.flatnonzero(criterion.bitmap)) == covered
    assert criterion.ratio() == len(covered) / (37 * 7)


def kmnc(low, high, num=4):
    return CRITERIA["kmnc"](profile_of([low], [high]), CoverageOptions(kmnc_sections=num))


@pytest.mark.parametrize(("value", "section"), [(0.0, 0), (0.25, 1), (0.2499, 0), (1.0, 3), (0.75, 3)])
def test_kmnc_sections_are_of_a_closed_interval(value, section):
    criterion = kmnc(0.0, 1.0)
    criterion.observe(np.array([[value]], np.float32))
    assert np.flatnonzero(criterion.bitmap).tolist() == [section]


@pytest.mark.parametrize("value", [-1e-6, 1.000001, np.nan, np.inf, -np.inf])
def test_kmnc_covers_nothing_outside_the_range_or_for_nan(value):
    criterion = kmnc(0.0, 1.0)
    assert criterion.observe(np.array([[value]], np.float32)).tolist() == [0]
    assert not criterion.bitmap.any()


def test_a_constant_neuron_covers_nothing_and_stays_in_the_denominator():
    criterion = CRITERIA["kmnc"](profile_of([0, 5], [1, 5]), CoverageOptions(kmnc_sections=2))
    criterion.observe(np.array([[0.1, 5.0], [0.9, 5.0]], np.float32))
    assert criterion.ratio() == 2 / 4


def test_nc_is_strictly_above_the_threshold_and_a_constant_layer_is_zero():
    criterion = CRITERIA["nc"](profile_of([0] * 7, [1] * 7), CoverageOptions(nc_threshold=0.5))
    criterion.observe(np.array([[0, 0.5, 1, 3, 3, 3, 3]], np.float32))
    assert np.flatnonzero(criterion.bitmap).tolist() == [2]


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_layer_with_nan_or_infinity_covers_nothing_in_nc(broken):
    criterion = CRITERIA["nc"](profile_of([0] * 7, [1] * 7), CoverageOptions(nc_threshold=0.5))
    criterion.observe(np.array([[0, broken, 1, 0, 0, 0, 9]], np.float32))
    assert np.flatnonzero(criterion.bitmap).tolist() == [6]
