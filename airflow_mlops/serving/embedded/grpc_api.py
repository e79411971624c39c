"""The gRPC interface: `PredictionService` and `ModelService`. Methods that are not here answer UNIMPLEMENTED."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import numpy as np
import tensorflow as tf

from airflow_mlops.exceptions import SpecError
from airflow_mlops.serving import protos
from airflow_mlops.serving.config import ServerConfig
from airflow_mlops.serving.embedded.engine import DEFAULT_SIGNATURE, Servable
from airflow_mlops.serving.embedded.manager import VersionManager
from airflow_mlops.serving.embedded.refusal import Refusal, invalid, precondition

log = logging.getLogger(__name__)
_PLATFORM = "tensorflow"
_INTEGERS = ("int8", "int16", "int32", "uint8", "uint16")
_VALUE_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int64": "int64_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "bool": "bool_val",
    **dict.fromkeys(_INTEGERS, "int_val"),
}


def _answering(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """Turn refusals into gRPC statuses, and everything unforeseen into INTERNAL with its reason."""

    @functools.wraps(method)
    def call(self: Any, request: Any, context: Any) -> Any:
        try:
            return method(self, request)
        except Refusal as refusal:
            code, words = refusal.code, str(refusal)
        except Exception as error:
            log.exception("%s failed", method.__name__)
            code, words = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
        return context.abort(code, words)

    return call


class PredictionService(protos.prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    """Answers of the loaded models."""

    def __init__(self, manager: VersionManager) -> None:
        self._manager = manager

    @_answering
    def Predict(self, request: Any) -> Any:
        """Run one signature on the request's tensors."""
        number, servable = _servable(self._manager, request)
        signature = request.model_spec.signature_name or DEFAULT_SIGNATURE
        if signature not in servable.signatures:
            raise precondition(f'Serving signature key "{signature}" not found.')
        wanted = _filtered(request.output_filter, servable.signatures[signature].outputs)
        outputs = servable.run(signature, {name: _array(name, tensor) for name, tensor in request.inputs.items()})
        response = protos.predict_pb2.PredictResponse()
        _set_spec(response.model_spec, request.model_spec.name, number, signature)
        for name in wanted:
            response.outputs[name].CopyFrom(_tensor(outputs[name]))
        return response

    @_answering
    def GetModelMetadata(self, request: Any) -> Any:
        """Return the signatures of one version."""
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        number, servable = _servable(self._manager, request)
        response = protos.get_model_metadata_pb2.GetModelMetadataResponse()
        _set_spec(response.model_spec, request.model_spec.name, number, "")
        response.metadata["signature_def"].Pack(signature_map(servable))
        return response


class ModelService(protos.model_service_pb2_grpc.ModelServiceServicer):  # type: ignore[misc]
    """States of the versions and the configuration in force."""

    def __init__(self, manager: VersionManager) -> None:
        self._manager = manager

    @_answering
    def GetModelStatus(self, request: Any) -> Any:
        """Return the states of a model's versions; a label in the request is ignored, as the original does."""
        spec = _named(request)
        return status_response(self._manager, spec.name, spec.version.value if spec.HasField("version") else None)

    @_answering
    def HandleReloadConfigRequest(self, request: Any) -> Any:
        """Serve the request's configuration, or refuse it and keep the present one; does not wait for models to load."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid("ServerRequest config must be a model_config_list")
        for model in request.config.model_config_list.config:
            if (model.model_platform and model.model_type) or model.model_platform not in ("", _PLATFORM):
                raise invalid(f"Model {model.name} must have model_platform: '{_PLATFORM}' and no model_type")
        try:
            config = ServerConfig.from_proto(request.config)
        except SpecError as error:
            raise invalid(str(error)) from error
        self._manager.configure(config)
        return protos.model_management_pb2.ReloadConfigResponse()


def status_response(manager: VersionManager, name: str, version: int | None) -> Any:
    """Return the `GetModelStatusResponse` of a model or of one version."""
    response = protos.get_model_status_pb2.GetModelStatusResponse()
    for number, state, error in manager.states(name, version):
        entry = response.model_version_status.add(version=number, state=state)
        entry.status.error_message = error
        entry.status.error_code = 2 if error else 0  # UNKNOWN, or OK
    return response


def signature_map(servable: Servable) -> Any:
    """Return all signatures of a servable as a `SignatureDefMap` message."""
    signatures = protos.get_model_metadata_pb2.SignatureDefMap()
    for name, signature in servable.signatures.items():
        signatures.signature_def[name].CopyFrom(signature)
    return signatures


def _named(request: Any) -> Any:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    if not request.model_spec.name:
        raise invalid("ModelSpec has no name specified.")
    return request.model_spec


def _servable(manager: VersionManager, request: Any) -> tuple[int, Servable]:
    spec = _named(request)
    version = spec.version.value if spec.HasField("version") else None
    return manager.resolve(spec.name, version, spec.version_label if spec.HasField("version_label") else None)


def _set_spec(spec: Any, name: str, number: int, signature: str) -> None:
    spec.name, spec.signature_name = name, signature
    spec.version.value = number


def _filtered(names: Iterable[str], outputs: Iterable[str]) -> list[str]:
    asked, known = list(names), list(outputs)
    for name in asked:
        if name not in known:
            raise invalid(f"output tensor alias not found in signature: {name} Outputs expected to be in the set {{{','.join(sorted(known))}}}.")
    if len(set(asked)) != len(asked):
        raise invalid(f"duplicate output tensor alias: {', '.join(asked)}")
    return asked or known


def _array(name: str, tensor: Any) -> np.ndarray[Any, Any]:
    try:
        array: np.ndarray[Any, Any] = tf.make_ndarray(tensor)
    except (TypeError, ValueError, KeyError) as error:
        raise invalid(f"Input {name!r} is not a whole tensor: {error}") from error
    return array


def _tensor(array: np.ndarray[Any, Any]) -> Any:
    """Return a TensorProto with its values in the ``*_val`` field of its type, as the original answers."""
    field = _VALUE_FIELDS.get(array.dtype.name)
    if field is None:
        return tf.make_tensor_proto(array)
    tensor = protos.tensor_pb2.TensorProto(dtype=tf.as_dtype(array.dtype).as_datatype_enum)
    tensor.tensor_shape.SetInParent()
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    getattr(tensor, field).extend(array.ravel().tolist())
    return tensor
