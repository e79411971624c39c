"""Every coverage criterion is monotone, independent of order, mergeable, and blind to NaN."""

from __future__ import annotations

import numpy as np
import pytest

from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.robustness.coverage import CRITERIA, CoverageOptions
from airflow_mlops.robustness.models import LayerSpan
from airflow_mlops.robustness.profile import Profile

ACTIVATIONS = np.random.default_rng(5).normal(size=(120, 12)).astype(np.float32)


def profile(digest="sha256:model"):
    layers = (LayerSpan("a", 0, 5), LayerSpan("b", 5, 12))
    return Profile(digest, layers, 120, ACTIVATIONS.min(0) * 0.9, ACTIVATIONS.max(0) * 0.9, ACTIVATIONS.mean(0), ACTIVATIONS.std(0))


@pytest.fixture(params=sorted(CRITERIA))
def make(request):
    return lambda digest="sha256:model": CRITERIA[request.param](profile(digest), CoverageOptions(0.9, 50))


def observed(criterion, *parts):
    for part in parts:
        criterion.observe(part)
    return criterion


def test_the_ratio_never_falls_and_grows_by_what_observe_says(make):
    criterion = make()
    assert criterion.ratio() == 0.0
    for row in ACTIVATIONS:
        before = criterion.bitmap.sum()
        gained = criterion.observe(row[None])
        assert gained.shape == (1,)
        assert criterion.bitmap.sum() == before + gained[0]
    assert 0.0 < criterion.ratio() <= 1.0


def test_order_and_batches_do_not_matter(make):
    shuffled = np.random.default_rng(1).permutation(ACTIVATIONS)
    assert np.array_equal(observed(make(), ACTIVATIONS).bitmap, observed(make(), *np.split(shuffled, 8)).bitmap)


def test_an_input_seen_before_gains_nothing(make):
    assert observed(make(), ACTIVATIONS).observe(ACTIVATIONS).sum() == 0


def test_a_duplicate_within_a_batch_gains_once(make):
    gained = make().observe(np.repeat(ACTIVATIONS[:1], 3, axis=0))
    assert gained[0] > 0
    assert gained[1:].tolist() == [0, 0]


def test_merged_shards_equal_one_run(make):
    left, right = observed(make(), ACTIVATIONS[:50]), observed(make(), ACTIVATIONS[50:])
    left.merge(right)
    assert np.array_equal(left.bitmap, observed(make(), ACTIVATIONS).bitmap)


def test_shards_of_another_model_are_refused(make):
    with pytest.raises(RobustnessError, match="Merge only shards of one campaign"):
        make().merge(make("sha256:other"))


def test_nan_covers_nothing(make):
    criterion = make()
    assert criterion.observe(np.full((4, 12), np.nan, np.float32)).sum() == 0
    assert criterion.ratio() == 0.0


def test_an_empty_batch_is_no_news(make):
    assert make().observe(ACTIVATIONS[:0]).shape == (0,)
