"""One loaded SavedModel. TensorFlow is imported here and nowhere else in the server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded.refusal import Refusal, invalid

SERVING_TAG = "serve"
DEFAULT_SIGNATURE = "serving_default"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
Tensors = Mapping[str, np.ndarray[Any, Any]]


class Servable:
    """The SavedModel in directory `path`; `signatures` maps names to `SignatureDef` messages. Raises what TensorFlow raises on a bad one."""

    def __init__(self, path: Path) -> None:
        self._model = tf.saved_model.load(str(path), tags=[SERVING_TAG])
        saved = protos.saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        graph = next(graph for graph in saved.meta_graphs if SERVING_TAG in graph.meta_info_def.tags)
        self.signatures: Mapping[str, Any] = dict(graph.signature_def)

    def input_types(self, signature: str) -> dict[str, np.dtype[Any]]:
        """Return the NumPy type of each input of a signature; strings are objects."""
        return {name: np.dtype(tf.as_dtype(info.dtype).as_numpy_dtype) for name, info in self.signatures[signature].inputs.items()}

    def run(self, signature: str, inputs: Tensors) -> dict[str, np.ndarray[Any, Any]]:
        """Return the outputs of a signature; raise `Refusal` if names, types or shapes of `inputs` do not fit it."""
        expected = self.signatures[signature].inputs
        if inputs.keys() != expected.keys():
            raise invalid(_names_differ(set(inputs), set(expected)))
        feeds = {name: _feed(name, inputs[name], info) for name, info in expected.items()}
        try:
            outputs = self._model.signatures[signature](**feeds)
            return {name: tensor.numpy() for name, tensor in outputs.items()}
        except tf.errors.OpError as error:
            raise Refusal(_CODES.get(error.error_code, grpc.StatusCode.INTERNAL), error.message) from error
        except (TypeError, ValueError) as error:  # what tf.function raises on arguments it can not bind
            raise invalid(str(error)) from error


def _names_differ(sent: set[str], expected: set[str]) -> str:
    def braces(names: set[str]) -> str:
        return "{" + ",".join(sorted(names)) + "}"

    return (
        f"input size does not match signature: {len(sent)}!={len(expected)} len({braces(sent)}) != len({braces(expected)}). "
        f"Sent extra: {braces(sent - expected)}. Missing but required: {braces(expected - sent)}."
    )


def _feed(name: str, array: np.ndarray[Any, Any], info: Any) -> Any:
    dtype = tf.as_dtype(info.dtype)
    if array.dtype != dtype.as_numpy_dtype:
        raise invalid(f"Input {name!r} is of type {tf.as_dtype(array.dtype).name}; the signature expects {dtype.name}.")
    shape = tf.TensorShape(info.tensor_shape)
    if not shape.is_compatible_with(array.shape):
        raise invalid(f"Input {name!r} has shape {list(array.shape)}; the signature expects {[-1 if size is None else size for size in shape]}.")
    return tf.constant(array, dtype)
