"""A model as it is served: its inference graph as a SavedModel, and proof that this answers a row as the model does, each time and alone.

Imports Keras and TensorFlow at the top: import it inside a stage only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import keras
import numpy as np
import tensorflow as tf
from keras.src.export.export_utils import get_input_signature
from tensorflow.core.protobuf import saved_model_pb2

from airflow_mlops.exceptions import NonFiniteModel, TrainingError
from airflow_mlops.training.purity import around_layers, check_graph, still_seeds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.float32]

SERVING = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
BATCH = 256  # rows that are asked at a time
NUM_FIRST, NUM_NEAR, MAX_CANDIDATES = 8, 8, 2048  # golden rows: the first ones, and those nearest to the decision boundary among so many
TOLERANCE = 1e-4  # absolute, and relative to answers above one; sums of float32 in another order differ by about 1e-6, other models by far more
NOISE = 1e-5  # the same, of classes that are equally good for a model: which of them it chooses follows from the order of its sums


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Within the block, answers are comparable: seeds are fixed, and GPUs do not round to TensorFloat-32, which differs by more than `TOLERANCE`."""
    rounding = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        with still_seeds():
            yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(rounding)


class ServedModel:
    """The SavedModel in a directory, asked as a server asks it: by its default signature, of one input and one output."""

    def __init__(self, place: Path) -> None:
        self._loaded = tf.saved_model.load(str(place))  # held: a signature alone does not keep its weights
        self._signature = self._loaded.signatures[SERVING]
        ((self._name, self._taken),) = self._signature.structured_input_signature[1].items()

    def predict(self, x: Any, *, verbose: Any = 0) -> NDArray[Any]:
        """Return the answers (N, ...) to rows (N, ...), N >= 1."""
        with asking():
            return np.concatenate([self._asked(x[start : start + BATCH]) for start in range(0, len(x), BATCH)])

    def _asked(self, rows: Rows) -> NDArray[Any]:
        return np.asarray(only_output(self._signature(**{self._name: tf.cast(rows, self._taken.dtype)})))


class InferenceModel:
    """A Keras model asked as its inference graph asks it, ``training=False`` all the way: also where its `call` has another default."""

    def __init__(self, model: keras.Model) -> None:
        self._call = tf.function(lambda rows: only_output(model(rows, training=False)), autograph=False, reduce_retracing=True)

    def predict(self, x: Any, *, verbose: Any = 0) -> NDArray[Any]:
        """Return the answers (N, ...) to rows (N, ...), N >= 1."""
        with asking():
            return np.concatenate([np.asarray(self._call(tf.convert_to_tensor(x[start : start + BATCH]))) for start in range(0, len(x), BATCH)])


def write(model: keras.Model, place: Path) -> None:
    """Write the inference graph of `model` as a SavedModel directory; raise `TrainingError`, naming the layer, if it keeps randomness or memory."""
    archive = keras.export.ExportArchive()
    archive.track(model)

    def serve(*rows: Any) -> Any:  # the name of an input that has none follows from this
        return model(*rows, training=False)

    with still_seeds():
        archive.add_endpoint("serve", serve, get_input_signature(model))
        archive.write_out(place, verbose=False)
    meta = read(place).meta_graphs[0]

    def trace() -> tuple[Any, list[str]]:
        traced = tf.function(lambda *rows: serve(*rows), input_signature=archive._endpoint_signatures["serve"], autograph=False)
        with still_seeds():
            graph = traced.get_concrete_function().graph
        return graph.as_graph_def(), [output.name for output in graph.outputs]

    check_graph(meta.graph_def, [output.name for output in meta.signature_def[SERVING].outputs.values()], trace)


def left_out(model: keras.Model) -> tuple[str, ...]:
    """Return a sentence for each layer that the graph of a functional model calls with ``training=True``: Keras itself does not when it predicts."""
    calls = ((layer, node) for layer in model._flatten_layers() for node in getattr(layer, "_inbound_nodes", ()))
    forced = dict.fromkeys(layer.name for layer, node in calls if node.arguments.kwargs.get("training"))
    return tuple(
        f"Layer {name!r} is called with training=True in the graph of a functional model. As Keras' predict does, what is measured and served leaves "
        "that out: the layer only learns so."
        for name in forced
    )


def read(place: Path) -> Any:
    """Return the ``SavedModel`` message of a directory."""
    return saved_model_pb2.SavedModel.FromString((place / "saved_model.pb").read_bytes())


class Golden(NamedTuple):
    """Rows (N, ...) and the answers (N, ...) that a server must give to them."""

    inputs: Rows
    outputs: NDArray[Any]


def candidates(rows: Rows) -> Rows:
    """Return the first rows, and up to `MAX_CANDIDATES` drawn evenly from all, which may be the same."""
    even = np.linspace(0, len(rows) - 1, min(len(rows), MAX_CANDIDATES)).astype(int)
    places = np.concatenate([np.arange(min(len(rows), NUM_FIRST)), even[even >= NUM_FIRST]])
    return np.asarray(rows[places], dtype=np.float32)


def golden_places(answers: NDArray[Any]) -> NDArray[np.int64]:
    """Return which rows are golden: the first ones and those that their `answers` put nearest to the decision boundary."""
    near = np.sort(np.argsort(_margins(answers)[NUM_FIRST:], kind="stable")[:NUM_NEAR]) + NUM_FIRST
    return np.concatenate([np.arange(min(len(answers), NUM_FIRST)), near]).astype(np.int64)


def _margins(answers: NDArray[Any]) -> NDArray[np.float64]:
    """Return how far each answer is from another choice: between the best two classes, or from one half where there is one number."""
    values = answers.astype(np.float64).reshape(len(answers), -1, answers.shape[-1] if answers.ndim > 1 else 1)
    if values.shape[2] < 2:
        return cast("NDArray[np.float64]", np.abs(values - 0.5).min(axis=(1, 2)))
    best = np.sort(values, axis=2)
    return cast("NDArray[np.float64]", (best[:, :, -1] - best[:, :, -2]).min(axis=1))


def golden_answers(model: keras.Model, served: ServedModel, rows: Rows) -> Golden:
    """Choose golden rows among `rows` (N, ...), N >= 1, and return what `served` answers to them: as `model` does, each time, alone or among others.

    Raises `TrainingError`, naming the layer where one shows it, if it does not, `NonFiniteModel` if it answers NaN to any of the rows.
    """
    asked = candidates(rows)
    among = served.predict(asked)
    if not np.all(np.isfinite(among)):
        raise NonFiniteModel(f"Model {model.name!r} answers NaN or infinity on its own training rows. Check its layers for divisions and logarithms.")
    places = golden_places(among)
    golden = Golden(asked[places], served.predict(asked[places]))
    with asking():
        _check_repeatable(model, served, golden)
        _check_independent(model, served, golden, among[places])
    return golden


def _check_repeatable(model: keras.Model, served: ServedModel, golden: Golden) -> None:
    rows, said = golden
    for other, what in ((served.predict(rows), "when it is asked again"), (_answers(model, rows), "than the model that was trained")):
        if (row := different(said, other)) is not None:
            layer = _first_different(_calls(model, rows), _calls(model, rows), None)
            raise TrainingError(_unrepeatable(model, layer, f"golden row {row} {what}, by up to {_distance(said, other, row):.3g}"))


def _check_independent(model: keras.Model, served: ServedModel, golden: Golden, among: NDArray[Any]) -> None:
    rows, said = golden
    alone = np.concatenate([served.predict(rows[row : row + 1]) for row in range(len(rows))])
    for other, what in ((alone, "alone"), (among, "among many others")):
        if (row := different(said, other)) is not None:
            layer = _first_different(_calls(model, rows), _calls(model, rows[row : row + 1]), row)
            raise TrainingError(_dependent(model, layer, f"golden row {row} {what} by up to {_distance(said, other, row):.3g}"))


def different(expected: NDArray[Any], found: NDArray[Any]) -> int | None:
    """Return the first row whose answers differ by more than `TOLERANCE`, or choose another class by more than `NOISE`; None if there is none."""
    if found.shape != expected.shape:
        return 0
    scale = np.maximum(1.0, np.abs(expected))
    wrong = ~(np.abs(found - expected) <= TOLERANCE * scale).reshape(len(expected), -1).all(axis=1)  # also where a difference is NaN
    if expected.ndim == 2:
        chosen = np.take_along_axis(expected, found.argmax(axis=1)[:, None], axis=1)[:, 0]
        wrong |= chosen < expected.max(axis=1) - NOISE * scale.max(axis=1)
    return int(wrong.argmax()) if wrong.any() else None


def _distance(one: NDArray[Any], other: NDArray[Any], row: int) -> float:
    return float(np.abs(one[row] - other[row]).max()) if one.shape == other.shape else float("inf")


def _answers(model: keras.Model, rows: Rows) -> NDArray[Any]:
    return np.asarray(only_output(model(rows, training=False)))


def only_output(answer: Any) -> Any:
    """Return the one tensor in what a model answers; raise `TrainingError` if there are several."""
    tensors = tf.nest.flatten(answer)
    if len(tensors) != 1:
        raise TrainingError(f"The model has {len(tensors)} outputs; one is served and measured. Return a keras.Model of one input and one output.")
    return tensors[0]


def _unrepeatable(model: keras.Model, layer: keras.layers.Layer | None, where: str) -> str:
    frozen = "Python's own numbers, clock and counters are frozen into what is served"
    if layer is None:
        return f"What is served of model {model.name!r} answers {where}. Look for what Python decides in its layers: {frozen}."
    return (
        f"Layer {layer.name!r} ({type(layer).__name__}) answers the same rows differently every time it is called, so that what is served answers "
        f"{where}. In its call use its inputs and weights alone, by operations of keras.ops or TensorFlow: {frozen}."
    )


def _dependent(model: keras.Model, layer: keras.layers.Layer | None, where: str) -> str:
    who = f"Model {model.name!r}" if layer is None else f"Layer {layer.name!r} ({type(layer).__name__})"
    return (
        f"{who} answers a row depending on the other rows of a request: {where}. A server is asked any rows together. Compute nothing over the first "
        "axis, the rows, and nothing from their number; BatchNormalization keeps statistics of the training for that."
    )


def _calls(model: keras.Model, rows: Rows) -> list[tuple[keras.layers.Layer, NDArray[Any]]]:
    """Return what every layer of `model` answers when it is asked `rows`, in the order in which they end: inner ones first."""
    seen: list[tuple[keras.layers.Layer, NDArray[Any]]] = []

    def call(original: Callable[..., Any], layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        answer = original(layer, *args, **kwargs)
        seen.extend((layer, np.asarray(value)) for value in tf.nest.flatten(answer) if isinstance(value, tf.Tensor) and hasattr(value, "numpy"))
        return answer

    with around_layers(call):
        model(rows, training=False)
    return seen


def _first_different(
    one: list[tuple[keras.layers.Layer, NDArray[Any]]], other: list[tuple[keras.layers.Layer, NDArray[Any]]], row: int | None
) -> keras.layers.Layer | None:
    """Return the first layer that answered otherwise; with a `row`, `other` was asked that row of `one` alone."""
    for (layer, whole), (_, found) in zip(one, other, strict=False):
        expected = whole if row is None or len(found) == len(whole) else whole[row : row + 1]
        if expected.shape == found.shape and not np.allclose(expected, found, rtol=TOLERANCE, atol=TOLERANCE / 10):
            return layer
    return None
