"""Tensors to JSON, by the rules of TensorFlow Serving's REST interface (util/json_tensor.cc, g3doc/api_rest.md).

Floats have the shortest digits that mean the same; NaN and infinity are written bare, which is no JSON but what the original does.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import orjson

from airflow_mlops.serving.embedded.refusal import invalid
from airflow_mlops.serving.tensors import Array, short_name

_PIECE = 1 << 17  # numbers that are written at once


def predictions(outputs: Mapping[str, Array], *, as_rows: bool) -> bytes:
    """Return ``{"predictions": [...]}`` or ``{"outputs": ...}`` as JSON: objects by output name when there is more than one."""
    if as_rows:
        _check_rows(outputs)
    finite = _finite(outputs.values())
    size = sum(array.size for array in outputs.values())
    if size > _PIECE and (as_rows or (len(outputs) == 1 and next(iter(outputs.values())).ndim)):
        key = b"predictions" if as_rows else b"outputs"
        return b'{"%s":[' % key + b",".join(_pieces(outputs, size, finite=finite)) + b"]}"
    return _whole(outputs, finite=finite, as_rows=as_rows)


def _pieces(outputs: Mapping[str, Array], size: int, *, finite: bool) -> Iterator[bytes]:
    """Yield the rows of large outputs piece by piece, so that other threads have their turns."""
    count = next(iter(outputs.values())).shape[0]
    step = max(1, count * _PIECE // size)
    for start in range(0, count, step):
        rows = {name: array[start : start + step] for name, array in outputs.items()}
        text = _whole(rows, finite=finite, as_rows=True)
        yield text[text.index(b"[") + 1 : -2]


def _whole(outputs: Mapping[str, Array], *, finite: bool, as_rows: bool) -> bytes:
    columns = {name: _values(name, array, finite=finite) for name, array in outputs.items()}
    only = next(iter(columns.values()))
    if not as_rows:
        return dump({"outputs": columns if len(columns) > 1 else only}, finite=finite)
    if len(columns) == 1:
        return dump({"predictions": only}, finite=finite)
    return dump({"predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}, finite=finite)


def results(values: Any, numbers: Array) -> bytes:
    """Return ``{"results": values}``, the answer of classify and regress; `numbers` are the scores or values in it."""
    return dump({"results": values}, finite=_finite([numbers]))


def shortest(array: Array) -> Any:
    """Return an array as nested lists of floats that print with the fewest digits that still mean the same float32."""
    return (array.astype(str).astype(np.float64) if array.dtype == np.float32 else array).tolist()


def dump(data: Any, *, finite: bool) -> bytes:
    """Return `data` as JSON; arrays may be in it only if everything is finite."""
    if not finite:
        return json.dumps(data).encode()
    return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)


def _finite(arrays: Iterable[Array]) -> bool:
    return all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")


def _check_rows(outputs: Mapping[str, Array]) -> None:
    expected = None
    for name, array in outputs.items():
        if not array.ndim:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if array.shape[0] != (array.shape[0] if expected is None else expected):
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {array.shape[0]} expecting: {expected}")
        expected = array.shape[0]


def _values(name: str, array: Array, *, finite: bool) -> Any:
    if array.dtype.kind == "O":
        return _strings(array.tolist(), as_base64=name.endswith("_bytes"))
    if (array.dtype.kind in "iub" and array.dtype != np.uint16) or array.dtype in (np.float32, np.float64) or not array.size:
        return np.ascontiguousarray(array) if finite and array.ndim else shortest(array)
    raise invalid(f"Failed to write JSON value for tensor type: {short_name(array.dtype)}: output {name!r}; ask by gRPC")


def _strings(value: Any, *, as_base64: bool) -> Any:
    if isinstance(value, list):
        return [_strings(item, as_base64=as_base64) for item in value]
    return {"b64": base64.b64encode(value).decode()} if as_base64 else value.decode(errors="replace")
