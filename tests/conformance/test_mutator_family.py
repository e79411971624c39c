"""Every mutator is a pure function of (image, severity, key): in range, deterministic, and equal to the bit on every batch size."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from airflow_mlops.robustness.mutators import MUTATORS, NAMES, mutate

NUM = 53


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def rows(name, seed=0, low=0.0, high=1.0, shape=(8, 8, 1)):
    """Digits stretched or stacked to `shape`, scaled to [low, high], with severities over the whole range."""
    random, mutator = np.random.default_rng(seed), MUTATORS[name]
    images = load_digits().images[:NUM].astype(np.float32)[..., None] / 16
    images = np.tile(images, (1, -(-shape[0] // 8), -(-shape[1] // 8), shape[2]))[:, : shape[0], : shape[1]]
    severity = np.linspace(mutator.low, mutator.high, NUM, dtype=np.float32)
    key = random.integers(0, 2**32, NUM, dtype=np.uint32)
    return images * (high - low) + low, np.full(NUM, NAMES.index(name)), severity, key


@pytest.mark.parametrize("batch_size", [1, 2, 7, 16])
def test_the_batch_around_a_row_changes_no_bit(name, batch_size):
    columns = rows(name)
    whole = mutate(*columns, value_range=(0.0, 1.0))
    parts = [mutate(*(column[at : at + batch_size] for column in columns), value_range=(0.0, 1.0)) for at in range(0, NUM, batch_size)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_other_mutators_in_the_batch_change_no_bit(name):
    mine, other = rows(name), rows("noise" if name != "noise" else "rotation", seed=9)
    mixed = [np.stack(pair, axis=1).reshape(-1, *pair[0].shape[1:]) for pair in zip(mine, other, strict=True)]
    assert np.array_equal(mutate(*mixed, value_range=(0.0, 1.0))[::2], mutate(*mine, value_range=(0.0, 1.0)))


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_mutants_stay_in_the_value_range_and_differ_from_their_parents(name, value_range):
    images, *columns = rows(name, low=value_range[0], high=value_range[1])
    mutants = mutate(images, *columns, value_range=value_range)
    assert mutants.dtype == np.float32
    assert mutants.min() >= value_range[0]
    assert mutants.max() <= value_range[1]
    assert (mutants != images).any(axis=(1, 2, 3)).mean() > 0.9


def test_the_change_scales_with_the_value_range(name):
    unit = mutate(*rows(name), value_range=(0.0, 1.0))
    wide = mutate(*rows(name, low=-2.0, high=6.0), value_range=(-2.0, 6.0))
    np.testing.assert_allclose((wide + 2.0) / 8.0, unit, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 20, 3), (8, 8, 1), (5, 9, 2)])
def test_any_height_width_and_number_of_channels_will_do(name, shape):
    images, *columns = rows(name, shape=shape)
    assert mutate(images, *columns, value_range=(0.0, 1.0)).shape == (NUM, *shape)


# pixel_change draws at least one value anew at any severity, so it has no neutral one.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "pixel_change"])
def test_the_neutral_severity_changes_nothing_beyond_rounding(name):
    images, mutator, severity, key = rows(name)
    neutral = np.full_like(severity, MUTATORS[name].neutral)
    np.testing.assert_allclose(mutate(images, mutator, neutral, key, value_range=(0.0, 1.0)), images, atol=1e-5)


def test_the_documented_range_is_one_and_says_why_labels_survive(name):
    mutator = MUTATORS[name]
    assert mutator.low < mutator.high
    assert len(mutator.preserves) > 20
    assert mutator.unit
