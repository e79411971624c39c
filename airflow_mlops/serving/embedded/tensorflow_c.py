"""TensorFlow's C API (``tensorflow/c/c_api.h``) by ctypes: a SavedModel as a session, fed and fetched with NumPy arrays.

``import tensorflow`` takes 4-13 s, 290 MB of its own and three threads, all for Python that serving does not need. Opening the shared library
that it wraps takes 0.4 s, 40 MB and no thread, so that a process can be forked from one that has it open. `TF_LoadSessionFromSavedModel`
is what TensorFlow Serving itself calls below: the same models load, of TF1 and TF2, and feeds are not held to the signature's static shape.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from airflow_mlops.exceptions import SpecError
from airflow_mlops.serving.tensors import CODES, DT_STRING, DTYPES, Array

_STRING_SIZE = 24  # sizeof(TF_TString), part of the C ABI (tensorflow/c/tf_tensor.h)


class _Output(ctypes.Structure):
    """`TF_Output`."""

    _fields_ = [("oper", c_void_p), ("index", c_int)]


class _Buffer(ctypes.Structure):
    """`TF_Buffer`."""

    _fields_ = [("data", c_void_p), ("length", c_size_t), ("deallocator", c_void_p)]


_LONG = {  # these may take long: they run without the interpreter's lock
    "TF_LoadSessionFromSavedModel": (
        c_void_p,
        [c_void_p, c_void_p, c_char_p, POINTER(c_char_p), c_int, c_void_p, POINTER(_Buffer), c_void_p],
    ),
    "TF_SessionRun": (None, [c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_void_p, c_void_p, c_int, c_void_p, c_int, c_void_p, c_void_p]),
    "TF_NewSession": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "TF_LoadLibrary": (c_void_p, [c_char_p, c_void_p]),
}
_SHORT = {  # giving up the lock for these would let another thread in between each two of them
    "TF_NewStatus": (c_void_p, []),
    "TF_DeleteStatus": (None, [c_void_p]),
    "TF_GetCode": (c_int, [c_void_p]),
    "TF_Message": (c_char_p, [c_void_p]),
    "TF_NewGraph": (c_void_p, []),
    "TF_NewSessionOptions": (c_void_p, []),
    "TF_SetConfig": (None, [c_void_p, c_char_p, c_size_t, c_void_p]),
    "TF_NewBuffer": (POINTER(_Buffer), []),
    "TF_DeleteBuffer": (None, [POINTER(_Buffer)]),
    "TF_GetAllOpList": (POINTER(_Buffer), []),
    "TF_GraphOperationByName": (c_void_p, [c_void_p, c_char_p]),
    "TF_AllocateTensor": (c_void_p, [c_int, c_void_p, c_int, c_size_t]),
    "TF_DeleteTensor": (None, [c_void_p]),
    "TF_TensorData": (c_void_p, [c_void_p]),
    "TF_TensorByteSize": (c_size_t, [c_void_p]),
    "TF_TensorType": (c_int, [c_void_p]),
    "TF_NumDims": (c_int, [c_void_p]),
    "TF_Dim": (c_int64, [c_void_p, c_int]),
    "TF_StringInit": (None, [c_void_p]),
    "TF_StringCopy": (None, [c_void_p, c_char_p, c_size_t]),
    "TF_StringDealloc": (None, [c_void_p]),
    "TF_StringGetDataPointer": (c_void_p, [c_void_p]),
    "TF_StringGetSize": (c_size_t, [c_void_p]),
}


class TensorFlowError(Exception):
    """TensorFlow refused: `code` is the number of a gRPC status code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message

    def __str__(self) -> str:
        return self.message


class Endpoint(NamedTuple):
    """One output of one operation in a session's graph."""

    operation: int
    output: int


@functools.cache
def library() -> Any:
    """Return the C API as a namespace of functions; raise `SpecError` if TensorFlow is not installed."""
    found = importlib.util.find_spec("tensorflow")
    if found is None or not found.submodule_search_locations:
        raise SpecError("TensorFlow is not installed, and the model server needs its library. Install airflow-mlops[serving].")
    home = Path(found.submodule_search_locations[0])
    files = [home / "libtensorflow_cc.so.2", home / "libtensorflow_framework.so.2"]  # the second holds a few of the functions
    functions: dict[str, Any] = {}
    for table, kind in ((_LONG, ctypes.CDLL), (_SHORT, ctypes.PyDLL)):
        opened = [kind(str(file)) for file in files]
        for name, (result, arguments) in table.items():
            function = next(getattr(one, name) for one in opened if hasattr(one, name))
            function.restype, function.argtypes = result, arguments
            functions[name.removeprefix("TF_")] = function
    return type("Library", (), {name: staticmethod(function) for name, function in functions.items()})


class _Status:
    """A `TF_Status`: `check` raises what it holds."""

    def __init__(self) -> None:
        self.handle = library().NewStatus()

    def __enter__(self) -> _Status:
        return self

    def __exit__(self, *_: object) -> None:
        library().DeleteStatus(self.handle)

    def check(self) -> None:
        code = library().GetCode(self.handle)
        if code:
            raise TensorFlowError(code, library().Message(self.handle).decode(errors="replace"))


def register() -> None:
    """Let TensorFlow build its table of operations, 20 ms of work that it does at their first use; starts no thread."""
    library().DeleteBuffer(library().GetAllOpList())


def load_library(path: str) -> None:
    """Register the operations of a shared library; raise `TensorFlowError`."""
    with _Status() as status:
        library().LoadLibrary(os.fsencode(path), status.handle)
        status.check()


def start_threads(config: bytes) -> None:
    """Start TensorFlow's thread pools in this thread, whose priority they keep; `config` is a serialized `ConfigProto`."""
    api = library()
    with _Status() as status:
        api.NewSession(api.NewGraph(), _options(config, status), status.handle)
        status.check()


def _options(config: bytes, status: _Status) -> Any:
    options = library().NewSessionOptions()
    library().SetConfig(options, config, len(config), status.handle)
    status.check()
    return options


class Session:
    """The SavedModel in `path` whose graph has exactly `tags`; lives as long as its process. Raises `TensorFlowError`.

    `meta_graph` is the serialized `MetaGraphDef`. Calls from several threads at once are allowed.
    """

    def __init__(self, path: Path, tags: Sequence[str], config: bytes) -> None:
        api = library()
        self._graph = api.NewGraph()
        buffer = api.NewBuffer()
        names = (c_char_p * len(tags))(*(tag.encode() for tag in tags))
        try:
            with _Status() as status:
                options = _options(config, status)
                self._session = api.LoadSessionFromSavedModel(options, None, os.fsencode(path), names, len(tags), self._graph, buffer, status.handle)
                status.check()
            self.meta_graph: bytes = ctypes.string_at(buffer.contents.data, buffer.contents.length)
        finally:
            api.DeleteBuffer(buffer)

    def endpoint(self, name: str) -> Endpoint:
        """Return what a signature calls ``operation:index``; raise `TensorFlowError` if the graph has no such operation."""
        operation, _, index = name.partition(":")
        handle = library().GraphOperationByName(self._graph, operation.encode())
        if not handle:
            raise TensorFlowError(5, f"The graph has no operation {operation!r}")
        return Endpoint(handle, int(index or 0))

    def run(self, feeds: Sequence[tuple[Endpoint, Array]], fetches: Sequence[Endpoint]) -> list[Array]:
        """Return the values of `fetches`; raise `TensorFlowError` with the code and words of the operation that failed."""
        api = library()
        tensors = (c_void_p * max(1, len(feeds)))()
        results = (c_void_p * max(1, len(fetches)))()
        try:
            for number, (_, array) in enumerate(feeds):
                tensors[number] = _new_tensor(array)
            inputs, outputs = _outputs([endpoint for endpoint, _ in feeds]), _outputs(fetches)
            with _Status() as status:
                api.SessionRun(self._session, None, inputs, tensors, len(feeds), outputs, results, len(fetches), None, 0, None, status.handle)
                status.check()
            return [_array(result) for result in results[: len(fetches)] if result is not None]
        finally:
            for result in filter(None, results):
                api.DeleteTensor(result)
            for (_, array), tensor in zip(feeds, tensors, strict=False):
                if tensor:
                    _delete_fed(tensor, array)


def _outputs(endpoints: Sequence[Endpoint]) -> Any:
    return (_Output * max(1, len(endpoints)))(*(_Output(*endpoint) for endpoint in endpoints))


def _new_tensor(array: Array) -> int:
    api, code = library(), CODES[array.dtype]
    dims = (c_int64 * max(1, array.ndim))(*array.shape)
    size = array.size * _STRING_SIZE if code == DT_STRING else array.nbytes
    tensor: int = api.AllocateTensor(code, dims, array.ndim, size)
    data = api.TensorData(tensor)
    if code != DT_STRING:
        if size:
            ctypes.memmove(data, np.ascontiguousarray(array).ctypes.data, size)
        return tensor
    for number, value in enumerate(array.ravel().tolist()):
        api.StringInit(data + number * _STRING_SIZE)
        api.StringCopy(data + number * _STRING_SIZE, value, len(value))
    return tensor


def _delete_fed(tensor: int, array: Array) -> None:
    api = library()
    if array.dtype.kind == "O":
        data = api.TensorData(tensor)
        for number in range(array.size):
            api.StringDealloc(data + number * _STRING_SIZE)
    api.DeleteTensor(tensor)


def _array(tensor: int) -> Array:
    """Return a copy of a fetched tensor."""
    api = library()
    code = api.TensorType(tensor)
    if code not in DTYPES:
        raise TensorFlowError(12, f"An output is of type {code}, which cannot be sent")
    shape = [api.Dim(tensor, number) for number in range(api.NumDims(tensor))]
    size = api.TensorByteSize(tensor)
    if code != DT_STRING:
        content = ctypes.string_at(api.TensorData(tensor), size) if size else b""
        return np.frombuffer(content, DTYPES[code]).reshape(shape)
    data = api.TensorData(tensor)
    places = range(data, data + size, _STRING_SIZE) if size else ()
    strings: Array = np.empty(len(places), object)
    strings[:] = [ctypes.string_at(api.StringGetDataPointer(place), api.StringGetSize(place)) for place in places]
    return strings.reshape(shape)
