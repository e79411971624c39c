"""The files that flags name, in protocol buffers' text format: batching, TLS and monitoring.

Their messages are not in the ``tensorflow-serving-api`` package, so they are described here, by the names and numbers of
servables/tensorflow/session_bundle_config.proto, config/ssl_config.proto and config/monitoring_config.proto.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

from airflow_mlops.exceptions import SpecError
from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded.orders import BatchingParameters

_FIELD = descriptor_pb2.FieldDescriptorProto
_INT, _BOOL, _STRING, _DOUBLE = (f".google.protobuf.{kind}Value" for kind in ("Int64", "Bool", "String", "Double"))
_MESSAGES: Mapping[str, Mapping[str, tuple[int, Any]]] = {
    "BatchingParameters": {
        "max_batch_size": (1, _INT),
        "batch_timeout_micros": (2, _INT),
        "max_enqueued_batches": (3, _INT),
        "num_batch_threads": (4, _INT),
        "thread_pool_name": (5, _STRING),
        "allowed_batch_sizes": (6, [_FIELD.TYPE_INT64]),
        "pad_variable_length_inputs": (7, _FIELD.TYPE_BOOL),
        "enable_large_batch_splitting": (8, _BOOL),
        "max_execution_batch_size": (9, _INT),
        "enable_priority_queue": (10, _BOOL),
        "batching_rate": (11, _DOUBLE),
    },
    "SSLConfig": {
        "server_key": (1, _FIELD.TYPE_STRING),
        "server_cert": (2, _FIELD.TYPE_STRING),
        "custom_ca": (3, _FIELD.TYPE_STRING),
        "client_verify": (4, _FIELD.TYPE_BOOL),
    },
    "PrometheusConfig": {"enable": (1, _FIELD.TYPE_BOOL), "path": (2, _FIELD.TYPE_STRING)},
    "MonitoringConfig": {"prometheus_config": (1, ".airflow_mlops.serving.PrometheusConfig")},
}
_WITHOUT_EFFECT = ("thread_pool_name", "enable_priority_queue", "batching_rate")
DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"


class Tls(NamedTuple):
    """PEM texts for the gRPC port; `custom_ca` verifies clients, who must show a certificate if `client_verify`."""

    server_key: str
    server_cert: str
    custom_ca: str
    client_verify: bool


def batching_parameters(path: Path | None) -> BatchingParameters:
    """Return the parameters in a file, our defaults for what it does not name; raise `SpecError`."""
    if path is None:
        return BatchingParameters()
    message = _read(path, "BatchingParameters")
    values = {field.name: getattr(value, "value", value) for field, value in message.ListFields() if field.name not in _WITHOUT_EFFECT}
    try:
        return BatchingParameters(**{**values, "allowed_batch_sizes": tuple(message.allowed_batch_sizes)})
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def tls(path: Path) -> Tls:
    """Return the keys and certificates in a file; raise `SpecError`."""
    message = _read(path, "SSLConfig")
    if not (message.server_key and message.server_cert):
        raise SpecError(f"{path} needs server_key and server_cert, both as PEM text.")
    if message.client_verify and not message.custom_ca:
        raise SpecError(f"{path} asks for client_verify without a custom_ca to verify clients with. Add it as PEM text.")
    return Tls(message.server_key, message.server_cert, message.custom_ca, message.client_verify)


def metrics_path(path: Path | None) -> str | None:
    """Return the path under which metrics are to be shown, None if they are not; raise `SpecError`."""
    config = _read(path, "MonitoringConfig").prometheus_config if path else None
    if config is None or not config.enable:
        return None
    return str(config.path or DEFAULT_METRICS_PATH)


def _read(path: Path, name: str) -> Any:
    message = _classes()[name]()
    try:
        protos.text_format.Parse(path.read_bytes(), message)
    except (OSError, UnicodeDecodeError, protos.text_format.ParseError) as error:
        raise SpecError(f"{path} is not a {name} in protobuf text format: {error}. Correct the file or the flag that names it.") from error
    return message


@functools.cache
def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="airflow_mlops/serving.proto", package="airflow_mlops.serving", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            repeated = isinstance(kind, list)
            added = message.field.add(name=field, number=number, label=_FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL)
            if isinstance(kind, str):
                added.type, added.type_name = _FIELD.TYPE_MESSAGE, kind
            else:
                added.type = kind[0] if repeated else kind
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}")) for name in _MESSAGES}
