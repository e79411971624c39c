"""The example user's train function learns real handwritten digits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from airflow_mlops.training.context import TrainingContext
from airflow_mlops.training.function import resolve
from airflow_mlops.training.reproducibility import seed_everything
from airflow_mlops.training.trainer import fit

DAGS = Path(__file__).parents[3] / "dags"
NUM_HELD_OUT = 360


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    order = np.random.default_rng(1).permutation(len(data.target))
    return (data.images[order, :, :, None] / 16).astype(np.float32), data.target[order].astype(np.int64)


def test_the_example_learns_the_digits_and_goes_on_from_the_champion(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    images, labels = digits
    logged: list[tuple[str, float, int]] = []
    context = TrainingContext(
        inputs=images[NUM_HELD_OUT:],
        labels=labels[NUM_HELD_OUT:],
        params={"epochs": 12},
        seed=1,
        num_classes=10,
        log_metric=lambda *entry: logged.append(entry),
        out_dir=tmp_path,
    )
    seed_everything(context.seed)
    train = resolve("digits_model:train", DAGS)

    champion = fit(train, context)
    right = champion.predict(images[:NUM_HELD_OUT], verbose=0).argmax(axis=1) == labels[:NUM_HELD_OUT]
    assert right.mean() > 0.96
    assert [step for name, _, step in logged if name == "train_accuracy"] == list(range(12))
    assert champion.inputs[0].name == "image"

    fit(train, dataclasses.replace(context, params={"epochs": 1}, initial_model=champion, histories=[]))
    accuracies = [value for name, value, _ in logged if name == "train_accuracy"]
    assert accuracies[-1] > 0.95 > accuracies[0]
