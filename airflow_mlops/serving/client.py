"""The one way this package talks to a model server: versions and configuration by gRPC, answers by REST, a deadline on every call."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import grpc
import httpx

from airflow_mlops.exceptions import ServingError, ServingUnavailable, SpecError
from airflow_mlops.serving import protos
from airflow_mlops.serving.config import ServerConfig

_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # no environment variable decides where models are asked
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),  # gRPC's default of 120 s would hide a restarted server for two minutes
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
_UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True)
class VersionStatus:
    """State of one version: START, LOADING, AVAILABLE, UNLOADING or END; `error` is the server's reason for an END, else empty."""

    state: str
    error: str = ""


class ServingClient:
    """A model server's gRPC address (``host:port``) and REST address (``http://host:port``); every call ends within `deadline_seconds`.

    Every method raises `ServingUnavailable` (a retry may help) if the server does not answer, `ServingError` with its words if it refuses.
    """

    def __init__(self, grpc_address: str, rest_url: str, deadline_seconds: float = 10.0) -> None:
        if deadline_seconds <= 0:
            raise SpecError(f"deadline_seconds is {deadline_seconds}; expected a positive number of seconds.")
        self.grpc_address = grpc_address
        self.rest_url = rest_url.rstrip("/")
        self.deadline_seconds = deadline_seconds
        self._channel = grpc.insecure_channel(grpc_address, options=_CHANNEL_OPTIONS)
        self._models = protos.model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._http = httpx.Client(timeout=deadline_seconds, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close both connections."""
        self._http.close()
        self._channel.close()

    def status(self, model: str) -> dict[int, VersionStatus]:
        """Return the state of every version that the server knows of `model`, none if it does not know the model."""
        request = protos.get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        try:
            answer = self._models.GetModelStatus(request, timeout=self.deadline_seconds)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return {}
            raise self._grpc_error(f"the status of model {model!r}", error) from error
        names = protos.get_model_status_pb2.ModelVersionStatus.State
        return {entry.version: VersionStatus(names.Name(entry.state), entry.status.error_message) for entry in answer.model_version_status}

    def reload(self, config: ServerConfig) -> None:
        """Make the server serve exactly `config`; versions load afterwards, so ask `status` for them."""
        request = protos.model_management_pb2.ReloadConfigRequest(config=config.to_proto())
        try:
            answer = self._models.HandleReloadConfigRequest(request, timeout=self.deadline_seconds)
        except grpc.RpcError as error:
            raise self._grpc_error("a new configuration", error) from error
        if answer.status.error_code:
            raise ServingError(f"The model server refused a new configuration: {answer.status.error_message}. It keeps the one it had.")

    def predict(
        self,
        model: str,
        instances: Sequence[Any],
        *,
        version: int | None = None,
        label: str | None = None,
        signature_name: str | None = None,
    ) -> list[Any]:
        """Return one prediction per instance (REST row format; JSON values), of one version, of a label's version, or of the latest."""
        named = {"signature_name": signature_name} if signature_name else {}
        body = json.dumps({**named, "instances": list(instances)}).encode()
        path = _model_path(model, version, label)
        predictions = self._ask("POST", f"{path}:predict", body).get("predictions")
        if not isinstance(predictions, list):
            raise ServingError(f"The model server at {self.rest_url} answered {path}:predict without a list of predictions; is it a model server?")
        return predictions

    def metadata(self, model: str, *, version: int | None = None, label: str | None = None) -> dict[str, Any]:
        """Return ``{"model_spec": ..., "metadata": {"signature_def": ...}}`` of one version."""
        return self._ask("GET", f"{_model_path(model, version, label)}/metadata")

    def ready(self) -> bool:
        """Return whether both interfaces answer, whichever models they serve."""
        try:
            self.status("ready")
            self._send("GET", "/v1/models/ready", None)
        except ServingUnavailable:
            return False
        return True

    def _ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        status, content = self._send(method, path, body)
        try:
            data = json.loads(content)
        except ValueError as error:
            raise ServingError(f"{self.rest_url}{path} answered {status} and no JSON: {content[:200]!r}. Is it a model server?") from error
        if status != 200 or not isinstance(data, dict):
            words = data.get("error", data) if isinstance(data, dict) else data
            raise ServingError(f"The model server at {self.rest_url} refused {method} {path} ({status}): {words}")
        return data

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        end = time.monotonic() + self.deadline_seconds
        content = bytearray()
        try:
            with self._http.stream(method, self.rest_url + path, content=body, headers={"Content-Type": "application/json"}) as answer:
                for chunk in answer.iter_bytes():
                    content += chunk
                    if time.monotonic() > end:  # httpx limits every single read, not their sum
                        raise httpx.ReadTimeout("the answer took too long")
        except httpx.TransportError as error:
            detail = str(error) or type(error).__name__
            raise ServingUnavailable(
                f"The model server at {self.rest_url} did not answer {method} {path} within {self.deadline_seconds:g} s: {detail}. "
                "Check that it runs, then retry."
            ) from error
        if answer.status_code in (503, 504):
            raise ServingUnavailable(f"The model server at {self.rest_url} is not available for {path}: {content.decode(errors='replace')[:500]}")
        return answer.status_code, bytes(content)

    def _grpc_error(self, what: str, error: Any) -> ServingError:
        if error.code() in _UNAVAILABLE:
            return ServingUnavailable(
                f"The model server at {self.grpc_address} did not answer for {what} within {self.deadline_seconds:g} s: {error.details()}. "
                "Check that it runs, then retry."
            )
        return ServingError(f"The model server at {self.grpc_address} refused {what} ({error.code().name}): {error.details()}")


def _model_path(model: str, version: int | None, label: str | None) -> str:
    if version is not None and label is not None:
        raise SpecError(f"Both version {version} and label {label!r} of model {model!r} were asked for; give one of them.")
    part = "" if version is None else f"/versions/{version}"
    part = part if label is None else f"/labels/{quote(label, safe='')}"
    return f"/v1/models/{quote(model, safe='')}{part}"
