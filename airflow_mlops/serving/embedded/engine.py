"""One loaded SavedModel: named arrays in, named arrays out, by the rules of its signatures."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded.refusal import CODES, Refusal, invalid
from airflow_mlops.serving.embedded.tensorflow_c import Endpoint, Session, TensorFlowError
from airflow_mlops.serving.tensors import DTYPES, Array, type_name

_SHOWN = 10
_VARIABLES = {"VarHandleOp", "VariableV2", "Variable"}
Tensors = Mapping[str, Array]


class Port(NamedTuple):
    """An input or output of a signature: where it is in the graph, its type, and its shape (-1: any size, None: any shape)."""

    endpoint: Endpoint | None
    code: int
    shape: tuple[int, ...] | None


class Signature(NamedTuple):
    """What a signature takes and gives, by name."""

    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]


class Servable:
    """The SavedModel in directory `path`, its graph tagged with exactly `tags`. Raises `TensorFlowError` on one that can not be loaded."""

    def __init__(self, path: Path, tags: Sequence[str], config: bytes) -> None:
        self._session = Session(path, tags, config)
        graph = protos.meta_graph_pb2.MetaGraphDef.FromString(self._session.meta_graph)
        if any(node.op in _VARIABLES for node in graph.graph_def.node) and not (path / "variables" / "variables.index").exists():
            # TensorFlow takes that for a model without variables, and every request to it fails.
            raise TensorFlowError(
                grpc.StatusCode.DATA_LOSS.value[0], f"{path} is half a copy: its graph has variables, and variables.index is missing"
            )
        self.signature_defs: Mapping[str, Any] = dict(graph.signature_def)
        self.signatures = {name: self._signature(definition) for name, definition in self.signature_defs.items()}

    def input_types(self, signature: str) -> dict[str, np.dtype[Any]]:
        """Return the NumPy type of each input of a signature; strings are objects. Raises `Refusal` on a type that is not supported."""
        return {name: _dtype(name, port) for name, port in self.signatures[signature].inputs.items()}

    def run(self, signature: str, inputs: Tensors, wanted: Collection[str]) -> dict[str, Array]:
        """Return the outputs `wanted` of a signature; raise `Refusal` if `inputs` do not fit it, or with what TensorFlow says."""
        definition = self.signatures[signature]
        check_names(definition, inputs)
        feeds = [(_placed(name, definition.inputs[name]), _typed(name, array, definition.inputs[name])) for name, array in inputs.items()]
        try:
            fetched = self._session.run(feeds, [_placed(name, definition.outputs[name]) for name in wanted])
        except TensorFlowError as error:
            hint = _shapes_differ(definition, inputs) if error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0] else ""
            raise Refusal(CODES.get(error.code, grpc.StatusCode.UNKNOWN), f"{error.message or 'TensorFlow gave no reason'}{hint}") from error
        return dict(zip(wanted, fetched, strict=True))

    def _signature(self, definition: Any) -> Signature:
        inputs = {name: self._port(info) for name, info in definition.inputs.items()}
        return Signature(inputs, {name: self._port(info) for name, info in definition.outputs.items()})

    def _port(self, info: Any) -> Port:
        shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
        # Sparse and other composite tensors have no single name; they are refused when asked for, as their signature's neighbours work.
        return Port(self._session.endpoint(info.name) if info.name else None, info.dtype, shape)


def check_names(signature: Signature, names: Iterable[str]) -> None:
    """Raise `Refusal` unless `names` are exactly those of the signature's inputs."""
    sent, expected = set(names), set(signature.inputs)
    if sent != expected:
        raise invalid(_names_differ(sent, expected))


def _placed(name: str, port: Port) -> Endpoint:
    if port.endpoint is None:
        raise Refusal(grpc.StatusCode.UNIMPLEMENTED, f"Tensor {name!r} is sparse or composite, which this server does not support.")
    return port.endpoint


def _dtype(name: str, port: Port) -> np.dtype[Any]:
    if port.code not in DTYPES:
        raise Refusal(grpc.StatusCode.UNIMPLEMENTED, f"Input {name!r} is of type {type_name(port.code)}, which this server does not support.")
    return DTYPES[port.code]


def _typed(name: str, array: Array, port: Port) -> Array:
    expected = _dtype(name, port)
    if array.dtype != expected:
        raise invalid(f"Input {name!r} is of type {_shown(array.dtype)}; the signature expects {_shown(expected)}.")
    return array


def _shown(dtype: np.dtype[Any]) -> str:
    return "string" if dtype.kind == "O" else dtype.name


def _names_differ(sent: set[str], expected: set[str]) -> str:
    def braces(names: set[str]) -> str:
        shown = sorted(name[:100] for name in names)
        return "{" + ",".join(shown[:_SHOWN]) + (",..." if len(shown) > _SHOWN else "") + "}"

    return (
        f"input size does not match signature: {len(sent)}!={len(expected)} len({braces(sent)}) != len({braces(expected)}). "
        f"Sent extra: {braces(sent - expected)}. Missing but required: {braces(expected - sent)}."
    )


def _shapes_differ(definition: Signature, inputs: Tensors) -> str:
    """Say which inputs have another shape than the signature, because TensorFlow speaks of operations that no client knows."""
    words = ""
    for name, array in inputs.items():
        shape = definition.inputs[name].shape
        if shape is not None and not _fits(array.shape, shape):
            words += f" Input {name!r} has shape {list(array.shape)}; the signature expects {list(shape)}."
    return words


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(want in (-1, got) for got, want in zip(shape, expected, strict=True))
