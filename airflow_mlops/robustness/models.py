"""A Keras classifier whose one graph gives the answer and the value of every neuron; activations are then almost free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness.mutators.base import Floats, Ints
from airflow_mlops.robustness.neurons import NEURON_LAYERS, LayerSpan, spans, sublayers, uncounted, values, watched

__all__ = ["NEURON_LAYERS", "Answers", "LayerSpan", "Probe", "model_digest"]

IN_FLIGHT = 2  # forward passes at a time: one is copied in and out while the other computes (a sixth faster on two cores)
WRAPPING = "Wrap it: x = keras.Input(...); keras.Model(x, ...) with one input and one output."
PROBABILITIES = ("Softmax", "Sigmoid")  # the last operation of the graph
LOGITS = ("BiasAdd", "MatMul", "LogSoftmax")


@dataclass(frozen=True)
class Answers:
    """What a model says to N inputs: class probabilities `outputs` (N, C), and the value of every neuron (N, M), both float32.

    Where an output of the model is NaN or infinite, the whole row of `outputs` is NaN, `prediction` (N,) is -1 and `confidence` (N,), else the
    probability of the prediction, is 0. `neurons` are as they are.
    """

    outputs: Floats
    prediction: Ints
    confidence: Floats
    neurons: Floats


class Probe:
    """A built Keras classifier of one input with all its neurons in sight; train the model first, its weights are not to change afterwards.

    A neuron is a channel of a convolution or pool (its value: the mean over the spatial axes) or a unit of a dense layer. A layer counts if it is
    of `layer_types`, at any depth; each call of a shared layer counts for itself ('dense', 'dense#2'); a layer that never runs has no neurons.

    Every forward pass is of `micro_batch` rows, the last one padded, because kernels choose their order of summation by the shape; a row's answer
    so does not depend on how many others are asked about. Measured on CPU with 1, 2 and 4 threads: equal to the bit at any place among any
    neighbours for convolutions, pools, dense and recurrent layers, with oneDNN and micro-batches of a power of two from 4 on. With other sizes,
    without oneDNN or with LayerNormalization, answers to the same row at another place can differ by 6e-5 of their value: where bits count,
    ask about the same rows in the same order.

    Probabilities are the model's outputs, through softmax if these are logits. The graph's last operation tells (softmax or sigmoid: as they are;
    a linear layer or log-softmax: logits); after any other, the first `answer` with a finite row decides for good: probabilities if all its
    finite rows are non-negative and sum to 1.

    Raises `RobustnessError` for a model that is not built, has several inputs or outputs, no output (N, classes >= 2), or no neuron.
    """

    def __init__(self, model: keras.Model, *, layer_types: tuple[type, ...] = NEURON_LAYERS, micro_batch: int = 256) -> None:
        if isinstance(micro_batch, bool) or not isinstance(micro_batch, int) or micro_batch < 1:
            raise SpecError(f"micro_batch is {micro_batch}; expected how many rows, from 1 on, a forward pass has.")
        self.micro_batch = micro_batch
        self.model = model
        self._pool = ThreadPoolExecutor(IN_FLIGHT)  # for all who ask at the same time
        self._shape, self._dtype = _input(model, micro_batch)
        self._forward, outputs, named = self._trace(layer_types)
        output = self._checked(outputs, named)
        self._is_logits = _is_logits(output)
        self.num_classes = int(output.shape[1])
        self.layers = spans(named)
        self.num_neurons = self.layers[-1].stop
        self.uncounted = uncounted(model, layer_types)
        self.digest = model_digest(model)

    def check(self, inputs: npt.NDArray[Any]) -> None:
        """Raise `RobustnessError` unless the model takes inputs of this shape and type, numbers or texts, and casting them changes no value."""
        inputs = self._shaped(np.asarray(inputs))
        if self._dtype.is_integer and not np.array_equal(inputs, inputs.astype(self._dtype.as_numpy_dtype)):
            raise RobustnessError(
                f"The model takes {self._dtype.name}, and these inputs, from {inputs.min()} to {inputs.max()}, are other numbers when cast to it. "
                "Pass them as the model was trained on, and name their value_range."
            )

    def check_labels(self, labels: Ints) -> None:
        """Raise `RobustnessError` unless `labels` (N,) are numbers of classes that the model has an output for."""
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise RobustnessError(
                f"The labels are {labels.dtype} of shape {labels.shape}; expected one class number per input, whole numbers of shape (N,). "
                "Turn one-hot rows into them with labels.argmax(axis=1)."
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise RobustnessError(
                f"The labels go from {labels.min()} to {labels.max()}, and model {self.model.name!r} has {self.num_classes} outputs: expected labels "
                f"from 0 to {self.num_classes - 1}. Number the classes as in training."
            )

    def answer(self, inputs: npt.NDArray[Any]) -> Answers:
        """Return the answers to `inputs`, (N, ...) numbers, cast to the model's input type, or (N,) or (N, 1) texts; N may be any number.

        Raises `RobustnessError` for inputs of another shape or type.
        """
        inputs = self._shaped(np.asarray(inputs))
        outputs = np.empty((len(inputs), self.num_classes), np.float32)
        neurons = np.empty((len(inputs), self.num_neurons), np.float32)

        def fill(start: int) -> None:
            rows = inputs[start : start + self.micro_batch]
            seen, said = self._forward(self._padded(rows))
            outputs[start : start + len(rows)] = np.asarray(said)[: len(rows)]
            neurons[start : start + len(rows)] = np.asarray(seen)[: len(rows)]

        list(self._pool.map(fill, range(0, len(inputs), self.micro_batch)))
        finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(outputs).all(axis=1))
        outputs = self._probabilities(outputs, finite)
        comparable = np.where(finite[:, None], outputs, 0.0)
        return Answers(outputs, np.where(finite, comparable.argmax(axis=1), -1), comparable.max(axis=1), neurons)

    def answer_all(self, inputs: npt.NDArray[Any], batch_size: int) -> Iterator[Answers]:
        """Yield the answers to `inputs` in batches of `batch_size`, rounded up to whole micro-batches: these so are the same for every batch size."""
        rows = -(-batch_size // self.micro_batch) * self.micro_batch
        for start in range(0, len(inputs), rows):
            yield self.answer(inputs[start : start + rows])

    def _trace(self, layer_types: tuple[type, ...]) -> tuple[Any, list[tf.Tensor], list[tuple[str, tf.Tensor]]]:
        """Return the graph of one forward pass, and in it the outputs and the (N, C) neurons of each layer by name."""
        outputs: list[tf.Tensor] = []
        named: list[tuple[str, tf.Tensor]] = []

        def observe(inputs: tf.Tensor) -> list[tf.Tensor]:
            calls.clear()
            outputs[:] = tf.nest.flatten(self.model(inputs, training=False))
            named[:] = values(calls, inputs)
            # In this order, for `answer`; what else there is makes `_checked` refuse the model.
            return [tf.concat([value for _, value in named] or [inputs], axis=-1), *(tf.cast(output, tf.float32) for output in outputs)]

        signature = [tf.TensorSpec((self.micro_batch, *self._shape), self._dtype)]
        try:
            with watched(self.model, layer_types) as calls:
                return tf.function(observe, input_signature=signature, autograph=False).get_concrete_function(), outputs, named
        except Exception as error:  # whatever the layers of a user raise
            raise RobustnessError(
                f"Model {self.model.name!r} cannot run on {self.micro_batch} inputs {self._dtype.name} of shape {self._shape}: {str(error)[:500]} "
                "Expected a built Keras model of one input. Call it on one batch first; if it takes texts or whole numbers and is a subclass of "
                "keras.Model, make a functional model of it, whose Input says so."
            ) from error

    def _checked(self, outputs: list[tf.Tensor], named: list[tuple[str, tf.Tensor]]) -> tf.Tensor:
        """Return the one output of a classifier with neurons."""
        if len(outputs) != 1 or outputs[0].shape.rank != 2 or (outputs[0].shape[1] or 0) < 2:
            raise RobustnessError(
                f"Model {self.model.name!r} has outputs of shape {[(None, *output.shape[1:]) for output in outputs]}; expected one output "
                f"(N, classes), two classes at least. {WRAPPING} A single probability p becomes two classes: concatenate 1 - p and p."
            )
        if not named:
            found = ", ".join(sorted({type(layer).__name__ for layer in sublayers(self.model)})) or "nothing"
            raise RobustnessError(
                f"Model {self.model.name!r} has no layer with neurons: expected convolution, pool or dense layers that run, and found {found}. "
                "Name other layer_types, or build the model of such layers."
            )
        return outputs[0]

    def _shaped(self, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return `inputs` in the model's shape; texts may come as (N,) or (N, 1)."""
        texts = self._dtype == tf.string
        if texts and inputs.ndim in (1, 2) and inputs.shape[1:] in ((), (1,)) and self._shape in ((), (1,)):
            inputs = inputs.reshape(-1, *self._shape)
        have, kinds = inputs.shape[1:], "OSU" if texts else "fiub"
        fits = len(self._shape) == len(have) and all(want in (None, size) for want, size in zip(self._shape, have, strict=True))
        if inputs.ndim < 1 or not fits or inputs.dtype.kind not in kinds:
            raise RobustnessError(
                f"The model takes {'texts' if texts else 'numbers'} of shape {self._shape}, and these inputs are {inputs.dtype} of shape "
                f"{inputs.shape[1:]}. Prepare them as in training."
            )
        return inputs

    def _padded(self, rows: npt.NDArray[Any]) -> tf.Tensor:
        """Return a full micro-batch; copies of the first row fill it, because an input of its own could be illegal."""
        missing = self.micro_batch - len(rows)
        if missing:
            rows = np.concatenate([rows, np.repeat(rows[:1], missing, axis=0)])
        try:
            return tf.constant(rows if self._dtype == tf.string else rows.astype(self._dtype.as_numpy_dtype, copy=False), self._dtype)
        except (TypeError, ValueError) as error:
            raise RobustnessError(f"The model takes texts, and not all of these inputs are: {error} Pass str only.") from error

    def _probabilities(self, outputs: Floats, finite: npt.NDArray[np.bool_]) -> Floats:
        if self._is_logits is None and finite.any():
            known = outputs[finite]
            self._is_logits = bool((known < 0).any() or (np.abs(known.sum(axis=1) - 1) > 1e-2).any())
        outputs[~finite] = np.nan
        if self._is_logits:
            outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            outputs /= outputs.sum(axis=1, keepdims=True)
        return outputs


def model_digest(model: keras.Model) -> str:
    """Return ``sha256:<hex>`` of a model's architecture, weights and vocabularies; saving and loading does not change it."""
    try:
        config = model.get_config()
    except NotImplementedError:  # a subclass whose arguments Keras cannot write down; its name and its weights remain
        config = {}
    # Without names: those of layers inside layers are others in every process.
    vocabularies = sorted(list(map(str, layer.get_vocabulary())) for layer in sublayers(model) if hasattr(layer, "get_vocabulary"))
    described = [type(model).__name__, config, vocabularies]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=_plain).encode())
    for weight in model.get_weights():
        digest.update(f"{weight.dtype}{weight.shape}".encode())
        digest.update(np.ascontiguousarray(weight).tobytes())
    return "sha256:" + digest.hexdigest()


def _plain(value: Any) -> Any:
    """Never an object's address, which is another one in the next process."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else type(value).__qualname__


def _input(model: Any, micro_batch: int) -> tuple[tuple[int | None, ...], tf.DType]:
    """Return shape, without the batch, and type of the one input of a built model."""
    if not isinstance(model, keras.Model) or not model.built:
        raise RobustnessError(f"{model!r} is no built Keras model; expected a keras.Model with weights. Call it on one batch first.")
    try:
        tensors = [(tensor.shape, tensor.dtype) for tensor in model.inputs]
    except AttributeError:  # a subclass has no tensors; it may remember the shape of what it was first called on
        shape = (model.get_build_config() or {}).get("input_shape") or {}
        is_one = isinstance(shape, (tuple, list)) and all(size is None or isinstance(size, int) for size in shape)
        tensors = [((None, *shape[1:]), model.input_dtype)] if is_one else []
    if len(tensors) != 1:
        raise RobustnessError(
            f"Model {model.name!r} has {len(tensors) or 'several inputs, or none whose shape it can tell (get_build_config)'}"
            f"{' inputs' * bool(tensors)}; expected one, because one is mutated. {WRAPPING} Keep the other inputs constant in it."
        )
    (rows, *sizes), dtype = tensors[0]
    if rows not in (None, micro_batch):
        raise RobustnessError(f"Model {model.name!r} takes exactly {rows} inputs at once. Pass micro_batch={rows}, or build it without batch_size.")
    return tuple(sizes), tf.as_dtype(dtype)


def _is_logits(output: tf.Tensor) -> bool | None:
    """Say what the last operation before `output` makes, None if it could be either."""
    operation = output.op
    while operation.type in ("Identity", "Cast", "StopGradient"):
        operation = operation.inputs[0].op
    return False if operation.type in PROBABILITIES else True if operation.type in LOGITS else None
