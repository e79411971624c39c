"""Which values inside a Keras model are its neurons, and how they are seen: every layer's `call` is watched while a graph is traced.

Watching calls instead of rebuilding the model as a graph of layers works for every model that Keras can run: nested, shared and subclassed ones.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

_layers = keras.layers
CONVOLUTIONS = (
    *(_layers.Conv1D, _layers.Conv2D, _layers.Conv3D, _layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose),
    *(_layers.DepthwiseConv1D, _layers.DepthwiseConv2D, _layers.SeparableConv1D, _layers.SeparableConv2D),
)
POOLS = (
    *(_layers.MaxPooling1D, _layers.MaxPooling2D, _layers.MaxPooling3D),
    *(_layers.AveragePooling1D, _layers.AveragePooling2D, _layers.AveragePooling3D),
    *(_layers.GlobalMaxPooling1D, _layers.GlobalMaxPooling2D, _layers.GlobalMaxPooling3D),
    *(_layers.GlobalAveragePooling1D, _layers.GlobalAveragePooling2D, _layers.GlobalAveragePooling3D),
)
NEURON_LAYERS: tuple[type, ...] = (*CONVOLUTIONS, *POOLS, _layers.Dense)
SCALING = (
    *(_layers.BatchNormalization, _layers.GroupNormalization, _layers.LayerNormalization, _layers.RMSNormalization, _layers.PReLU),
)  # what they learn moves the neurons of the layer before them
METHODS = ("call", "quantized_call")  # Keras runs the second instead of the first where a layer is quantised


@dataclass(frozen=True)
class LayerSpan:
    """Neurons ``start:stop`` of the activation vector belong to layer `name`, or to its n-th call if the name ends in ``#n``."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Call:
    """One run of `layer`: what it returned, (N, ...) with `leading` axes between the batch and the layer's own; the steps of a time loop together."""

    layer: Any
    outputs: tuple[Any, ...]
    leading: int = 0


def sublayers(model: Any) -> list[Any]:
    """Return every layer inside `model`, at any depth, once; found in attributes, lists, tuples and dicts, whatever their names."""
    found: dict[int, Any] = {}
    waiting = [model]
    while waiting:
        for layer in _held(vars(waiting.pop())):
            if id(layer) not in found:
                found[id(layer)] = layer
                waiting.append(layer)
    found.pop(id(model), None)
    return list(found.values())


def uncounted(model: Any, layer_types: tuple[type, ...]) -> list[str]:
    """Return the names of the outermost layers inside `model` that learn and have no neurons: recurrent, attention and embedding layers."""
    learning = [layer for layer in sublayers(model) if layer.trainable_weights and not isinstance(layer, (*layer_types, *SCALING))]
    blind = [layer for layer in learning if not any(isinstance(inner, layer_types) for inner in sublayers(layer))]
    inside = {id(inner) for layer in blind for inner in sublayers(layer)}
    return [layer.name for layer in blind if id(layer) not in inside]


@contextlib.contextmanager
def watched(model: Any, layer_types: tuple[type, ...]) -> Iterator[list[Call]]:
    """Within the block, add every run of a layer of `layer_types` inside `model` to the list; afterwards the model is as it was, also on errors."""
    calls: list[Call] = []
    changed = []
    try:
        for layer in sublayers(model):
            if not isinstance(layer, (*layer_types, _layers.TimeDistributed)):
                continue
            watch = _watch_steps if isinstance(layer, _layers.TimeDistributed) else _watch
            changed.append((layer, {name: vars(layer)[name] for name in METHODS if name in vars(layer)}))
            # Not through `layer.call = ...`: Keras and TensorFlow track what is set that way.
            vars(layer).update({name: watch(layer, getattr(layer, name), layer_types, calls) for name in METHODS if hasattr(layer, name)})
        yield calls
    finally:
        for layer, own in changed:
            for name in METHODS:
                vars(layer).pop(name, None)
            vars(layer).update(own)


def values(calls: list[Call], inputs: tf.Tensor) -> list[tuple[str, tf.Tensor]]:
    """Return (name, (N, C) float32) per call that saw the batch `inputs` (N, ...): the mean of each channel over all other axes, in float32.

    Left out is what has no value per row of the batch here: layers that run inside a loop or branch of the graph (in recurrent cells; even if
    their first step is outside), and what is not (N, ..., C) floats with C known: layers that run on constants, or on a batch folded together
    with other axes.
    """
    made: list[tuple[str, tf.Tensor]] = []
    taken: Counter[str] = Counter()
    looped = {id(call.layer) for call in calls if any(getattr(output, "graph", None) is not inputs.graph for output in call.outputs)}
    for call in calls:
        if id(call.layer) in looped or not all(_is_per_row(output, inputs) for output in call.outputs):
            continue
        means = [_channel_means(call, output) for output in call.outputs]
        value = tf.ensure_shape(tf.add_n(means) / float(len(means)) if len(means) > 1 else means[0], (inputs.shape[0], None))
        if value.shape[1]:
            taken[call.layer.name] += 1
            number = taken[call.layer.name]
            # No layer's name can have a '#' in it: TensorFlow does not take it for a scope.
            made.append((f"{call.layer.name}#{number}" if number > 1 else call.layer.name, value))
    return made


def spans(named: list[tuple[str, tf.Tensor]]) -> tuple[LayerSpan, ...]:
    """Return where in the concatenated activation vector each of the `named` values (N, C) stands."""
    made, start = [], 0
    for name, value in named:
        made.append(LayerSpan(name, start, start + value.shape[1]))
        start += value.shape[1]
    return tuple(made)


def _held(content: Any) -> Iterator[Any]:
    """Yield the layers in an object's attributes, in their order, and in containers in them."""
    for value in content.values() if isinstance(content, Mapping) else content:
        if isinstance(value, keras.Layer):
            yield value
        elif isinstance(value, (list, tuple, Mapping)):
            yield from _held(value)


def _watch(layer: Any, method: Callable[..., Any], layer_types: tuple[type, ...], calls: list[Call]) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        outputs = method(*args, **kwargs)
        if isinstance(layer, layer_types):
            calls.append(Call(layer, (_first(outputs),)))
        return outputs

    return run


def _watch_steps(wrapper: Any, method: Callable[..., Any], layer_types: tuple[type, ...], calls: list[Call]) -> Callable[..., Any]:
    """`TimeDistributed` calls its layer once per step: a neuron is still one channel, its value the mean over all steps."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        start = len(calls)
        outputs = method(*args, **kwargs)
        if isinstance(wrapper.layer, layer_types):
            calls[start:] = [Call(wrapper.layer, (_first(outputs),), leading=1)]
        else:
            calls[start:] = _merged(calls[start:], _first(outputs).shape[1])
        if isinstance(wrapper, layer_types):
            calls.append(Call(wrapper, (_first(outputs),)))
        return outputs

    return run


def _merged(calls: list[Call], num_steps: int | None) -> list[Call]:
    """Put the calls of each layer in all `num_steps` steps together; several calls in one step stay apart, and so do those of unknown steps."""
    groups: dict[int, list[Call]] = {}
    for call in calls:
        groups.setdefault(id(call.layer), []).append(call)
    made: list[Call] = []
    for group in groups.values():
        per_step = len(group) // num_steps if num_steps and len(group) % num_steps == 0 else len(group)
        for place in range(per_step):
            outputs = [output for call in group[place::per_step] for output in call.outputs]
            made.append(Call(group[0].layer, tuple(outputs), group[0].leading))
    return made


def _first(outputs: Any) -> Any:
    """The values among what a layer returns; recurrent layers add their states."""
    return tf.nest.flatten(outputs)[0]


def _is_per_row(output: Any, inputs: tf.Tensor) -> bool:
    """A layer that Keras had to build first was traced in a graph of its own as well: those tensors are of no use either."""
    if not isinstance(output, tf.Tensor) or output.graph is not inputs.graph or not output.dtype.is_floating:
        return False
    return (output.shape.rank or 0) >= 2 and output.shape[0] in (None, inputs.shape[0])


def _channel_means(call: Call, output: tf.Tensor) -> tf.Tensor:
    """Average (N, ..., C) over every axis but batch and channel; a dense layer on sequences so counts each unit once."""
    value = tf.cast(output, tf.float32)
    channel = 1 + call.leading if getattr(call.layer, "data_format", None) == "channels_first" else value.shape.rank - 1
    # One axis at a time, the outermost first, is faster than all at once (a LeNet-5 with all neurons: 23.5 instead of 27.7 us of CPU per input).
    for axis in [1] * (channel - 1) + [2] * (value.shape.rank - 1 - channel):
        value = tf.reduce_mean(value, axis=axis)
    return value
