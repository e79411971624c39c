"""A user's train functions: a good one, and every bad one."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np


def train(context: Any) -> keras.Model:
    """Learn a little, and keep what was learned from, so that a test can look."""
    np.savez(context.out_dir / "learned_from.npz", inputs=context.inputs)
    model = context.initial_model or keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(context.num_classes, activation="softmax")]
    )
    model.compile(keras.optimizers.Adam(0.05), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(context.inputs, context.labels, epochs=context.params["epochs"], verbose=0)
    context.log_metric("train_accuracy", history.history["accuracy"][-1], 0)
    return model


@keras.saving.register_keras_serializable("user_code")
class Doubled(keras.layers.Layer):
    """A layer of the team's own."""

    def call(self, inputs: Any) -> Any:
        return inputs * 2


def with_lambda(context: Any) -> keras.Model:
    return _doubling(context, keras.layers.Lambda(lambda inputs: inputs * 2, output_shape=(64,), name="doubled"))


def with_own_layer(context: Any) -> keras.Model:
    return _doubling(context, Doubled())


def _doubling(context: Any, layer: Any) -> keras.Model:
    dense = keras.layers.Dense(context.num_classes, activation="softmax")
    return context.initial_model or keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), layer, dense])


def raises(_: Any) -> keras.Model:
    raise ZeroDivisionError("batch size is 0")


def returns_none(_: Any) -> None:
    return None


def diverges(context: Any) -> keras.Model:
    model = train(context)
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    return model


def logs_nan(context: Any) -> keras.Model:
    context.log_metric("loss", float("nan"), 3)
    return train(context)


def train_together(context: Any) -> keras.Model:
    """Learn by the loop that several workers can share.

    Where the variable ``DIES_ONCE`` names a file that is not there, worker 1 makes it in the second epoch and is killed.
    """
    from airflow_mlops.training.distributed import fit_together

    mark, epochs = Path(os.environ.get("DIES_ONCE", os.devnull)), itertools.count(1)

    def should_stop() -> bool:
        if next(epochs) == 2 and not mark.exists() and json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 1:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return bool(context.should_stop())

    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(context.num_classes, activation="softmax")])
    model.compile(keras.optimizers.Adam(0.05), loss="sparse_categorical_crossentropy")
    fit_together(dataclasses.replace(context, should_stop=should_stop), model, epochs=context.params["epochs"], batch_size=40)
    return model


class _Terminated(keras.callbacks.Callback):
    """Sends this process SIGTERM after a batch, as a node does that is drained."""

    def __init__(self, stop_at: int) -> None:
        super().__init__()
        self.stop_at = stop_at

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations.numpy()) == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


def patient(context: Any) -> keras.Model:
    """Learn so that an interruption costs nothing."""
    layers = [
        keras.Input((8, 8, 1)),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(context.num_classes, activation="softmax"),
    ]
    model = keras.Sequential(layers)
    model.compile("adam", loss="sparse_categorical_crossentropy")
    stop_at = context.out_dir / "stop_at"
    context.fit(model, epochs=context.params["epochs"], callbacks=[_Terminated(int(stop_at.read_text()) if stop_at.exists() else -1)])
    return model


def hangs(_: Any) -> keras.Model:
    time.sleep(60)
    raise AssertionError("nobody woke it")


def forks(context: Any) -> keras.Model:
    """Come back twice."""
    child = os.fork()
    if child == 0:
        raise ValueError("the child fails, or returns")
    context.log_metric("exit_code_of_the_child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(context.num_classes, activation="softmax")])
