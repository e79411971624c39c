"""What is measured of a classifier: every metric a small function in one visible dict.

Metrics take labels (N,) int64 and probabilities (N, C) whose rows sum to one, N >= 1, and return one number.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float32] | NDArray[np.float64]
Metric = Callable[[Labels, Probabilities], float]

SMALLEST_PROBABILITY = 1e-7  # about the float32 resolution: a model that is sure and wrong costs 16 nats, not infinity


def accuracy(labels: Labels, probabilities: Probabilities) -> float:
    """Return the share of rows whose most probable class is the label."""
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def macro_f1(labels: Labels, probabilities: Probabilities) -> float:
    """Return the unweighted mean of the classes' F1 scores, over classes that are labelled or predicted at least once."""
    predicted = probabilities.argmax(axis=1)
    scores = []
    for c in np.union1d(labels, predicted):
        both = np.sum((labels == c) & (predicted == c))
        scores.append(2.0 * both / (np.sum(labels == c) + np.sum(predicted == c)))
    return float(np.mean(scores))


def min_recall(labels: Labels, probabilities: Probabilities) -> float:
    """Return the recall of the worst class, over classes that are labelled at least once."""
    hits = probabilities.argmax(axis=1) == labels
    return min(float(np.mean(hits[labels == c])) for c in np.unique(labels))


def log_loss(labels: Labels, probabilities: Probabilities) -> float:
    """Return the mean negative log-likelihood of the labels, in nats."""
    likelihood = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.mean(np.log(np.clip(likelihood, SMALLEST_PROBABILITY, 1.0))))


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "log_loss": log_loss,  # the only one of which less is better
    "macro_f1": macro_f1,
    "min_recall": min_recall,
}
