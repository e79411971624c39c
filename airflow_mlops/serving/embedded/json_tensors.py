"""JSON values to tensors and back, by the rules of TensorFlow Serving's REST interface (util/json_tensor.cc, g3doc/api_rest.md)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from airflow_mlops.serving.embedded.refusal import invalid

MAX_RANK = 32
Array = np.ndarray[Any, Any]


def parse(body: bytes) -> dict[str, Any]:
    """Return the JSON object at the start of `body`; what follows it is ignored, as the original does."""
    try:
        document, _ = json.JSONDecoder().raw_decode(body.decode().lstrip(" \t\r\n"))
    except UnicodeDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid encoding in string. at offset: {error.start}") from error
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg if body else 'The document is empty'} at offset: {error.pos}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of more than 4300 digits
        raise invalid(f"JSON Parse error: {error}") from error
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_show(document)} Is not object")
    return document


def inputs_of(document: Mapping[str, Any], types: Mapping[str, np.dtype[Any]]) -> tuple[dict[str, Array], bool]:
    """Return (tensors by input name, whether they came as rows); `types` are the signature's inputs."""
    keys = {"instances", "inputs"} & document.keys()
    if not keys:
        raise invalid("Missing 'inputs' or 'instances' key")
    if len(keys) > 1:
        raise invalid("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    if not types:
        raise invalid("Failed to get input map for signature: it has no inputs")
    if "inputs" in keys:
        return _columns(document["inputs"], types), False
    instances = document["instances"]
    if not isinstance(instances, list):
        raise invalid("Excepting 'instances' to be an list/array")  # sic
    if not instances:
        raise invalid("No values in 'instances' array")
    return _rows(instances, types), True


def answer(outputs: Mapping[str, Array], *, as_rows: bool) -> dict[str, Any]:
    """Return ``{"predictions": [...]}`` or ``{"outputs": ...}``: objects by output name when there is more than one."""
    if not as_rows:
        columns = {name: _values(name, array) for name, array in outputs.items()}
        return {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}
    sizes = {name: array.shape[0] if array.ndim else None for name, array in outputs.items()}
    for name, size in sizes.items():
        if size is None:
            raise invalid(f"Tensor name: {name} has no shape information")
    if len(set(sizes.values())) > 1:
        raise invalid(f"Tensors have inconsistent batch sizes: {sizes}; use the column format ('inputs')")
    columns = {name: _values(name, array) for name, array in outputs.items()}
    if len(columns) == 1:
        return {"predictions": next(iter(columns.values()))}
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def _rows(instances: list[Any], types: Mapping[str, np.dtype[Any]]) -> dict[str, Array]:
    as_objects = _is_object(instances[0])
    if not as_objects and len(types) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per tensorinfo_map "
            f"(inputs: {', '.join(sorted(types))})"
        )
    for number, item in enumerate(instances):
        if _is_object(item) != as_objects:
            wanted, got = ("object", "list") if as_objects else ("value/list", "object")
            raise invalid(f"Expecting {wanted} but got {got} at item {number} of input list")
        if as_objects and item.keys() != types.keys():
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: {_show(item)} keys must be equal to: "
                + ",".join(sorted(types))
            )
    if as_objects:
        return {name: _tensor([item[name] for item in instances], name, dtype) for name, dtype in types.items()}
    (name, dtype), *_ = types.items()
    return {name: _tensor(instances, name, dtype)}


def _columns(inputs: Any, types: Mapping[str, np.dtype[Any]]) -> dict[str, Array]:
    if not _is_object(inputs):
        if len(types) > 1:
            raise invalid("inputs is a plain value/list, but expecting an object as multiple input tensors required as per tensorinfo_map")
        (name, dtype), *_ = types.items()
        return {name: _tensor(inputs, name, dtype)}
    for name in types:
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: _tensor(inputs[name], name, dtype) for name, dtype in types.items()}


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _tensor(value: Any, name: str, dtype: np.dtype[Any]) -> Array:
    """Return a JSON value or nested list as one dense tensor."""
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    if len(shape) > MAX_RANK:
        raise invalid(f"Input {name!r} is nested {len(shape)} deep; at most {MAX_RANK} is possible")
    leaves = [_scalar(leaf, name, dtype) for leaf in _leaves(value, tuple(shape), 0)]
    try:
        return np.array(leaves, dtype).reshape(shape)
    except OverflowError as error:
        raise invalid(f"Input {name!r} holds a number out of range for {dtype}: {error}") from error


def _leaves(value: Any, shape: tuple[int, ...], level: int) -> Iterator[Any]:
    if level == len(shape):
        if isinstance(value, list):
            raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
        yield value
        return
    if not isinstance(value, list):
        raise invalid(f"JSON Value: {_show(value)} found at incorrect level: {level + 1} in the JSON DOM. Expected at level: {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}")
    for item in value:
        yield from _leaves(item, shape, level + 1)


def _scalar(value: Any, name: str, dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "O" and isinstance(value, str):
        return value.encode()
    if dtype.kind == "O" and _is_base64(value):
        return _decode(value["b64"])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype in (np.float32, np.float64) and number:
        return _as_float(value, name)
    if dtype.kind in "iu" and number and isinstance(value, int):
        return value
    if dtype.kind == "b" and isinstance(value, bool):
        return value
    raise invalid(f"JSON Value: {_show(value)} of input {name!r} is not of expected type: {'string' if dtype.kind == 'O' else dtype}")


def _as_float(value: float, name: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise invalid(f"Input {name!r} holds an integer that is too large for a float") from error


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"Unable to base64 decode: {error}") from error


def _values(name: str, array: Array) -> Any:
    """Return an output as JSON values; `astype(str)` gives the shortest digits that mean the same float32."""
    if array.dtype.kind == "O":
        return _strings(array.tolist(), as_base64=name.endswith("_bytes"))
    if array.dtype == np.float32:
        return array.astype(str).astype(np.float64).tolist()
    if array.dtype.kind in "iub" or array.dtype == np.float64:
        return array.tolist()
    raise invalid(f"Output {name!r} is of type {array.dtype}, for which JSON has no form; ask by gRPC")


def _strings(value: Any, *, as_base64: bool) -> Any:
    if isinstance(value, list):
        return [_strings(item, as_base64=as_base64) for item in value]
    return {"b64": base64.b64encode(value).decode()} if as_base64 else value.decode(errors="replace")


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:100] + "..."
