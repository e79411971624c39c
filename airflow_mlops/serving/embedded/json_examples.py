"""JSON examples to `tf.Example`, by the rules and in the words of TensorFlow Serving's REST interface (util/json_tensor.cc, g3doc/api_rest.md)."""

from __future__ import annotations

from typing import Any

import numpy as np

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded.json_tensors import decoded, is_base64
from airflow_mlops.serving.embedded.json_text import Document, encoded, show, type_of
from airflow_mlops.serving.embedded.refusal import invalid
from airflow_mlops.serving.tensors import Array

_BYTES, _FLOAT, _INT64 = "bytes", "float", "int64"


def examples_of(document: Document) -> Array:
    """Return the request's examples, each with the shared context, as serialized `tf.Example` messages (bytes objects, shape (N,))."""
    context = _example(document["context"]) if "context" in document else b""
    examples = document.get("examples")
    if "examples" not in document:  # the original says classify to both
        raise invalid(f"JSON Value: {show(document)} When method is classify, key 'examples' is expected and was not found")
    if not isinstance(examples, list):
        raise invalid(f"JSON Value: {show(document)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid(f"JSON Value: {show(document)} 'examples' value is an empty array")
    rows: Array = np.empty(len(examples), object)
    # One message behind the other is their merge: what an example says itself comes last and counts.
    rows[:] = [context + _example(example) for example in examples]
    return rows


def _example(features: Any) -> bytes:
    if not isinstance(features, dict):
        raise invalid(f"Example must be JSON object but got JSON {type_of(features)}")
    example = protos.example_pb2.Example()
    for name, content in features.items():
        _fill(example.features.feature[encoded(name).decode(errors="replace")], content if isinstance(content, list) else [content], name)
    return bytes(example.SerializeToString())


def _fill(feature: Any, values: list[Any], name: str) -> None:
    """Write values of one kind: an integer or bool is int64 and a decimal float, so ``2`` is no value for a float feature, as in the original."""
    kind = ""
    found: list[Any] = []
    for value in values:
        its = _kind(value, name)
        if its != (kind or its):
            raise invalid(f"Unexpected element type in feature: {name} expecting type: {kind}")
        kind = its
        if kind == _BYTES:
            found.append(encoded(value) if isinstance(value, str) else decoded(value))
        elif kind == _INT64 and value >= 2**63:
            raise invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        else:
            found.append(int(value) if kind == _INT64 else value)
    if kind:
        getattr(feature, f"{kind}_list").value.extend(found)


def _kind(value: Any, name: str) -> str:
    if isinstance(value, str) or is_base64(value):
        return _BYTES
    if isinstance(value, float):
        return _FLOAT
    if isinstance(value, int):
        return _INT64
    raise invalid(f"Feature: {name} has element with unexpected JSON type: {type_of(value)}")
