"""The user's features: TensorFlow operations from raw rows to what the model takes, kept as a graph that travels with the model.

The function is traced once, before the training, and saved. The rows to learn from, the served signature, the evaluation and the robustness
campaign all run that one graph, so that none of them can compute other features, whatever becomes of the function later.
Imports Keras and TensorFlow at the top: import it inside a stage only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from airflow_mlops.artifacts import path_digest
from airflow_mlops.exceptions import TrainFunctionError
from airflow_mlops.inspection import inspect_graph
from airflow_mlops.training.purity import findings

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENDPOINT = "features"
BATCH = 1024  # rows that are computed at a time: few enough for the memory of any worker


class Features(keras.layers.TFSMLayer):  # type: ignore[misc]
    """The features saved in the directory `place`, as the layer that stands before a model; it has nothing to train.

    Raises `UnsafeModel` if the graph would touch files or run code, which is not `code_allowed`.
    """

    def __init__(self, place: Path, *, code_allowed: bool = False) -> None:
        graph = saved_model_pb2.SavedModel.FromString((place / "saved_model.pb").read_bytes())
        if not code_allowed:
            inspect_graph(graph)
        super().__init__(str(place), call_endpoint=ENDPOINT, trainable=False, name="features")
        (self._taken,) = graph.meta_graphs[0].signature_def[ENDPOINT].inputs.items()
        self._digest = path_digest(place)[0]

    def get_config(self) -> dict[str, Any]:
        """Describe the layer by its content, which is the same wherever the directory lies."""
        return {"digest": self._digest}

    def of(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features (N, ...) of `rows`, (N, *input_shape)."""
        return np.concatenate([np.asarray(self(rows[start : start + BATCH])) for start in range(0, max(1, len(rows)), BATCH)])

    def before(self, model: keras.Model) -> keras.Model:
        """Return a model of raw rows, (N, *input_shape): `model` on their features, sharing its weights."""
        name, info = self._taken
        shape = tuple(dim.size for dim in info.tensor_shape.dim)[1:]
        rows = keras.Input(shape, dtype=tf.as_dtype(info.dtype).name, name=name)
        return keras.Model(rows, model(self(rows)), name=model.name)


def save_features(function: Callable[[Any], Any], input_shape: tuple[int, ...], place: Path) -> None:
    """Trace `function` on raw rows, (N, *input_shape) float32, and write it as a SavedModel directory `place`.

    The served input is named as the function's parameter. Raises `TrainFunctionError` if it raises, or does not return one tensor (N, ...).
    """
    try:
        (name,) = inspect.signature(function).parameters
        traced = tf.function(function, input_signature=[tf.TensorSpec((None, *input_shape), tf.float32, name)], autograph=False)
        answer = traced.get_concrete_function().structured_outputs
        if not isinstance(answer, tf.Tensor) or answer.shape.rank in (None, 0) or answer.shape[0] is not None:
            raise TypeError(f"it returned {answer}, and one tensor (N, ...) with a row for each raw row is expected")
        if found := findings(traced.get_concrete_function().graph.as_graph_def(), [answer.name]):
            raise ValueError(f"it {found[0].problem} ({found[0].step.node.op}), and one row must have the same features each time")
        module = tf.Module()
        module.features = traced
        tf.saved_model.save(module, str(place), signatures={ENDPOINT: traced})
    except Exception as error:  # whatever the user's function does
        reason = str(error).strip().partition("\n")[0]
        raise TrainFunctionError(
            f"The features function cannot be saved: {type(error).__name__}: {reason}. Expected a function of one argument, raw rows of shape "
            f"(N, {', '.join(map(str, input_shape))}), that returns one tensor by operations of TensorFlow only. Mend it and run the stage again."
        ) from error
