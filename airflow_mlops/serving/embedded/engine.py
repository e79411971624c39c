"""One loaded SavedModel: named arrays in, named arrays out, by the rules of its signatures."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded.elementwise import Elementwise
from airflow_mlops.serving.embedded.refusal import CODES, Refusal, invalid
from airflow_mlops.serving.embedded.tensorflow_c import Endpoint, Session, TensorFlowError
from airflow_mlops.serving.tensors import DTYPES, Array, short_name, to_array, type_name

_SHOWN = 10
_VARIABLES = {"VarHandleOp", "VariableV2", "Variable"}
Tensors = Mapping[str, Array]


class Port(NamedTuple):
    """An input or output of a signature: where it is in the graph, its type, its shape (-1: any size, None: any shape), and its tensor's name."""

    endpoint: Endpoint | None
    code: int
    shape: tuple[int, ...] | None
    tensor: str = ""


class Signature(NamedTuple):
    """What a signature takes and gives, by name; `defaults` are the values of inputs that a request by gRPC need not name."""

    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]
    defaults: Mapping[str, Array] = {}


class Servable:
    """The SavedModel in directory `path`, its graph tagged with exactly `tags`. Raises `TensorFlowError` on one that cannot be loaded."""

    def __init__(self, path: Path, tags: Sequence[str], config: bytes) -> None:
        self._session = Session(path, tags, config)
        graph = protos.meta_graph_pb2.MetaGraphDef.FromString(self._session.meta_graph)
        if any(node.op in _VARIABLES for node in graph.graph_def.node) and not (path / "variables" / "variables.index").exists():
            # TensorFlow takes that for a model without variables, and every request to it fails.
            raise TensorFlowError(
                grpc.StatusCode.DATA_LOSS.value[0], f"{path} is half a copy: its graph has variables, and variables.index is missing"
            )
        self.signature_defs: Mapping[str, Any] = dict(graph.signature_def)
        elementwise = Elementwise(graph.graph_def)
        self.signatures = {name: self._signature(definition, elementwise) for name, definition in self.signature_defs.items()}

    def input_types(self, signature: str) -> dict[str, np.dtype[Any]]:
        """Return the NumPy type of each input of a signature; strings are objects. Raises `Refusal` on a type that is not supported."""
        return {name: _dtype(name, port) for name, port in self.signatures[signature].inputs.items()}

    def run(self, signature: str, inputs: Tensors, wanted: Collection[str]) -> dict[str, Array]:
        """Return the outputs `wanted` of a signature; raise `Refusal` if `inputs` do not fit it, or with what TensorFlow says."""
        definition = self.signatures[signature]
        check(definition, inputs)
        given = {**definition.defaults, **inputs}
        feeds = [(_placed(name, definition.inputs[name]), array) for name, array in given.items()]
        try:
            fetched = self._session.run(feeds, [_placed(name, definition.outputs[name]) for name in wanted])
        except TensorFlowError as error:
            raise Refusal(CODES.get(error.code, grpc.StatusCode.UNKNOWN), error.message or "TensorFlow gave no reason") from error
        return dict(zip(wanted, fetched, strict=True))

    def _signature(self, definition: Any, elementwise: Elementwise) -> Signature:
        ports = {name: _loosened(self._port(info), elementwise) for name, info in definition.inputs.items()}
        inputs = dict(sorted(ports.items(), key=lambda port: port[1].tensor))  # the order in which TensorFlow counts its arguments
        outputs = {name: self._port(info) for name, info in definition.outputs.items()}
        return Signature(inputs, outputs, {name: to_array(tensor) for name, tensor in definition.defaults.items()})

    def _port(self, info: Any) -> Port:
        shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
        # Sparse and other composite tensors have no single name; they are refused when asked for, as their signature's neighbours work.
        return Port(self._session.endpoint(info.name) if info.name else None, info.dtype, shape, info.name)


def check_names(signature: Signature, names: Iterable[str]) -> None:
    """Raise `Refusal` unless `names` are exactly those of the signature's inputs, but for inputs that have a default."""
    sent, expected = set(names), set(signature.inputs)
    if sent == expected:
        return
    if len(sent) > len(expected) or (len(sent) < len(expected) and not signature.defaults):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(expected)} len({{{_shown(sent)}}}) != len({{{_shown(expected)}}}). "
            f"Sent extra: {{{_shown(sent - expected)}}}. Missing but required: {{{_shown(expected - sent)}}}."
        )
    for name in sorted(expected - sent - signature.defaults.keys()):
        raise invalid(
            f"Signature input alias: {name}(feed name: {signature.inputs[name].tensor}) not found in request and no default value provided. "
            f"Inputs expected to be in the request {{{_shown(sent)}}}, or default input alias set: {_shown(signature.defaults)}"
        )
    if not sent <= expected:
        raise invalid(f"Inputs contains invalid name. Used request inputs: {_shown(sent & expected)}, request input: {_shown(sent)}")


def check(signature: Signature, inputs: Tensors) -> None:
    """Raise `Refusal` unless names, types and shapes of `inputs` are the signature's: some of TensorFlow's operations end the process otherwise.

    The original looks at names alone and leaves the rest to its operations; so does `_loosened`.
    """
    check_names(signature, inputs)
    for number, (name, port) in enumerate(signature.inputs.items()):
        array, expected = inputs.get(name), _dtype(name, port)
        if array is None:
            continue  # it has a default
        if array.dtype != expected:
            words = f"Expects arg[{number}] to be {short_name(expected)} but {short_name(array.dtype)} is provided"
            raise invalid(f"{words}: input {name!r}")
        if port.shape is not None and not _fits(array.shape, port.shape):
            raise invalid(f"Input {name!r} has shape {list(array.shape)}; the signature expects {list(port.shape)} (-1 is any size).")


def _loosened(port: Port, elementwise: Elementwise) -> Port:
    """Return `port`, of any shape where it is one number, or many, that only elementwise operations see.

    Clients of the original's own example, half_plus_two, send a plain list of numbers, and its signature says ``[-1, 1]``.
    """
    one = port.shape is not None and set(port.shape) <= {-1, 1}
    return port._replace(shape=None) if one and elementwise.sees(port.tensor) else port


def _placed(name: str, port: Port) -> Endpoint:
    if port.endpoint is None:
        raise Refusal(grpc.StatusCode.UNIMPLEMENTED, f"Tensor {name!r} is sparse or composite, which this server does not support.")
    return port.endpoint


def _dtype(name: str, port: Port) -> np.dtype[Any]:
    if port.code not in DTYPES:
        raise Refusal(grpc.StatusCode.UNIMPLEMENTED, f"Input {name!r} is of type {type_name(port.code)}, which this server does not support.")
    return DTYPES[port.code]


def _shown(names: Iterable[str]) -> str:
    shown = sorted(name[:100] for name in names)
    return ",".join(shown[:_SHOWN]) + (",..." if len(shown) > _SHOWN else "")


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(want in (-1, got) for got, want in zip(shape, expected, strict=True))
