"""Inputs that only elementwise operations see, in graphs that TensorFlow made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from airflow_mlops.serving.embedded.elementwise import Elementwise

NUMBERS = tf.TensorSpec((None, 1), tf.float32, "x")
WEIGHT = tf.Variable([[2.0]])


@tf.function
def half_plus_two(x: tf.Tensor) -> tf.Tensor:
    return x * 0.5 + 2.0


@tf.function
def times_weight(x: tf.Tensor) -> tf.Tensor:
    return x @ WEIGHT


def sees(function: Callable[..., Any]) -> bool:
    """Return whether all of a function's graph that reads its input is elementwise."""
    graph = tf.function(function, input_signature=[NUMBERS]).get_concrete_function().graph
    return Elementwise(graph.as_graph_def()).sees(graph.inputs[0].name)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.identity(x),
        lambda x: half_plus_two(half_plus_two(x)),
        lambda x: tf.cast(x * WEIGHT > 1.0, tf.int32),
        lambda x: (half_plus_two(x), tf.ones((2, 2)) @ tf.ones((2, 2))),  # the product does not read it
        lambda x: tf.constant(1.0),
    ],
    ids=["identity", "nested", "variable", "apart", "unread"],
)
def test_elementwise_operations_are_followed_into_the_functions_they_are_in(function: Callable[..., Any]) -> None:
    assert sees(function)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x @ WEIGHT,
        lambda x: half_plus_two(times_weight(x)),
        lambda x: times_weight(half_plus_two(x)),
        lambda x: tf.reduce_sum(x, axis=1),
        lambda x: tf.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v @ WEIGHT), [0, x])[1],
        lambda x: tf.nn.conv2d(tf.reshape(x, (-1, 1, 1, 1)), tf.ones((1, 1, 1, 1)), 1, "SAME"),
        lambda x: tf.py_function(lambda y: y, [x], tf.float32),
    ],
    ids=["product", "before", "after", "sum", "loop", "convolution", "python"],
)
def test_one_operation_that_is_not_elementwise_is_enough(function: Callable[..., Any]) -> None:
    assert not sees(function)


def test_a_function_that_calls_itself_or_is_missing_is_not_elementwise() -> None:
    graph = tf.function(half_plus_two, input_signature=[NUMBERS]).get_concrete_function().graph
    message = graph.as_graph_def()
    call = next(node for node in message.node if node.op.endswith("PartitionedCall"))
    name = call.attr["f"].func.name
    function = next(one for one in message.library.function if one.signature.name == name)
    function.node_def.add().CopyFrom(call)
    assert not Elementwise(message).sees(graph.inputs[0].name)
    del message.library.function[:]
    assert not Elementwise(message).sees(graph.inputs[0].name)
