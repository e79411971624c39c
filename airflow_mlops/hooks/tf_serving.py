"""Connection type ``tf_serving``: a model server that speaks TensorFlow Serving's protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseHook

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_mlops.serving.client import ServingClient


class TFServingHook(BaseHook):
    """Opens a client for the model server that a connection names.

    Connection fields: `host` and `port` are the gRPC address; extras `rest_url` (``http://serving:8501``), `base_path` (directory the server
    loads versions from, below which each model has its own), `config_path` (the server's ``--model_config_file``) and `deadline_seconds`
    of each call (10: a reload answers in well under a second, a loaded machine may take a few).
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
        return self._extra(self.get_connection(self.tf_serving_conn_id), name)

    def get_conn(self) -> ServingClient:
        """Return a client with a deadline on every call."""
        return self._client(self.get_connection(self.tf_serving_conn_id))

    async def aget_conn(self) -> ServingClient:
        """Return a client from a trigger, whose event loop must not wait."""
        return self._client(await self.aget_connection(self.tf_serving_conn_id))

    def _client(self, connection: Connection) -> ServingClient:
        from airflow_mlops.exceptions import SpecError
        from airflow_mlops.serving.client import ServingClient

        if not (connection.host and connection.port):
            missing = "port" if connection.host else "host"
            raise SpecError(f"Connection {self.tf_serving_conn_id!r} has no {missing}; give the model server's gRPC address, host and port.")
        deadline = float(connection.extra_dejson.get("deadline_seconds") or 10.0)
        return ServingClient(f"{connection.host}:{connection.port}", self._extra(connection, "rest_url"), deadline_seconds=deadline)

    def _extra(self, connection: Connection, name: str) -> str:
        from airflow_mlops.exceptions import SpecError

        value = connection.extra_dejson.get(name)
        if not value:
            raise SpecError(f"Connection {self.tf_serving_conn_id!r} has no extra {name!r}; set it in Airflow's connection form.")
        return str(value)

    def test_connection(self) -> tuple[bool, str]:
        """Say whether the server answers, for the button in Airflow's connection form."""
        from airflow_mlops.exceptions import MlopsError

        try:
            with self.get_conn() as client:
                client.status("airflow-mlops-connection-test")
        except MlopsError as error:
            return False, str(error)
        return True, "The model server answers."
