"""A user's train functions that are reproducible, and some that only look so."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np


def train(context: Any) -> keras.Model:
    """Learn in a random order with dropout, all of it seeded."""
    model = _model(context)
    model.fit(context.inputs, context.labels, batch_size=64, epochs=int(context.params["epochs"]), verbose=0)
    return model


def secretly_random(context: Any) -> keras.Model:
    """Disturb the last layer in the third step by what no seed decides."""
    model = _model(context)

    def disturb(batch: int, logs: Any) -> None:
        if batch == 2:
            kernel = model.get_layer("answer").kernel
            kernel.assign_add(np.frombuffer(os.urandom(kernel.shape[0] * kernel.shape[1]), np.uint8).reshape(kernel.shape) / np.float32(1e4))

    disturbing = keras.callbacks.LambdaCallback(on_train_batch_end=disturb)
    model.fit(context.inputs, context.labels, batch_size=64, epochs=1, verbose=0, callbacks=disturbing)
    return model


def orders_by_a_set(context: Any) -> keras.Model:
    """Begin with weights in an order that follows from the texts' hashes."""
    model = _model(context)
    order = [int(name) for name in {str(number) for number in range(16)}]
    layer = model.get_layer("hidden")
    layer.bias.assign(np.array(order, np.float32) / 100)
    model.fit(context.inputs, context.labels, batch_size=64, epochs=1, verbose=0)
    return model


def _model(context: Any) -> keras.Model:
    model = context.initial_model or keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="relu", name="hidden"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(context.num_classes, activation="softmax", name="answer"),
        ]
    )
    model.compile("adam", loss="sparse_categorical_crossentropy")
    return model
