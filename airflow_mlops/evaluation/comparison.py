"""Challenger against champion on the same held-out rows; a champion that cannot be measured any longer is a finding, not a crash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from airflow_mlops.evaluation.metrics import METRICS
from airflow_mlops.exceptions import EvaluationError

SUM_TOLERANCE = 1e-3  # a float32 softmax over thousands of classes stays within it; logits do not


class Predictor(Protocol):
    """What is asked of a model, and what `keras.Model` offers: (N, *input_shape) in, class probabilities (N, C) out."""

    def predict(self, x: Any, *, verbose: Any = ...) -> Any: ...


def evaluate(model: Predictor, inputs: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return every metric of `model` on (N, *input_shape) inputs and (N,) labels; raise `EvaluationError` if it cannot be measured."""
    if len(inputs) != len(labels) or not len(labels):
        raise EvaluationError(f"There are {len(inputs)} held-out inputs and {len(labels)} labels; expected as many of each, and at least one.")
    try:
        probabilities = np.asarray(model.predict(inputs, verbose=0))
    except Exception as error:  # a model of any make may fail in any way
        problem = str(error).strip().partition("\n")[0]
        raise EvaluationError(
            f"The model cannot predict inputs of shape {inputs.shape[1:]}: {type(error).__name__}: {problem}. Was it trained for another input shape?"
        ) from error
    _check(probabilities, labels)
    return {name: metric(labels, probabilities) for name, metric in METRICS.items()}


def _check(probabilities: NDArray[Any], labels: NDArray[np.int64]) -> None:
    if probabilities.ndim != 2 or len(probabilities) != len(labels):
        raise EvaluationError(f"The model answers with shape {probabilities.shape}; expected ({len(labels)}, classes), one row per input.")
    num_classes = probabilities.shape[1]
    if labels.min() < 0 or labels.max() >= num_classes:
        raise EvaluationError(
            f"The model knows {num_classes} classes, but the labels run from {labels.min()} to {labels.max()}. Train one for all classes."
        )
    bad = np.count_nonzero(~np.isfinite(probabilities).all(axis=1))
    if bad:
        raise EvaluationError(f"The model answers NaN or infinity on {bad} of {len(labels)} held-out rows. Do not use it.")
    if probabilities.min() < 0.0 or np.abs(probabilities.sum(axis=1) - 1.0).max() > SUM_TOLERANCE:
        raise EvaluationError("The model's answers are no probabilities: expected rows that sum to one. End it with a softmax layer.")


class Comparison(NamedTuple):
    """Metrics of both models on the same rows; those of the champion are None without one, or with the `problem` that it could not be measured."""

    metrics: Mapping[str, float]
    champion_metrics: Mapping[str, float] | None = None
    problem: str | None = None


def compare(challenger: Predictor, champion: Predictor | None, inputs: NDArray[np.float32], labels: NDArray[np.int64]) -> Comparison:
    """Measure both models on the same rows, (N, *input_shape) and (N,); only the challenger's failure is an `EvaluationError`."""
    metrics = evaluate(challenger, inputs, labels)
    try:
        return Comparison(metrics, evaluate(champion, inputs, labels) if champion is not None else None)
    except EvaluationError as error:
        return Comparison(metrics, problem=str(error))
