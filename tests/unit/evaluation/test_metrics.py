"""The metrics agree with scikit-learn, which is the source of their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from airflow_mlops.evaluation.metrics import METRICS


@pytest.fixture(scope="module")
def answers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 5, 400)
    scores = rng.random((400, 6)) + 0.8 * np.eye(6)[labels]  # class 5 is never a label, but sometimes predicted
    return labels, scores / scores.sum(axis=1, keepdims=True)


def test_accuracy_macro_f1_and_worst_recall_agree_with_scikit_learn(answers: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = answers
    predicted = probabilities.argmax(axis=1)
    assert 5 in predicted
    assert METRICS["accuracy"](labels, probabilities) == pytest.approx(reference.accuracy_score(labels, predicted))
    assert METRICS["macro_f1"](labels, probabilities) == pytest.approx(reference.f1_score(labels, predicted, average="macro"))
    recalls = reference.recall_score(labels, predicted, average=None, labels=range(5))
    assert METRICS["min_recall"](labels, probabilities) == pytest.approx(recalls.min())


def test_log_loss_agrees_with_scikit_learn(answers: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = answers
    expected = reference.log_loss(labels, probabilities, labels=range(6))
    assert METRICS["log_loss"](labels, probabilities) == pytest.approx(expected)


def test_a_model_that_is_sure_and_wrong_has_a_finite_log_loss() -> None:
    assert METRICS["log_loss"](np.array([1]), np.array([[1.0, 0.0]])) == pytest.approx(16.118, abs=1e-3)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_prefers_the_right_answers_to_the_wrong_ones(name: str) -> None:
    labels = np.arange(3)
    right = np.full((3, 3), 0.1) + 0.7 * np.eye(3)
    wrong = np.roll(right, 1, axis=1)
    metric = METRICS[name]
    assert (metric(labels, right) > metric(labels, wrong)) == (name != "log_loss")
