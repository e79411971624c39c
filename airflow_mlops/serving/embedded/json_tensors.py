"""JSON values to tensors, by the rules of TensorFlow Serving's REST interface (util/json_tensor.cc, g3doc/api_rest.md)."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson

from airflow_mlops.serving.embedded.refusal import invalid
from airflow_mlops.serving.tensors import Array

MAX_RANK = 32
Types = Mapping[str, np.dtype[Any]]
Document = dict[str, Any]  # a request's JSON object


def parse(body: bytes) -> Document:
    """Return the JSON object at the start of `body`; what follows it is ignored, as the original does."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:  # NaN, or something behind the object, or really no JSON
        document = _parse_leniently(body)
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {show(document)} Is not object")
    return document


def _parse_leniently(body: bytes) -> Any:
    try:
        return json.JSONDecoder(parse_float=_double).raw_decode(body.decode().lstrip(" \t\r\n"))[0]
    except UnicodeDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid encoding in string. at offset: {error.start}") from error
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg if body else 'The document is empty'} at offset: {error.pos}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of more than 4300 digits
        raise invalid(f"JSON Parse error: {error}") from error


def _double(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # "Infinity" itself is no number to the parser and does not come here
        raise ValueError(f"Number too big to be stored in double: {text[:40]}")
    return number


def signature_name(document: Document) -> str:
    """Return the signature that a request asks for, by default the empty text."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid("'signature_name' key must be a string value.")
    return name


def inputs_of(document: Document, types: Types) -> tuple[dict[str, Array], bool]:
    """Return (tensors by input name, whether they came as rows); `types` are the signature's inputs."""
    keys = {"instances", "inputs"} & document.keys()
    if not keys:
        raise invalid("Missing 'inputs' or 'instances' key")
    if len(keys) > 1:
        raise invalid("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    if not types:
        raise invalid("Failed to get input map for signature: it has no inputs")
    if "inputs" in keys:
        return {name: _tensor(value, name, types[name]) for name, value in _columns(document["inputs"], types).items()}, False
    instances = document["instances"]
    if not isinstance(instances, list):
        raise invalid("Excepting 'instances' to be an list/array")  # sic
    if not instances:
        raise invalid("No values in 'instances' array")
    return {name: _tensor(value, name, types[name]) for name, value in _rows(instances, types).items()}, True


def _rows(instances: list[Any], types: Types) -> dict[str, Any]:
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
                f"Failed to process element: {number} of 'instances' list. JSON object: {show(item)} keys must be equal to: "
                + ",".join(sorted(types))
            )
    if as_objects:
        return {name: [item[name] for item in instances] for name in types}
    return {next(iter(types)): instances}


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


def _tensor(value: Any, name: str, dtype: np.dtype[Any]) -> Array:
    """Return a JSON value or nested list as one dense tensor."""
    quick = _numbers(value, dtype) if dtype.kind in "fiu" else None
    return _checked(value, name, dtype) if quick is None else quick


def _numbers(value: Any, dtype: np.dtype[Any]) -> Array | None:
    """Return plain numbers of one shape, None for anything that needs a closer look or a good reason.

    As objects first: left to itself, NumPy takes true for 1 and makes room for the longest string in every place.
    """
    try:
        array: Array = np.array(value, object)
        kinds = set(map(type, array.ravel().tolist()))
        if array.ndim > MAX_RANK or not kinds <= ({int, float} if dtype.kind == "f" else {int}):
            return None
        if dtype in (np.float32, np.float64):
            with np.errstate(over="ignore"):  # a number too large for float32 is infinity, as in the original
                return array.astype(np.float64).astype(dtype)  # by way of a double, as the original reads numbers
        limits = _limits(dtype)
        wide = array.astype(limits.dtype)
        fits = not wide.size or (int(wide.min()) >= limits.min and int(wide.max()) <= limits.max)
        return wide.astype(dtype) if fits else None
    except (ValueError, OverflowError):  # lists of different lengths, numbers of more than 64 bits, a type of float that JSON has no form for
        return None


def _limits(dtype: np.dtype[Any]) -> np.iinfo[Any]:
    """Return which integers a type takes: the small ones what int32 takes, cut to what they hold, as in the original."""
    return np.iinfo(np.int32 if dtype in (np.int8, np.int16, np.uint8) else dtype)


def _checked(value: Any, name: str, dtype: np.dtype[Any]) -> Array:
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    if len(shape) > MAX_RANK:
        raise invalid(f"Input {name!r} is nested {len(shape)} deep; at most {MAX_RANK} is possible")
    leaves = [_scalar(leaf, name, dtype) for leaf in _leaves(value, tuple(shape), 0)]
    if dtype.kind not in "iu":
        return np.array(leaves, dtype).reshape(shape)
    limits = _limits(dtype)
    for leaf in leaves:
        if not limits.min <= leaf <= limits.max:
            raise invalid(f"Input {name!r} holds a number out of range for {dtype}: {show(leaf)}")
    return np.array(leaves, limits.dtype).astype(dtype).reshape(shape)


def _leaves(value: Any, shape: tuple[int, ...], level: int) -> Iterator[Any]:
    if level == len(shape):
        if isinstance(value, list):
            raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
        yield value
        return
    if not isinstance(value, list):
        raise invalid(f"JSON Value: {show(value)} found at incorrect level: {level + 1} in the JSON DOM. Expected at level: {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}")
    for item in value:
        yield from _leaves(item, shape, level + 1)


def _scalar(value: Any, name: str, dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "O" and isinstance(value, str):
        return encoded(value)
    if dtype.kind == "O" and is_base64(value):
        return decoded(value["b64"])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype in (np.float32, np.float64) and number:
        return _as_float(value, name)
    if dtype.kind in "iu" and number and isinstance(value, int):
        return value
    if dtype.kind == "b" and isinstance(value, bool):
        return value
    raise invalid(f"JSON Value: {show(value)} of input {name!r} is not of expected type: {'string' if dtype.kind == 'O' else dtype}")


def _as_float(value: float, name: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise invalid(f"Input {name!r} holds an integer that is too large for a float") from error


def encoded(text: str) -> bytes:
    """Return a JSON string's bytes."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise invalid(f"A string holds half a surrogate pair, which is no text, at character {error.start}") from error


def decoded(text: str) -> bytes:
    """Return the bytes of a base64 text."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"Unable to base64 decode: {error}") from error


def show(value: Any) -> str:
    """Return a JSON value for an error's words, cut to 100 characters."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "nested too deep to be shown"
    return text if len(text) <= 100 else text[:100] + "..."
