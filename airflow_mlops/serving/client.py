"""The one way this package talks to a replica of a model server: a deadline on every call, and only what has no effect is asked again.

Everything goes by gRPC, but for `predict`, which sends rows of JSON by REST: a server that has no REST interface can be released to all the
same. `airflow_mlops.serving.fleet` asks several replicas.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import DecodeError

from airflow_mlops.exceptions import ServingError, ServingUnavailable, SpecError
from airflow_mlops.serving import protos, retry, tensors
from airflow_mlops.serving.availability import VersionStatus
from airflow_mlops.serving.config import ServerConfig
from airflow_mlops.serving.rest import RestClient, model_path, one_of
from airflow_mlops.serving.tls import Tls, distrusted, untrusted

_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # no environment variable decides where models are asked
    ("grpc.enable_retries", 0),  # a reload is sent once; what may be asked again, `retry` asks
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),  # gRPC's default of 120 s would hide a restarted server for two minutes
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
_UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_NOT_YET = "did not become available"  # how a server says that it has the configuration, and not yet the model (server_core.cc)
_PROBE = "airflow-mlops-connection-test"  # a model that nobody serves


class ServingClient:
    """One replica: its gRPC address (``host:port``) and, if it has one, REST URL (``http://host:port``); every call ends within `deadline_seconds`.

    With `tls`, both are encrypted and the server's certificate is verified; only with `plain_rest_allowed` may the REST URL be http:// then
    (`SpecError`). Every method raises `ServingUnavailable` (a retry may help) if the
    server does not answer, `ServingError` with its words if it refuses. Questions are asked again within their deadline when the server is away
    for a moment; `reload` never is: somebody else's may have come between.
    """

    def __init__(
        self,
        grpc_address: str,
        rest_url: str | None = None,
        deadline_seconds: float = 10.0,
        *,
        tls: Tls | None = None,
        plain_rest_allowed: bool = False,
    ) -> None:
        if not 0 < deadline_seconds < math.inf:
            raise SpecError(f"deadline_seconds is {deadline_seconds}; expected a positive number of seconds. Write one, for instance 10.")
        self.grpc_address = grpc_address
        self.deadline_seconds = deadline_seconds
        self._rest = RestClient(rest_url, deadline_seconds, tls, plain_allowed=plain_rest_allowed) if rest_url is not None else None
        self._channel = _channel(grpc_address, tls)
        self._models = protos.model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._predictions = protos.prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._rest is not None:
            self._rest.close()
        self._channel.close()

    @property
    def rest_url(self) -> str | None:
        """The REST URL, without a slash at its end; None if it was given none."""
        return self._rest.url if self._rest is not None else None

    @property
    def replicas(self) -> tuple[ServingClient, ...]:
        """Itself alone, where a `ServingFleet` has many."""
        return (self,)

    def status(self, model: str) -> dict[int, VersionStatus]:
        """Return the state of every version that the server knows of `model`, none if it does not know the model."""
        return self._status(model, lambda ask: retry.call(ask, self.deadline_seconds))

    def reload(self, config: ServerConfig) -> None:
        """Make the server serve exactly `config`. Is sent once.

        A server waits for models that are new to it, but for no other version: ask `status`, also when it says that one is not available yet.
        """
        request = protos.model_management_pb2.ReloadConfigRequest(config=config.to_proto())
        try:
            answer = self._models.HandleReloadConfigRequest(request, timeout=self.deadline_seconds)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNKNOWN and _NOT_YET in (error.details() or ""):
                return  # it serves this configuration; the model's own state says why it is not available, or is soon
            raise self._grpc_error("a new configuration", error) from error
        if answer.status.error_code:
            raise ServingError(
                f"The model server at {self.grpc_address} refused a new configuration: {answer.status.error_message}. It keeps the one it had."
            )

    def predict(
        self,
        model: str,
        instances: Sequence[Any],
        *,
        version: int | None = None,
        label: str | None = None,
        signature_name: str | None = None,
    ) -> list[Any]:
        """Return one prediction per instance (REST row format; JSON values), of one version, of a label's version, or of the latest.

        Asked by REST; raises `SpecError` if the client has no REST URL.
        """
        if self._rest is None:
            raise SpecError(
                f"Rows of JSON go by REST, and the model server at {self.grpc_address} has no REST URL. Give it one (`rest_url` of the connection, "
                "or `rest` of the replica), or ask by gRPC with predict_tensors."
            )
        named = {"signature_name": signature_name} if signature_name else {}
        body = json.dumps({**named, "instances": list(instances)}).encode()
        path = model_path(model, version, label)
        predictions = self._rest.ask("POST", f"{path}:predict", body).get("predictions")
        if not isinstance(predictions, list):
            raise ServingError(f"The model server at {self._rest.url} answered {path}:predict without a list of predictions; is it a model server?")
        return predictions

    def predict_tensors(
        self,
        model: str,
        inputs: Mapping[str, tensors.Array],
        *,
        version: int | None = None,
        label: str | None = None,
        signature_name: str | None = None,
        output_filter: Sequence[str] = (),
    ) -> tuple[int, dict[str, tensors.Array]]:
        """Return the version that answered and its outputs by name, all of them or those in `output_filter`; shapes are the signature's.

        Asked by gRPC, without the rounding and the size of JSON. Raises `SpecError` for an array of a type that TensorFlow has not.
        """
        request = protos.predict_pb2.PredictRequest(output_filter=output_filter)
        _name(request.model_spec, model, version, label)
        request.model_spec.signature_name = signature_name or ""
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(tensors.to_proto(array))
        try:
            answer = retry.call(lambda left: self._predictions.Predict(request, timeout=left), self.deadline_seconds)
        except grpc.RpcError as error:
            raise self._grpc_error(f"predictions of model {model!r}", error) from error
        try:
            return answer.model_spec.version.value, {name: tensors.to_array(tensor) for name, tensor in answer.outputs.items()}
        except ValueError as error:
            raise ServingError(f"The model server at {self.grpc_address} answered with a tensor that cannot be read: {error}.") from error

    def signatures(self, model: str, *, version: int | None = None, label: str | None = None) -> dict[str, Any]:
        """Return the signatures of one version, as `SignatureDef` messages by name: which inputs it takes and which outputs it gives."""
        request = protos.get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        _name(request.model_spec, model, version, label)
        try:
            answer = retry.call(lambda left: self._predictions.GetModelMetadata(request, timeout=left), self.deadline_seconds)
            packed = answer.metadata["signature_def"].value
            return dict(protos.get_model_metadata_pb2.SignatureDefMap.FromString(packed).signature_def)
        except grpc.RpcError as error:
            raise self._grpc_error(f"the signatures of model {model!r}", error) from error
        except DecodeError as error:
            raise ServingError(f"The model server at {self.grpc_address} answered with signatures that cannot be read: {error}.") from error

    def check(self) -> None:
        """Raise `ServingUnavailable`, saying which, unless gRPC and REST, where it has a URL, answer now, whichever models they serve."""
        self._status(_PROBE, lambda ask: ask(self.deadline_seconds))
        if self._rest is not None:
            self._rest.check()

    def ready(self) -> bool:
        """Return whether `check` finds nothing wrong."""
        try:
            self.check()
        except ServingUnavailable:
            return False
        return True

    def _status(self, model: str, call: Callable[[Callable[[float], Any]], Any]) -> dict[int, VersionStatus]:
        request = protos.get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        try:
            answer = call(lambda left: self._models.GetModelStatus(request, timeout=left))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return {}
            raise self._grpc_error(f"the status of model {model!r}", error) from error
        names = protos.get_model_status_pb2.ModelVersionStatus.State
        return {entry.version: VersionStatus(names.Name(entry.state), entry.status.error_message) for entry in answer.model_version_status}

    def _grpc_error(self, what: str, error: Any) -> ServingError:
        detail = error.details() or "no details"
        if distrusted(detail):
            return untrusted(self.grpc_address, detail)
        if error.code() in _UNAVAILABLE:
            return ServingUnavailable(
                f"The model server at {self.grpc_address} did not answer for {what}: {detail} (deadline {self.deadline_seconds:g} s). "
                "Check that it runs, then retry."
            )
        return ServingError(f"The model server at {self.grpc_address} refused {what} ({error.code().name}): {detail}")


def _name(spec: Any, model: str, version: int | None, label: str | None) -> None:
    """Say in a `ModelSpec` which version is meant."""
    one_of(model, version, label)
    spec.name = model
    if version is not None:
        spec.version.value = version
    if label is not None:
        spec.version_label = label


def _channel(address: str, tls: Tls | None) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
    named = (("grpc.ssl_target_name_override", tls.server_name),) if tls.server_name else ()
    return grpc.secure_channel(address, tls.credentials(), options=(*_CHANNEL_OPTIONS, *named))
