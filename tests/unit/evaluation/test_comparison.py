"""Comparison with real Keras models: a champion that cannot be measured is a finding, a challenger that cannot is an error."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from airflow_mlops.evaluation.comparison import compare, evaluate
from airflow_mlops.evaluation.metrics import METRICS
from airflow_mlops.exceptions import EvaluationError

NUM_ROWS = 60


def classifier(shape: tuple[int, ...] = (4, 4, 1), num_classes: int = 3, activation: str = "softmax", seed: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(num_classes, activation=activation)])


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.random((NUM_ROWS, 4, 4, 1), dtype=np.float32), rng.integers(0, 3, NUM_ROWS)


def test_both_models_are_measured_on_the_same_rows(rows: tuple[np.ndarray, np.ndarray]) -> None:
    challenger, champion = classifier(seed=1), classifier(seed=2)
    result = compare(challenger, champion, *rows)
    assert set(result.metrics) == set(METRICS)
    assert result.metrics == evaluate(challenger, *rows)
    assert result.champion_metrics == evaluate(champion, *rows) != result.metrics
    assert result.problem is None


def test_without_a_champion_only_the_challenger_is_measured(rows: tuple[np.ndarray, np.ndarray]) -> None:
    result = compare(classifier(), None, *rows)
    assert (result.champion_metrics, result.problem) == (None, None)


def test_a_champion_of_another_input_shape_is_a_sentence_not_a_crash(rows: tuple[np.ndarray, np.ndarray]) -> None:
    result = compare(classifier(), classifier((9, 9, 1)), *rows)
    assert result.champion_metrics is None
    assert "cannot predict inputs of shape (4, 4, 1)" in (result.problem or "")


def test_a_champion_that_knows_fewer_classes_is_a_sentence_not_a_crash(rows: tuple[np.ndarray, np.ndarray]) -> None:
    result = compare(classifier(), classifier(num_classes=2), *rows)
    assert "knows 2 classes, but the labels run from 0 to 2" in (result.problem or "")


def test_a_challenger_of_another_input_shape_is_an_error(rows: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(EvaluationError, match=r"cannot predict inputs of shape \(4, 4, 1\)"):
        compare(classifier((9, 9, 1)), classifier(), *rows)


def test_nan_answers_are_an_error(rows: tuple[np.ndarray, np.ndarray]) -> None:
    model = classifier()
    model.set_weights([np.full_like(weights, np.nan) for weights in model.get_weights()])
    with pytest.raises(EvaluationError, match=f"NaN or infinity on {NUM_ROWS} of {NUM_ROWS}"):
        evaluate(model, *rows)


def test_logits_are_refused_because_their_log_loss_means_nothing(rows: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(EvaluationError, match=r"no probabilities.*softmax"):
        evaluate(classifier(activation="linear"), *rows)


def test_a_model_that_does_not_answer_one_row_per_input_is_refused(rows: tuple[np.ndarray, np.ndarray]) -> None:
    image_to_image = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(3, 1, activation="softmax")])
    with pytest.raises(EvaluationError, match=r"answers with shape \(60, 4, 4, 3\); expected \(60, classes\)"):
        evaluate(image_to_image, *rows)


def test_without_held_out_rows_nothing_is_claimed() -> None:
    with pytest.raises(EvaluationError, match="0 held-out inputs and 0 labels"):
        evaluate(classifier(), np.zeros((0, 4, 4, 1), np.float32), np.zeros(0, np.int64))
