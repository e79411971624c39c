"""A server that speaks TensorFlow Serving's protocol, seen from outside: its two addresses, and a directory of models that it can read."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from airflow_mlops.serving import protos
from tests import serving_models

SECONDS = 30.0  # the longest that anything here may take
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)]
FLOAT = protos.types_pb2.DT_FLOAT
Code = grpc.StatusCode
Labels = Mapping[str, int]
TENSORFLOW = "tensorflow"


def tensor(values: Sequence[Any], shape: Sequence[int], dtype: int = FLOAT, kind: str = "float_val") -> Any:
    """Return a `TensorProto` of a shape, its values in the field `kind`."""
    message = protos.tensor_pb2.TensorProto(dtype=dtype)
    message.tensor_shape.SetInParent()
    for size in shape:
        message.tensor_shape.dim.add(size=size)
    getattr(message, kind).extend(values)
    return message


def spec(request: Any, name: str = "", signature: str = "", *, version: int | None = None, label: str | None = None) -> Any:
    """Return the request, now for a model, its signature, and perhaps a version or a label."""
    request.model_spec.name, request.model_spec.signature_name = name, signature
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    return request


def predict(name: str, inputs: Mapping[str, Any], signature: str = "", **asked: Any) -> Any:
    """Return a PredictRequest."""
    request = spec(protos.predict_pb2.PredictRequest(), name, signature, **asked)
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(value)
    return request


def row(name: str = "linear", values: Sequence[float] = serving_models.ROW, signature: str = "", **asked: Any) -> Any:
    """Return a PredictRequest of one row for a model like ``linear``."""
    return predict(name, {"x": tensor(values, [1, len(values)])}, signature, **asked)


def example(**features: Any) -> Any:
    """Return a `tf.Example`: float, int and bytes features by the type of the value."""
    message = protos.example_pb2.Example()
    for name, value in features.items():
        kind = {float: "float_list", int: "int64_list", bytes: "bytes_list"}[type(value)]
        getattr(message.features.feature[name], kind).value.append(value)
    return message


def asking(request: Any, *examples: Any, context: Any = None) -> Any:
    """Return a request of Classify, Regress or MultiInference, now with examples."""
    if context is None:
        request.input.example_list.examples.extend(examples)
    else:
        request.input.example_list_with_context.examples.extend(examples)
        request.input.example_list_with_context.context.CopyFrom(context)
    return request


def refusal(call: Callable[..., Any], request: Any) -> tuple[grpc.StatusCode, str]:
    """Return how a call is refused; fail if it is not."""
    with pytest.raises(grpc.RpcError) as refused:
        call(request, timeout=SECONDS)
    return refused.value.code(), refused.value.details()


def until(check: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """Return what `check` answers once it is true."""
    end = time.monotonic() + seconds
    while not (answer := check()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return answer


@dataclass
class Target:
    """A running server; `home` is where it finds models, `built` are the models of `tests.serving_models`."""

    grpc_address: str
    rest_url: str
    home: Path
    built: Path
    credentials: grpc.ChannelCredentials | None = None
    process_id: int = 0
    configs: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def channel(self) -> grpc.Channel:
        if self.credentials is None:
            return grpc.insecure_channel(self.grpc_address, options=UNLIMITED)
        return grpc.secure_channel(self.grpc_address, self.credentials, options=UNLIMITED)

    @cached_property
    def prediction(self) -> Any:
        """The stub of PredictionService."""
        return protos.prediction_service_pb2_grpc.PredictionServiceStub(self.channel)

    @cached_property
    def models(self) -> Any:
        """The stub of ModelService."""
        return protos.model_service_pb2_grpc.ModelServiceStub(self.channel)

    @cached_property
    def rest(self) -> httpx.Client:
        return httpx.Client(base_url=self.rest_url, trust_env=False, timeout=SECONDS)

    def close(self) -> None:
        self.channel.close()
        self.rest.close()

    # ------------------------------------------------------------------ requests

    def post(self, path: str, body: Any) -> httpx.Response:
        """Ask by REST; `path` is what stands behind ``/v1/models/``."""
        return self.rest.post(f"/v1/models/{path}", json=body)

    def answer(self, name: str = "linear", values: Sequence[float] = serving_models.ROW, **asked: Any) -> list[float]:
        """Return what a model like ``linear`` answers to one row."""
        (output,) = self.prediction.Predict(row(name, values, **asked), timeout=SECONDS).outputs.values()
        return list(output.float_val)

    def states(self, name: str) -> dict[int, str]:
        """Return the state of every version of a model that the server knows of."""
        return {version: state for version, (state, _, _) in self.status(name).items()}

    def status(self, name: str) -> dict[int, tuple[str, int, str]]:
        """Return state, error code and error text of every version."""
        request = spec(protos.get_model_status_pb2.GetModelStatusRequest(), name)
        try:
            answer = self.models.GetModelStatus(request, timeout=SECONDS)
        except grpc.RpcError as error:
            if error.code() is Code.NOT_FOUND:
                return {}
            raise
        names = protos.get_model_status_pb2.ModelVersionStatus.State
        return {
            entry.version: (names.Name(entry.state), entry.status.error_code, entry.status.error_message) for entry in answer.model_version_status
        }

    def await_states(self, name: str, expected: Mapping[int, str]) -> None:
        """Return when the versions of a model are in these states, whatever the others are in."""
        end = time.monotonic() + SECONDS
        while not expected.items() <= (seen := self.status(name) and self.states(name)).items():
            assert time.monotonic() < end, f"{name} is {self.status(name)}, expected {expected}; seen {seen}"
            time.sleep(0.02)

    # ------------------------------------------------------------------ models

    def publish(self, name: str, versions: Mapping[int | str, str]) -> Path:
        """Put models of `built` under the base path of a model and return it."""
        for version, model in versions.items():
            serving_models.publish(self.built / model, self.home / name, version)
        return self.home / name

    def config(
        self, name: str, *, policy: str = "", labels: Labels | None = None, base_path: Path | None = None, platform: str = "tensorflow"
    ) -> Any:
        """Return a ModelConfig; `policy` is a ServableVersionPolicy as text."""
        message = protos.model_server_config_pb2.ModelConfig(name=name, base_path=str(base_path or self.home / name), model_platform=platform)
        if policy:
            protos.text_format.Parse(policy, message.model_version_policy)
        message.version_labels.update(labels or {})
        return message

    def reload(self, *changes: Any, drop: Sequence[str] = (), timeout: float = SECONDS) -> None:
        """Make the server serve what it serves, with some models added, changed or dropped; a refusal changes nothing."""
        configs = {name: config for name, config in self.configs.items() if name not in drop} | {config.name: config for config in changes}
        self.models.HandleReloadConfigRequest(self.request(*configs.values()), timeout=timeout)
        self.configs = configs

    def configure(self, *changes: Any) -> str:
        """Make the server serve some models more that will not be available soon; return what it says of them."""
        self.configs |= {config.name: config for config in changes}
        with pytest.raises(grpc.RpcError) as refused:
            self.models.HandleReloadConfigRequest(self.request(*self.configs.values()), timeout=1.0)
        assert refused.value.code() in (Code.UNKNOWN, Code.DEADLINE_EXCEEDED)
        return str(refused.value.details())

    def request(self, *configs: Any) -> Any:
        """Return a ReloadConfigRequest of exactly these models."""
        request = protos.model_management_pb2.ReloadConfigRequest()
        request.config.model_config_list.SetInParent()
        request.config.model_config_list.config.extend(configs)
        return request

    @contextmanager
    def serving(self, name: str, versions: Mapping[int | str, str], *, policy: str = "", labels: Labels | None = None) -> Iterator[str]:
        """Publish and serve a model while the block runs; the versions that a specific policy names are awaited, otherwise the latest."""
        self.publish(name, versions)
        config = self.config(name, policy=policy)
        try:
            self.reload(config)
            awaited = config.model_version_policy.specific.versions or [max(int(version) for version in versions)]
            self.await_states(name, dict.fromkeys(awaited, "AVAILABLE"))
            if labels:
                self.reload(self.config(name, policy=policy, labels=labels))
            yield name
        finally:
            self.forget(name)

    def forget(self, *names: str) -> None:
        """Serve models no longer, and remove them."""
        self.reload(drop=names)
        for name in names:
            shutil.rmtree(self.home / name, ignore_errors=True)
