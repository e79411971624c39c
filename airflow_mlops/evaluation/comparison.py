"""Challenger against champion on the same held-out rows; a champion that can not be measured any longer is a finding, not a crash."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from airflow_mlops.evaluation.metrics import METRICS
from airflow_mlops.exceptions import EvaluationError
from airflow_mlops.results import EvaluationResult

SUM_TOLERANCE = 1e-3  # a float32 softmax over thousands of classes stays within it; logits do not


class Predictor(Protocol):
    """What is asked of a model, and what `keras.Model` offers: (N, *input_shape) in, class probabilities (N, C) out."""

    def predict(self, x: Any, *, verbose: Any = ...) -> Any: ...


def evaluate(model: Predictor, inputs: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return every metric of `model` on (N, *input_shape) inputs and (N,) labels; raise `EvaluationError` if it can not be measured."""
    if len(inputs) != len(labels) or not len(labels):
        raise EvaluationError(f"There are {len(inputs)} held-out inputs and {len(labels)} labels; expected as many of each, and at least one.")
    try:
        probabilities = np.asarray(model.predict(inputs, verbose=0))
    except Exception as error:  # a model of any make may fail in any way
        problem = str(error).strip().partition("\n")[0]
        raise EvaluationError(
            f"The model can not predict inputs of shape {inputs.shape[1:]}: {type(error).__name__}: {problem}. "
            "Was it trained for another input shape?"
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


def compare(
    challenger: Predictor,
    champion: Predictor | None,
    inputs: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    rows_digest: str,
    champion_version: str | None,
    champion_problem: str | None = None,
) -> EvaluationResult:
    """Measure both models on the same rows, identified by `rows_digest`; only the challenger's failure is an `EvaluationError`.

    A `champion_version` without a `champion` is one that could not be loaded: say why in `champion_problem`.
    """
    metrics = evaluate(challenger, inputs, labels)
    champion_metrics, problem = None, champion_problem
    if champion is not None:
        try:
            champion_metrics = evaluate(champion, inputs, labels)
        except EvaluationError as error:
            problem = str(error)
    return EvaluationResult(
        num_rows=len(labels),
        rows_digest=rows_digest,
        metrics=metrics,
        champion_version=champion_version,
        champion_metrics=champion_metrics,
        champion_problem=problem,
    )
