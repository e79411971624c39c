"""The gRPC interface: `PredictionService` and `ModelService`. Methods that are not here (SessionRun) answer UNIMPLEMENTED.

Requests for a model stay bytes here: which version they are for is read off them (`wire`), the model's own process parses them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import grpc

from airflow_mlops.exceptions import SpecError
from airflow_mlops.serving import protos
from airflow_mlops.serving.config import ServerConfig
from airflow_mlops.serving.embedded import wire
from airflow_mlops.serving.embedded.frames import Kind
from airflow_mlops.serving.embedded.gateway import Gateway, Target, target_of
from airflow_mlops.serving.embedded.loader import Loader
from airflow_mlops.serving.embedded.refusal import MAX_WORDS, Refusal, invalid

log = logging.getLogger(__name__)
PREDICTION_SERVICE, MODEL_SERVICE = "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"
_PLATFORM = "tensorflow"
Method = Callable[[bytes, Any], Awaitable[bytes]]


def handlers(gateway: Gateway, loader: Loader[Any]) -> list[grpc.GenericRpcHandler]:
    """Return the services' handlers for `grpc.aio.Server.add_generic_rpc_handlers`."""
    prediction = PredictionService(gateway)
    model = ModelService(gateway, loader)
    methods: dict[str, dict[str, Method]] = {
        PREDICTION_SERVICE: {
            "Predict": prediction.asking(Kind.PREDICT, _single_spec),
            "Classify": prediction.asking(Kind.CLASSIFY, _single_spec),
            "Regress": prediction.asking(Kind.REGRESS, _single_spec),
            "MultiInference": prediction.asking(Kind.MULTI_INFERENCE, _first_task_spec),
            "GetModelMetadata": prediction.metadata,
        },
        MODEL_SERVICE: {"GetModelStatus": model.status, "HandleReloadConfigRequest": model.reload},
    }
    return [
        grpc.method_handlers_generic_handler(
            service, {name: grpc.unary_unary_rpc_method_handler(_answering(name, method)) for name, method in table.items()}
        )
        for service, table in methods.items()
    ]


def _answering(name: str, method: Method) -> Method:
    """Turn refusals into gRPC statuses, and everything unforeseen into INTERNAL with its reason."""

    async def call(request: bytes, context: Any) -> bytes:
        try:
            return await method(request, context)
        except Refusal as refusal:
            code, words = refusal.code, str(refusal)
        except Exception as error:
            log.exception("%s failed", name)
            code, words = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
        await context.abort(code, words[:MAX_WORDS])
        return b""

    return call


class PredictionService:
    """Answers of the loaded models."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def asking(self, kind: Kind, spec_of: Callable[[bytes], bytes | None]) -> Method:
        """Return the method that sends requests of `kind` to their model; `spec_of` finds the `ModelSpec` in a request."""

        async def ask(request: bytes, context: Any) -> bytes:
            return await self._gateway.ask(kind, _target(spec_of(request)), request, context.time_remaining())

        return ask

    async def metadata(self, request: bytes, context: Any) -> bytes:
        """Return the signatures of one version (GetModelMetadata)."""
        message = wire.parsed(protos.get_model_metadata_pb2.GetModelMetadataRequest, request)
        if not message.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        if not message.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in message.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        target = target_of(message.model_spec)
        version, signatures = self._gateway.signatures(target)
        response = protos.get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name, response.model_spec.version.value = target.name, version
        response.metadata["signature_def"].Pack(signatures)
        return bytes(response.SerializeToString())


class ModelService:
    """States of the versions and the configuration in force."""

    def __init__(self, gateway: Gateway, loader: Loader[Any]) -> None:
        self._gateway = gateway
        self._loader = loader

    async def status(self, request: bytes, context: Any) -> bytes:
        """Return the states of a model's versions; a label in the request is ignored, as the original does (GetModelStatus)."""
        message = wire.parsed(protos.get_model_status_pb2.GetModelStatusRequest, request)
        if not message.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        target = target_of(message.model_spec)
        return bytes(self._gateway.status(target.name, target.version).SerializeToString())

    async def reload(self, request: bytes, context: Any) -> bytes:
        """Serve the request's configuration, or refuse it and keep the present one; answers when each new model is available, or will not be.

        The answer comes a little before the client's deadline, so that it still arrives.
        """
        message = wire.parsed(protos.model_management_pb2.ReloadConfigRequest, request)
        if message.config.WhichOneof("config") != "model_config_list":
            raise invalid("ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported")
        left = context.time_remaining()
        config = server_config(message.config, self._loader.names())
        await self._loader.reload(config, None if left is None else left - min(1.0, max(0.1, left / 10)))
        return bytes(protos.model_management_pb2.ReloadConfigResponse().SerializeToString())


def server_config(message: Any, known: Collection[str] = ()) -> ServerConfig:
    """Return the configuration of a `ModelServerConfig` as a client may send it; raise `Refusal` where, and as, the original does.

    Models that are `known` have the one platform that this server has.
    """
    models = message.model_config_list.config
    for number, model in enumerate(models):
        if any(model.name == other.name for other in models[:number]):
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
    for model in models:
        if not (model.base_path.startswith("/") or "://" in model.base_path):
            raise invalid(f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}")
    for model in models:
        platform = _platform(model)
        if platform != _PLATFORM and model.name in known:
            words = f"Illegal to change a model's platform. For model {model.name} platform was {_PLATFORM}"
            raise invalid(f"{words} and new platform requested is {platform}")
        if platform != _PLATFORM:
            raise invalid(f"Model {model.name} requests unsupported platform {platform}; expected model_platform: '{_PLATFORM}'")
    try:
        return ServerConfig.from_proto(message)
    except SpecError as error:
        raise invalid(str(error)) from error


def _platform(model: Any) -> str:
    if model.model_platform and model.model_type:
        words = "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform"
        raise invalid(f"{words}, model name is {model.name}")
    if model.model_type not in (0, protos.model_server_config_pb2.ModelType.TENSORFLOW):
        raise invalid(f"ModelServerConfig::model_type choice {model.model_type} not supported, model name is {model.name}.")
    if not (model.model_platform or model.model_type):
        words = "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform"
        raise invalid(f"{words}, model name is {model.name}")
    return str(model.model_platform or _PLATFORM)


def _single_spec(request: bytes) -> bytes | None:
    return wire.field(request, 1)


def _first_task_spec(request: bytes) -> bytes | None:
    tasks = wire.fields(request, 1)
    return wire.field(tasks[0], 1) if tasks else None


def _target(spec: bytes | None) -> Target:
    if spec is None:
        raise invalid("Missing ModelSpec")
    return target_of(wire.parsed(protos.model_pb2.ModelSpec, spec))
