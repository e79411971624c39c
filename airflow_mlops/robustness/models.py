"""A Keras classifier whose one graph gives the answer and the value of every neuron; activations are then almost free."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.robustness.mutators.base import Floats, Ints

_layers = keras.layers
CONVOLUTIONS = (
    *(_layers.Conv1D, _layers.Conv2D, _layers.Conv3D, _layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose),
    *(_layers.DepthwiseConv1D, _layers.DepthwiseConv2D, _layers.SeparableConv1D, _layers.SeparableConv2D),
)
POOLS = (
    *(_layers.MaxPooling1D, _layers.MaxPooling2D, _layers.MaxPooling3D),
    *(_layers.AveragePooling1D, _layers.AveragePooling2D, _layers.AveragePooling3D),
    *(_layers.GlobalMaxPooling1D, _layers.GlobalMaxPooling2D, _layers.GlobalAveragePooling1D, _layers.GlobalAveragePooling2D),
)
NEURON_LAYERS: tuple[type, ...] = (*CONVOLUTIONS, *POOLS, _layers.Dense)


@dataclass(frozen=True)
class LayerSpan:
    """Neurons ``start:stop`` of the activation vector belong to layer `name`."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Answers:
    """What a model says to N inputs: `prediction` (N,) is -1 where an output is NaN or infinite, `confidence` (N,) in [0, 1], `neurons` (N, M)."""

    prediction: Ints
    confidence: Floats
    neurons: Floats


class Probe:
    """A Keras classifier with all its neurons in sight.

    A neuron is a channel of a convolution or pool (its value: the mean over the spatial axes) or a unit of a dense layer; which layers count is
    decided by `layer_types`. Raises `RobustnessError` for a model that is not a built graph of layers, has no such layer, or is no
    classifier of one input.
    """

    def __init__(self, model: keras.Model, *, layer_types: tuple[type, ...] = NEURON_LAYERS) -> None:
        layers: list[Any] = [layer for layer in model.layers if isinstance(layer, layer_types)]
        if not layers:
            raise RobustnessError(
                f"Model {model.name!r} has no layer with neurons among its {len(model.layers)} layers; expected convolution, pool or dense layers "
                "in the model itself, not in a nested one. Pass the nested model, or name other layer_types."
            )
        try:
            tensors = [layer.output for layer in layers]
            self._graph = keras.Model(model.inputs, [*model.outputs, *tensors])
        except (AttributeError, ValueError, TypeError) as error:
            raise RobustnessError(
                f"Model {model.name!r} can not be opened layer by layer ({error}). Expected a built Sequential or functional Keras model in which "
                "each neuron layer is used once. Call it on one batch first, or rebuild it so."
            ) from error
        if [len(output.shape) for output in model.outputs] != [2] or len(model.inputs) != 1:
            raise RobustnessError(
                f"Model {model.name!r} has {len(model.inputs)} inputs and outputs of shape {[output.shape for output in model.outputs]}; expected "
                "one input and one output (N, classes). Pass the classifier part of the model."
            )
        self._axes = [_spatial_axes(layer, tensor) for layer, tensor in zip(layers, tensors, strict=True)]
        self.layers = tuple(_spans(layers, tensors, self._axes))
        self.num_neurons = self.layers[-1].stop
        self.digest = model_digest(model)
        self._forward = tf.function(self._observe, reduce_retracing=True)

    def check(self, images: Floats) -> None:
        """Raise `RobustnessError` unless the model takes images of this shape."""
        expected = tuple(self._graph.inputs[0].shape[1:])
        if len(expected) != images.ndim - 1 or any(want not in (None, have) for want, have in zip(expected, images.shape[1:], strict=True)):
            raise RobustnessError(f"The model takes inputs of shape {expected}, and these are {images.shape[1:]}. Prepare them as in training.")

    def answer(self, images: Floats) -> Answers:
        """Return prediction, confidence and neuron values for (N, H, W, C) float32 inputs, in one pass and without splitting the batch."""
        outputs, neurons = (tensor.numpy() for tensor in self._forward(tf.constant(images, tf.float32)))
        finite = np.isfinite(outputs).all(axis=1)
        prediction = np.where(finite, np.where(np.isfinite(outputs), outputs, -np.inf).argmax(axis=1), -1)
        confidence = np.where(finite, _probabilities(np.where(finite[:, None], outputs, 0.0)).max(axis=1), 0.0)
        return Answers(prediction, confidence, neurons)

    def answer_all(self, images: Floats, batch_size: int) -> Iterator[Answers]:
        """Yield the answers to `images` in batches of `batch_size`."""
        for start in range(0, len(images), batch_size):
            yield self.answer(images[start : start + batch_size])

    def _observe(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs, *tensors = self._graph(images, training=False)
        values = [tf.reduce_mean(tensor, axis=axes) if axes else tensor for tensor, axes in zip(tensors, self._axes, strict=True)]
        return outputs, tf.concat([tf.cast(value, tf.float32) for value in values], axis=1)


def model_digest(model: keras.Model) -> str:
    """Return ``sha256:<hex>`` of a model's architecture and weights; saving and loading does not change it."""
    digest = hashlib.sha256(json.dumps(model.get_config(), sort_keys=True, default=str).encode())
    for weight in model.get_weights():
        digest.update(f"{weight.dtype}{weight.shape}".encode())
        digest.update(np.ascontiguousarray(weight).tobytes())
    return "sha256:" + digest.hexdigest()


def _spatial_axes(layer: Any, tensor: Any) -> list[int]:
    """Every axis but the batch and the channel; a dense layer on sequences counts each unit once, over its positions."""
    channel = 1 if getattr(layer, "data_format", "channels_last") == "channels_first" else len(tensor.shape) - 1
    return [axis for axis in range(1, len(tensor.shape)) if axis != channel]


def _spans(layers: list[Any], tensors: list[Any], axes: list[list[int]]) -> Iterator[LayerSpan]:
    start = 0
    for layer, tensor, spatial in zip(layers, tensors, axes, strict=True):
        width = math.prod(size for axis, size in enumerate(tensor.shape) if axis and axis not in spatial)
        yield LayerSpan(layer.name, start, start + width)
        start += width


def _probabilities(outputs: Floats) -> Floats:
    """Rows that already are probabilities stay; logits go through softmax."""
    if bool((outputs >= 0).all() and (np.abs(outputs.sum(axis=1) - 1) < 1e-3).all()):
        return outputs
    exponentials: Floats = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials
