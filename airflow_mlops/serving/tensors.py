"""TensorFlow Serving's tensors as NumPy arrays and back, without TensorFlow: for the client, the publisher and the model server alike."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from airflow_mlops.exceptions import SpecError
from airflow_mlops.serving import protos

Array = np.ndarray[Any, Any]
_TYPES = protos.types_pb2
DT_STRING: int = _TYPES.DT_STRING
# DataType -> (NumPy type, the proto's field of values); strings are arrays of bytes objects.
_KNOWN: dict[int, tuple[Any, str]] = {
    _TYPES.DT_FLOAT: (np.float32, "float_val"),
    _TYPES.DT_DOUBLE: (np.float64, "double_val"),
    _TYPES.DT_HALF: (np.float16, "half_val"),
    _TYPES.DT_BFLOAT16: (ml_dtypes.bfloat16, "half_val"),
    _TYPES.DT_INT8: (np.int8, "int_val"),
    _TYPES.DT_INT16: (np.int16, "int_val"),
    _TYPES.DT_INT32: (np.int32, "int_val"),
    _TYPES.DT_INT64: (np.int64, "int64_val"),
    _TYPES.DT_UINT8: (np.uint8, "int_val"),
    _TYPES.DT_UINT16: (np.uint16, "int_val"),
    _TYPES.DT_UINT32: (np.uint32, "uint32_val"),
    _TYPES.DT_UINT64: (np.uint64, "uint64_val"),
    _TYPES.DT_BOOL: (np.bool_, "bool_val"),
    _TYPES.DT_COMPLEX64: (np.complex64, "scomplex_val"),
    _TYPES.DT_COMPLEX128: (np.complex128, "dcomplex_val"),
    _TYPES.DT_STRING: (np.object_, "string_val"),
}
DTYPES: dict[int, np.dtype[Any]] = {code: np.dtype(kind) for code, (kind, _) in _KNOWN.items()}
CODES = {dtype: code for code, dtype in DTYPES.items()}
_SHORT = {"float16": "half", "float32": "float", "float64": "double", "object": "string"}
# A few bytes may stand for a large tensor of one value; a request must not make the server allocate without limit.
_MAX_REPEATED = 16 << 20  # bytes


def type_name(code: int) -> str:
    """Return ``DT_FLOAT`` and the like; a number that TensorFlow does not know stays one."""
    return str(_TYPES.DataType.Name(code)) if code in _TYPES.DataType.values() else str(code)


def short_name(dtype: np.dtype[Any]) -> str:
    """Return what TensorFlow calls a type in its errors: ``float``, ``double``, ``half``, ``string``, and NumPy's name for the others."""
    return _SHORT.get(dtype.name, dtype.name)


def to_array(tensor: Any) -> Array:
    """Return a `TensorProto` as an array of its shape; strings become bytes objects.

    As TensorFlow reads it: fewer values than the shape holds repeat the last one, none at all mean zeros. Raises `ValueError` if type or
    shape are unknown or the values do not fit the shape.
    """
    if tensor.dtype not in _KNOWN:
        raise ValueError(f"its type {type_name(tensor.dtype)} is not supported")
    shape = _shape(tensor)
    size, dtype = math.prod(shape), DTYPES[tensor.dtype]
    if tensor.tensor_content:
        if tensor.dtype == DT_STRING:
            return _strings(tensor.tensor_content, size).reshape(shape)
        if len(tensor.tensor_content) != size * dtype.itemsize:
            raise ValueError(
                f"its tensor_content has {len(tensor.tensor_content)} bytes, its shape {list(shape)} of {dtype} needs {size * dtype.itemsize}"
            )
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    values = _values(tensor, dtype)
    if values.size > size:
        raise ValueError(f"it has {values.size} values, its shape {list(shape)} holds {size}")
    if values.size < size:
        values = _repeated(values, size, dtype)
    return values.reshape(shape)


def to_proto(array: Array, *, as_content: bool = True) -> Any:
    """Return an array (any shape; strings as bytes or str objects) as a `TensorProto`, its values as raw bytes or in the ``*_val`` field.

    Raises `SpecError` if TensorFlow has no such type.
    """
    if array.dtype.kind in "US":
        array = array.astype(object)
    code = CODES.get(array.dtype)
    if code is None:
        raise SpecError(f"An array of {array.dtype} cannot be sent to a model server. Convert it to one of {sorted(map(str, CODES))}.")
    tensor = protos.tensor_pb2.TensorProto(dtype=code)
    tensor.tensor_shape.SetInParent()
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if code == DT_STRING:
        tensor.string_val.extend(value.encode() if isinstance(value, str) else value for value in array.ravel().tolist())
    elif as_content:
        tensor.tensor_content = np.ascontiguousarray(array).tobytes()
    else:
        getattr(tensor, _KNOWN[code][1]).extend(_plain(array.ravel()))
    return tensor


def _shape(tensor: Any) -> tuple[int, ...]:
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if tensor.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError(f"its shape {list(shape)} is not fully defined")
    if math.prod(shape) >= 2**63:
        raise ValueError(f"its shape {list(shape)} holds too many values")
    return shape


def _values(tensor: Any, dtype: np.dtype[Any]) -> Array:
    field = _KNOWN[tensor.dtype][1]
    values = getattr(tensor, field)
    if tensor.dtype == DT_STRING:
        array: Array = np.empty(len(values), object)
        array[:] = list(values)
        return array
    if dtype.kind == "c":
        return np.array(values, np.float32 if dtype == np.complex64 else np.float64).view(dtype)
    if field == "half_val":
        return np.array(values, np.int32).astype(np.uint16).view(dtype)
    # The fields are wider than the small integer types: what does not fit is cut, as TensorFlow does.
    return np.array(values, np.int32).astype(dtype) if field == "int_val" else np.array(values, dtype)


def _strings(content: bytes, size: int) -> Array:
    """Return `size` strings as TensorFlow packs them: their lengths as varints, then one string behind the other."""
    lengths: list[int] = []
    place = 0
    while len(lengths) < size:
        value, shift, byte = 0, 0, 0x80
        while byte & 0x80:
            if place == len(content) or shift > 28:
                raise ValueError(f"its tensor_content holds {len(lengths)} lengths of strings, its shape {size} strings")
            byte = content[place]
            value, shift, place = value | (byte & 0x7F) << shift, shift + 7, place + 1
        lengths.append(value)
    if sum(lengths) != len(content) - place:
        raise ValueError(f"its tensor_content has {len(content) - place} bytes of strings, their lengths need {sum(lengths)}")
    array: Array = np.empty(size, object)
    for number, length in enumerate(lengths):
        array[number], place = content[place : place + length], place + length
    return array


def _repeated(values: Array, size: int, dtype: np.dtype[Any]) -> Array:
    if size * dtype.itemsize > _MAX_REPEATED:
        raise ValueError(f"it has {values.size} values, its shape holds {size}")
    last = values[-1] if values.size else (b"" if dtype.kind == "O" else 0)
    whole = np.full(size, last, dtype)
    whole[: values.size] = values
    return whole


def _plain(array: Array) -> list[Any]:
    """Return what the ``*_val`` field of the array's type takes."""
    if array.dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        return list(array.view(np.uint16).tolist())
    if array.dtype.kind == "c":
        return list(array.view(np.float32 if array.dtype == np.complex64 else np.float64).tolist())
    return list(array.tolist())
