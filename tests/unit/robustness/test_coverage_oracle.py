"""An independent implementation, dnn-tip (github.com/testingautomated-usi/dnn-tip), finds the same wherever the definitions agree."""

from __future__ import annotations

import numpy as np
import pytest
from dnn_tip import neuron_coverage as dnn_tip

from airflow_mlops.robustness.coverage import CRITERIA, CoverageOptions
from airflow_mlops.robustness.models import Answers, LayerSpan
from airflow_mlops.robustness.profile import Profile

LAYERS = (LayerSpan("conv", 0, 8), LayerSpan("pool", 8, 11), LayerSpan("dense", 11, 30))
# Halves and quarters, so that dnn-tip's boundaries (low + i * step) are exact, and no value lies at an edge.
LOW, HIGH, STD = np.linspace(-2, -1, 30).round(1) // 0.25 * 0.25, np.full(30, 1.5), np.full(30, 0.25)
NEURONS = np.random.default_rng(3).normal(size=(400, 30)).astype(np.float32)


def split(neurons):
    return [neurons[:, span.start : span.stop] for span in LAYERS]


def scaled(neurons):
    return [(layer - layer.min(1, keepdims=True)) / np.ptp(layer, axis=1, keepdims=True) for layer in split(neurons.astype(np.float64))]


def cells(profiles):
    """dnn-tip numbers the cells of a neuron last; ours of NBC are all neurons above, then all below."""
    return profiles.reshape(len(profiles), -1)


def sides(profiles):
    return np.concatenate([profiles[..., 1], profiles[..., 0]], axis=1)


CHECKS = {
    "nc": lambda: dnn_tip.NAC(0.75)(scaled(NEURONS))[1],
    "kmnc": lambda: cells(dnn_tip.KMNC(split(LOW[None]), split(HIGH[None]), 64)(split(NEURONS))[1]),
    "nbc": lambda: sides(dnn_tip.NBC(split(LOW[None]), split(HIGH[None]), split(STD[None]), 0.5)(split(NEURONS))[1]),
    "snac": lambda: dnn_tip.SNAC(split(HIGH[None]), split(STD[None]), 0.5)(split(NEURONS))[1],
    "tknc": lambda: dnn_tip.TKNC(4)(split(NEURONS))[1],
    "bknc": lambda: dnn_tip.TKNC(4)(split(-NEURONS))[1],
}


@pytest.mark.parametrize("name", CHECKS)
def test_dnn_tip_covers_the_same_cells_input_by_input(name):
    profiles = CHECKS[name]()
    known = Profile("sha256:model", LAYERS, 100, LOW, HIGH, np.zeros(30), STD)
    criterion = CRITERIA[name](known, CoverageOptions(kmnc_sections=64, boundary_deviations=0.5, top_k=4))
    union = np.logical_or.accumulate(profiles, axis=0)
    for row, expected in zip(NEURONS[:, None], union, strict=True):
        criterion.observe(Answers(np.ones((1, 1)), np.zeros(1, int), np.ones(1), row))
        assert np.array_equal(criterion.bitmap, expected)
    assert profiles.any(axis=0).sum() > 10
