"""Connection type ``tf_serving``: a model server that speaks TensorFlow Serving's protocol, with all its replicas."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.sdk.log import mask_secret

from airflow_mlops.exceptions import MlopsError, ServingError, SpecError
from airflow_mlops.hooks.errors import tested

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_mlops.serving.client import ServingClient
    from airflow_mlops.serving.endpoint import ConnectionFields
    from airflow_mlops.serving.fleet import ServingFleet


class TFServingHook(BaseHook):
    """Opens clients for all replicas of the model server that a connection names.

    Connection fields: `host` and `port` are the gRPC address of a single replica; several replicas stand in the extra `replicas`, a list of
    ``{"grpc": "host:port", "rest": "http://host:port"}``, instead. On Kubernetes these are the pods' own addresses, for a Service answers for
    whichever pod it likes. REST, the extra `rest_url` (``http://serving:8501``) of a single replica, may be left out: only who asks for
    predictions of JSON rows needs it, and the form's button looks whether it answers. Extras: `base_path` (directory the server
    loads versions from, below which each model has its own), `config_path` (the server's ``--model_config_file``), `storage_options` (what
    fsspec needs to write to `base_path`, where that is an object store), `deadline_seconds` of each call (10: a reload answers when each new
    model is available, or shortly before that time), `unsafe_models_allowed` (false; whether models that run Python or reach files may be
    published there), and for TLS `tls`, `ca_cert`, `client_cert`, `client_key` (PEM text, or the path of a file with it), `tls_server_name`,
    and `plain_rest_allowed` (false), which lets a REST URL be http:// all the same: TensorFlow Serving's own has no TLS.
    """

    conn_name_attr = "tf_serving_conn_id"
    default_conn_name = "tf_serving_default"
    conn_type = "tf_serving"
    hook_name = "TensorFlow Serving"

    def __init__(self, tf_serving_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.tf_serving_conn_id = tf_serving_conn_id

    def extra(self, name: str) -> str:
        """Return a required extra of the connection; raise `SpecError` naming it when it is not set."""
        return str(self._fields(self.get_connection(self.tf_serving_conn_id)).required(name))

    def base_path(self, model: str) -> str:
        """Return where a model's versions lie: publishing and rollout must mean the same place, and for an object store two slashes are another."""
        return f"{self.extra('base_path').rstrip('/')}/{model}"

    def storage_options(self) -> dict[str, Any]:
        """Return what fsspec needs to reach the base path, nothing for a directory; raise `SpecError` when it is no JSON object."""
        options = self._fields(self.get_connection(self.tf_serving_conn_id)).options("storage_options")
        mask_secret(options)
        return options

    def unsafe_models_allowed(self) -> bool:
        """Return whether this server may be given SavedModels that run Python or reach files; raise `SpecError` when it is no bool."""
        return self._fields(self.get_connection(self.tf_serving_conn_id)).switch("unsafe_models_allowed")

    def get_conn(self) -> ServingFleet:
        """Return clients for all replicas, with a deadline on every call; raise `SpecError` naming the field that is missing or wrong."""
        return self._open(self.get_connection(self.tf_serving_conn_id))

    async def aget_conn(self) -> ServingFleet:
        """Return clients from a trigger, whose event loop must not wait for the certificates."""
        return await asyncio.to_thread(self._open, await self.aget_connection(self.tf_serving_conn_id))

    def _open(self, connection: Connection) -> ServingFleet:
        endpoint = self._fields(connection).endpoint()
        if endpoint.tls and endpoint.tls.client_key:
            mask_secret(endpoint.tls.client_key)
        return endpoint.open()

    def _fields(self, connection: Connection) -> ConnectionFields:
        from airflow_mlops.serving.endpoint import ConnectionFields

        name, extra = f"Connection {self.tf_serving_conn_id!r}", connection.extra_dejson
        if not isinstance(extra, dict):
            raise SpecError(f'{name} has extras that are no JSON object. Write them as {{"base_path": "/models", ...}}.')
        return ConnectionFields(name, connection.host, connection.port, extra)

    def test_connection(self) -> tuple[bool, str]:
        """Say which replicas answer, by gRPC and, where it has a URL, by REST, for the button in Airflow's connection form."""

        def said(replica: ServingClient) -> str:
            try:
                replica.check()
            except MlopsError as error:
                return str(error)
            return ""

        def ask() -> str:
            with self.get_conn() as fleet:
                problems = fleet.ask_all(said)
            words = " ".join(problem or f"The replica {address} answers." for address, problem in problems.items())
            if any(problems.values()):
                raise ServingError(words)
            return words

        return tested(ask)
