"""JSON examples to `tf.Example`, by the rules of TensorFlow Serving's REST interface (util/json_tensor.cc, g3doc/api_rest.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded.json_tensors import Document, decoded, encoded, is_base64, show
from airflow_mlops.serving.embedded.refusal import invalid
from airflow_mlops.serving.tensors import Array


def examples_of(document: Document) -> Array:
    """Return the request's examples, each with the shared context, as serialized `tf.Example` messages (bytes objects, shape (N,))."""
    examples = document.get("examples")
    if "examples" not in document:
        raise invalid("When method is classify or regress, key 'examples' is expected and was not found")
    if not isinstance(examples, list):
        raise invalid("Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid("'examples' value is an empty array")
    context = _example(document["context"], "context") if "context" in document else b""
    rows: Array = np.empty(len(examples), object)
    # One message behind the other is their merge: what an example says itself comes last and counts.
    rows[:] = [context + _example(example, f"'examples' element {number}") for number, example in enumerate(examples)]
    return rows


def _example(features: Any, where: str) -> bytes:
    if not isinstance(features, Mapping) or is_base64(features):
        raise invalid(f"Expecting {where} to be an object of features, got {show(features)}")
    example = protos.example_pb2.Example()
    for name, value in features.items():
        _fill(example.features.feature[encoded(name).decode()], value if isinstance(value, list) else [value], f"feature {name!r} of {where}")
    return bytes(example.SerializeToString())


def _fill(feature: Any, values: list[Any], where: str) -> None:
    """Write values of one kind: an integer is int64 and a decimal float, so that ``2`` is no value for a float feature, as in the original."""
    if not values:
        return
    kind = _kind(values[0], where)
    if any(_kind(value, where) is not kind for value in values):
        raise invalid(f"Unexpected element type in {where}: a list must hold values of one type, got {show(values)}")
    if kind is bytes:
        feature.bytes_list.value.extend(decoded(value["b64"]) if is_base64(value) else encoded(value) for value in values)
    elif kind is int:
        if any(not -(2**63) <= value < 2**63 for value in values):
            raise invalid(f"An integer in {where} does not fit into 64 bits: {show(values)}")
        feature.int64_list.value.extend(values)
    else:
        feature.float_list.value.extend(values)


def _kind(value: Any, where: str) -> type:
    if isinstance(value, str) or is_base64(value):
        return bytes
    if isinstance(value, int | float) and not isinstance(value, bool):
        return type(value)
    raise invalid(f"Unexpected value in {where}: expected numbers, strings or base64 objects, got {show(value)}")
