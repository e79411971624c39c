"""JSON values to tensors, by the rules of TensorFlow Serving's REST interface (util/json_tensor.cc, g3doc/api_rest.md).

Errors have its words, because clients look for them. The quick way takes what is right; what it does not take, the careful one reads value by
value, in the order in which the original does, and so finds the same error first.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import numpy as np

from airflow_mlops.serving.embedded.json_text import Document, encoded, show, type_of, wrapped
from airflow_mlops.serving.embedded.refusal import Refusal, invalid
from airflow_mlops.serving.tensors import Array, short_name

MAX_RANK = 32
Types = Mapping[str, np.dtype[Any]]
Shape = tuple[int, ...]
_FLOATS = (np.float32, np.float64)
_INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32, np.uint64)  # not uint16, of which the original knows nothing


def signature_name(document: Document) -> str:
    """Return the signature that a request asks for, by default the empty text."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(f"JSON Value: {show(document)} not formatted correctly. 'signature_name' key must be a string value.")
    return name


def inputs_of(document: Document, types: Types, *, first: int = 0) -> tuple[dict[str, Array], bool]:
    """Return (tensors by input name, whether they came as rows); `types` are the signature's inputs, `first` is the number of the first row."""
    if not types:
        raise invalid(f"Failed to get input map for signature: {signature_name(document) or 'DEFAULT'}")
    keys = {"instances", "inputs"} & document.keys()
    if not keys:
        raise invalid("Missing 'inputs' or 'instances' key")
    if len(keys) > 1:
        words = "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        raise invalid(f"JSON Value: {show(document)} {words}")
    if "inputs" in keys:
        return {name: _tensor(value, types[name]) for name, value in _columns(document["inputs"], types).items()}, False
    instances = document["instances"]
    if not isinstance(instances, list):
        raise invalid(f"JSON Value: {show(document)} Expecting 'instances' to be an list/array")
    if not instances:
        raise invalid(f"JSON Value: {show(document)} No values in 'instances' array")
    return _rows(instances, types, first), True


def _rows(instances: list[Any], types: Types, first: int) -> dict[str, Array]:
    if not isinstance(instances[0], dict) and len(types) > 1:
        raise invalid("instances is a plain list, but expecting list of objects as multiple input tensors required as per tensorinfo_map")
    as_objects = _is_object(instances[0])
    try:
        if not as_objects and not any(map(_is_object, instances)):
            name = next(iter(types))
            return {name: _tensor(instances, types[name])}
        if as_objects and all(_is_object(item) and item.keys() == types.keys() for item in instances):
            return {name: _tensor([item[name] for item in instances], dtype) for name, dtype in types.items()}
    except Refusal:  # found again, in the right order and with its place
        return _careful_rows(instances, types, first, as_objects=as_objects)
    return _careful_rows(instances, types, first, as_objects=as_objects)


def _careful_rows(instances: list[Any], types: Types, first: int, *, as_objects: bool) -> dict[str, Array]:
    leaves: dict[str, list[Any]] = {}
    shapes: dict[str, Shape] = {}
    for number, item in enumerate(instances, first):
        if _is_object(item) != as_objects:
            wanted, got = ("object", "list") if as_objects else ("value/list", "object")
            raise invalid(f"Expecting {wanted} but got {got} at item {number} of input list")
        for name, value in item.items() if as_objects else [(next(iter(types)), item)]:
            try:
                leaves.setdefault(name, []).extend(_item(value, name, types, shapes))
            except Refusal as error:
                raise wrapped(error, f"{number} key: {name}" if as_objects else str(number)) from error
        if as_objects and item.keys() != types.keys():
            where = f"Failed to process element: {number} of 'instances' list. JSON object: {show(item)}"
            raise invalid(f"{where} keys must be equal to: {','.join(sorted(types))}")
    return {name: _array(found, (len(instances), *shapes[name]), types[name]) for name, found in leaves.items()}


def _item(value: Any, name: str, types: Types, shapes: dict[str, Shape]) -> list[Any]:
    """Return the values of one input of one row, which must be of the size and shape of those before."""
    if name not in types:
        raise invalid(f"JSON object: does not have named input: {name}")
    found, shape = _read(value, types[name])
    first = shapes.setdefault(name, shape)
    if shape != first:
        raise invalid(difference(first, shape))
    return found


def difference(first: Shape, shape: Shape) -> str:
    """Return in what a row's shape differs from the first one's: in its size, or else in how that is divided."""
    expected, got = (int(np.prod(one, dtype=object)) for one in (first, shape))
    if got != expected:
        return f"Expecting tensor size: {expected} but got: {got}"
    shown = (f"[{','.join(map(str, one))}]" for one in (first, shape))
    return f"Expecting shape {' but got: '.join(shown)}"


def _columns(inputs: Any, types: Types) -> dict[str, Any]:
    if not _is_object(inputs):
        if len(types) > 1:
            raise invalid("inputs is a plain value/list, but expecting an object as multiple input tensors required as per tensorinfo_map")
        return {next(iter(types)): inputs}
    for name in types:
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: inputs[name] for name in types}


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def is_base64(value: Any) -> bool:
    """Return whether a JSON value stands for bytes: an object with the one key ``b64``."""
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _tensor(value: Any, dtype: np.dtype[Any]) -> Array:
    """Return a JSON value or nested list as one dense tensor."""
    quick = _numbers(value, dtype) if dtype in (*_FLOATS, *_INTEGERS) else None
    return _checked(value, dtype) if quick is None else quick


def plain_numbers(value: list[Any], text: bytes, dtype: np.dtype[Any]) -> Array | None:
    """Return a list of numbers of one shape, None for anything that needs a closer look; looking at its `text` is faster than at each value."""
    strange = (b'"', b"t", b"f", b"n", b"N", b"I", b"{") + ((b".", b"e", b"E") if dtype.kind != "f" else ())
    if dtype not in (*_FLOATS, *_INTEGERS) or any(sign in text for sign in strange):
        return None
    try:
        array: Array = np.array(value, np.float64 if dtype.kind == "f" else _limits(dtype).dtype)
    except (ValueError, OverflowError):
        return None
    return _narrowed(array, dtype) if array.ndim <= MAX_RANK else None


def _numbers(value: Any, dtype: np.dtype[Any]) -> Array | None:
    """Return plain numbers of one shape, None for anything that needs a closer look or a good reason.

    As objects first: left to itself, NumPy takes true for 1 and makes room for the longest string in every place.
    """
    try:
        array: Array = np.array(value, object)
        kinds = set(map(type, array.ravel().tolist()))
        if array.ndim > MAX_RANK or not kinds <= ({int, float} if dtype.kind == "f" else {int}):
            return None
        return _narrowed(array.astype(np.float64 if dtype.kind == "f" else _limits(dtype).dtype), dtype)
    except (ValueError, OverflowError):  # lists of different lengths, numbers of more than 64 bits
        return None


def _narrowed(wide: Array, dtype: np.dtype[Any]) -> Array | None:
    """Return numbers as they were read, by way of a double or of what `_limits` names, as those of the type; None if it cannot hold one."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # a number too large for float32 is infinity, as in the original
            return wide.astype(dtype)
    limits = _limits(dtype)
    fits = not wide.size or (int(wide.min()) >= limits.min and int(wide.max()) <= limits.max)
    return wide.astype(dtype) if fits else None


def _limits(dtype: np.dtype[Any]) -> np.iinfo[Any]:
    """Return which integers a type takes: the small ones what int32 takes, cut to what they hold, as in the original."""
    return np.iinfo(np.int32 if dtype in (np.int8, np.int16, np.uint8) else dtype)


def _checked(value: Any, dtype: np.dtype[Any]) -> Array:
    return _array(*_read(value, dtype), dtype)


def _array(leaves: list[Any], shape: Shape, dtype: np.dtype[Any]) -> Array:
    if dtype in _INTEGERS:
        return np.array(leaves, _limits(dtype).dtype).astype(dtype).reshape(shape)
    with np.errstate(over="ignore"):
        return np.array(leaves, dtype).reshape(shape)


def _read(value: Any, dtype: np.dtype[Any]) -> tuple[list[Any], Shape]:
    """Return the values of one tensor, flat, and its shape, which is that of the first."""
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    if len(shape) > MAX_RANK:
        raise invalid(f"JSON Value: {show(value)} is nested {len(shape)} deep; at most {MAX_RANK} is possible")
    return [_scalar(leaf, dtype) for leaf in _leaves(value, tuple(shape), 0)], tuple(shape)


def _leaves(value: Any, shape: Shape, level: int) -> Iterator[Any]:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(f"JSON Value: {show(value)} found at incorrect level: {level + 1} in the JSON DOM. Expected at level: {len(shape)}")
        yield value
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}")
    for item in value:
        yield from _leaves(item, shape, level + 1)


def _scalar(value: Any, dtype: np.dtype[Any]) -> Any:
    if isinstance(value, dict) and dtype.kind == "O":
        return decoded(value)
    fits = False
    if dtype.kind == "O":
        fits = isinstance(value, str)
    elif dtype in _FLOATS:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    elif dtype in _INTEGERS:
        fits = type(value) is int and _limits(dtype).min <= value <= _limits(dtype).max
    elif dtype.kind == "b":
        fits = isinstance(value, bool)
    elif not isinstance(value, dict):
        raise Refusal(grpc.StatusCode.UNIMPLEMENTED, f"Conversion of JSON Value: {show(value)} to type: {short_name(dtype)}")
    if not fits:
        raise invalid(f"JSON Value: {show(value)} Type: {type_of(value)} is not of expected type: {short_name(dtype)}")
    return encoded(value) if dtype.kind == "O" else float(value) if dtype.kind == "f" else value


def decoded(value: dict[str, Any]) -> bytes:
    """Return the bytes of a base64 object; as in the original, white space is ignored and padding may be left out."""
    if not is_base64(value):
        raise invalid(f"JSON Value: {show(value)} not formatted correctly for base64 data")
    text = "".join(value["b64"].split())
    core = text.rstrip("=")
    missing = -len(core) % 4
    try:
        if missing == 3 or len(text) - len(core) not in (0, missing):
            raise ValueError("Incorrect padding")
        return base64.b64decode(core + "=" * missing, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"Unable to base64 decode: {error}") from error
