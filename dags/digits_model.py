"""A user's own code: a small convolutional network for 8x8 grey images of handwritten digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
from keras import layers

if TYPE_CHECKING:
    from airflow_mlops.training.context import TrainingContext


def train(context: TrainingContext) -> keras.Model:
    """Return a classifier for images (N, 8, 8, 1) in 0..1, continued from the champion when there is one."""
    model = context.initial_model or build(context.num_classes)
    learning_rate = context.params.get("learning_rate", 3e-3)
    model.compile(keras.optimizers.Adam(learning_rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    context.fit(model, epochs=context.params.get("epochs", 12), batch_size=context.params.get("batch_size", 64))
    return model


def build(num_classes: int) -> keras.Model:
    """Return an untrained network: two convolutions, one pooling, dropout against learning rows by heart."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(num_classes, activation="softmax", name="probabilities"),
        ]
    )
