"""Connection type ``mlflow``: the tracking server and its model registry."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from airflow.sdk import BaseHook

from airflow_mlops.hooks.errors import tested

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_mlops.registry.mlflow import MlflowRegistry

TOKEN, USERNAME, PASSWORD = "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


class MlflowHook(BaseHook):
    """Finds the MLflow server that a connection names.

    Connection fields: `host` is the tracking URI (``http://mlflow:5000``), or its parts are host, port and schema (the scheme, or the path).
    `password` alone is a bearer token, with `login` it is that user's password (HTTP basic authentication, as in ``mlflow server --app-name
    basic-auth``); both are optional. They reach MLflow only through the environment of the process that needs them, never through a spec file
    or a log.
    """

    conn_name_attr = "mlflow_conn_id"
    default_conn_name = "mlflow_default"
    conn_type = "mlflow"
    hook_name = "MLflow"

    def __init__(self, mlflow_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.mlflow_conn_id = mlflow_conn_id

    @property
    def tracking_uri(self) -> str:
        """The tracking URI, without credentials."""
        return self._uri(self.get_connection(self.mlflow_conn_id))

    def environment(self) -> dict[str, str]:
        """Return the environment variables by which MLflow's client authenticates."""
        return self._credentials(self.get_connection(self.mlflow_conn_id))

    def get_conn(self) -> MlflowRegistry:
        """Return the registry of this connection, for use in this process."""
        return self.open(self.get_connection(self.mlflow_conn_id))

    @classmethod
    def open(cls, connection: Connection) -> MlflowRegistry:
        """Return the registry that `connection` names; from now on this process authenticates with its credentials, and with no others."""
        import os

        for name in (TOKEN, USERNAME, PASSWORD):
            os.environ.pop(name, None)  # that of another connection
        os.environ.update(cls._credentials(connection))
        from airflow_mlops.registry.mlflow import MlflowRegistry

        return MlflowRegistry(cls._uri(connection))

    @staticmethod
    def _uri(connection: Connection) -> str:
        """Put together what Airflow takes apart when it reads a connection from a URL, such as ``mlflow://https://mlflow.example.org:5000/path``."""
        from airflow_mlops.exceptions import SpecError

        if not connection.host:
            raise SpecError(f"Connection {connection.conn_id!r} has no host; put the tracking URI there, for instance http://mlflow:5000.")
        host, schema = connection.host, connection.schema or ""
        if "://" not in host:
            host = f"{schema if schema in ('http', 'https') else 'http'}://{host}"
        port = f":{connection.port}" if connection.port else ""
        return f"{host}{port}{f'/{schema}' if schema not in ('', 'http', 'https') else ''}"

    @staticmethod
    def _credentials(connection: Connection) -> dict[str, str]:
        if connection.login:
            return {USERNAME: connection.login, PASSWORD: connection.password or ""}
        return {TOKEN: connection.password} if connection.password else {}

    def test_connection(self) -> tuple[bool, str]:
        """Say whether the server answers, for the button in Airflow's connection form."""
        return tested(self._ask)

    def _ask(self) -> str:
        from airflow_mlops.exceptions import ModelNotFound

        with contextlib.suppress(ModelNotFound):  # there need not be any
            self.get_conn().get_by_alias("airflow-mlops-connection-test", "champion")
        return f"MLflow at {self.tracking_uri} answers."
