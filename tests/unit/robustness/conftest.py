"""A tiny CNN that has learned scikit-learn's digits, and the digits it has not seen."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from airflow_mlops.robustness.findings import recipes_of
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.models import Probe
from airflow_mlops.robustness.profile import Profile
from airflow_mlops.robustness.recipes import Recipe
from airflow_mlops.robustness.shards import GUIDED, Arm, arm_of


@dataclass(frozen=True)
class Digits:
    """The trained model, its training inputs, and held-out inputs (N, 8, 8, 1) in [0, 1] with labels."""

    model: keras.Model
    train_inputs: Any
    inputs: Any
    labels: Any

    @cached_property
    def probe(self) -> Probe:
        return Probe(self.model)

    @cached_property
    def profile(self) -> Profile:
        return Profile.of(self.probe, self.train_inputs)


@pytest.fixture(scope="package")
def digits() -> Digits:
    keras.utils.set_random_seed(7)
    rows, labels = load_digits(return_X_y=True)
    images = (rows / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    model = small_cnn()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images[:1200], labels[:1200], epochs=8, verbose=0)
    return Digits(model, images[:1200], images[1200:], labels[1200:])


def small_cnn() -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flat"),
            layers.Dense(32, activation="relu", name="hidden"),
            layers.Dense(10, activation="softmax", name="classes"),
        ]
    )


def finished(lab: Lab) -> Arm:
    """Return the guided arm of the only island at its end."""
    arm = arm_of(lab, 0, GUIDED)
    while not arm.done:
        arm.step()
    return arm


def distinct_defects(arm: Arm) -> list[Recipe]:
    """Return the recipes of the distinct defects that an arm has found."""
    return list(itertools.compress(recipes_of(arm), arm.defects()["distinct"]))
