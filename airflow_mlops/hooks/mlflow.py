"""Connection type ``mlflow``: the tracking server and its model registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseHook

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_mlops.registry.mlflow import MlflowRegistry

TOKEN = "MLFLOW_TRACKING_TOKEN"


class MlflowHook(BaseHook):
    """Finds the MLflow server that a connection names.

    Connection fields: `host` is the tracking URI (``http://mlflow:5000``), `password` a bearer token, optional. The token reaches MLflow only
    through the environment of the process that needs it, never through a spec file or a log.
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
        return self._token(self.get_connection(self.mlflow_conn_id))

    def get_conn(self) -> MlflowRegistry:
        """Return the registry of this connection, for use in this process."""
        return self.open(self.get_connection(self.mlflow_conn_id))

    @classmethod
    def open(cls, connection: Connection) -> MlflowRegistry:
        """Return the registry that `connection` names; from now on this process authenticates with its token, and with no other."""
        import os

        os.environ.pop(TOKEN, None)  # that of another connection
        os.environ.update(cls._token(connection))
        from airflow_mlops.registry.mlflow import MlflowRegistry

        return MlflowRegistry(cls._uri(connection))

    @staticmethod
    def _uri(connection: Connection) -> str:
        from airflow_mlops.exceptions import SpecError

        if not connection.host:
            raise SpecError(f"Connection {connection.conn_id!r} has no host; put the tracking URI there, for instance http://mlflow:5000.")
        return connection.host

    @staticmethod
    def _token(connection: Connection) -> dict[str, str]:
        return {TOKEN: connection.password} if connection.password else {}

    def test_connection(self) -> tuple[bool, str]:
        """Say whether the server answers, for the button in Airflow's connection form."""
        from airflow_mlops.exceptions import MlopsError, ModelNotFound

        try:
            self.get_conn().get_by_alias("airflow-mlops-connection-test", "champion")
        except ModelNotFound:
            return True, f"MLflow at {self.tracking_uri} answers."
        except MlopsError as error:
            return False, str(error)
        return True, f"MLflow at {self.tracking_uri} answers."
