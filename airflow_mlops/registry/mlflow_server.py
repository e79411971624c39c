"""The address of MLflow, how it is called, and what its failures mean.

MLflow's client is configured by environment variables alone, so their defaults are set here before it is imported; what the caller's
environment says already, holds. They keep telemetry and progress bars off and MLflow's patience within a task's: its own 7 retries take
minutes. The timeout of 120 s per request stays, because a large file may take as long; a server that is not there, or hangs, is noticed
within `PROBE_SECONDS` by the health request that precedes every operation. One that answers that and hangs in its database costs three times
the timeout. The client repeats a request whose answer was lost or late, also one that was applied: what must not happen twice is looked for
afterwards.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

for _name, _default in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}.items():
    os.environ.setdefault(_name, _default)

from mlflow import MlflowClient  # noqa: E402 - reads the environment above when imported
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.utils.credentials import get_default_host_creds  # noqa: E402
from mlflow.utils.rest_utils import http_request  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402

from airflow_mlops.exceptions import ModelNotFound, RegistryError, RegistryUnavailable, SpecError  # noqa: E402

__all__ = ["MlflowException", "MlflowServer"]

PROBE_SECONDS = 5
SQLITE = "sqlite:///"
# INTERNAL_ERROR is also what MLflow's client says of a connection that failed.
TRANSIENT = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED"}


class MlflowServer:
    """The address of MLflow and how it is called: every failure in `calls` becomes an error of this package."""

    def __init__(self, tracking_uri: str) -> None:
        if not tracking_uri.startswith(("http://", "https://", SQLITE)):
            raise SpecError(f"{_public(tracking_uri)!r} is no tracking URI: expected http://, https:// or sqlite:///.")
        self.tracking_uri = tracking_uri

    @property
    def database(self) -> Path | None:
        """The SQLite file, or None for a server."""
        if not self.tracking_uri.startswith(SQLITE):
            return None
        return Path(self.tracking_uri.removeprefix(SQLITE).partition("?")[0]).absolute()

    @cached_property
    def _client(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri, registry_uri=self.tracking_uri)

    @contextlib.contextmanager
    def calls(self) -> Iterator[MlflowClient]:
        """Yield MLflow's client; raise `RegistryUnavailable`, `ModelNotFound` or `RegistryError` for what MLflow says, without credentials."""
        try:
            self._probe()
            yield self._client
        except MlflowException as error:
            raise self._translated(error) from error
        except (OSError, SQLAlchemyError, sqlite3.Error) as error:  # OSError is the base of the errors of requests, too
            raise self._unavailable(error) from error

    def _probe(self) -> None:
        if self.database is None:
            credentials = get_default_host_creds(self.tracking_uri)  # type: ignore[no-untyped-call]
            http_request(credentials, "/health", "GET", max_retries=0, timeout=PROBE_SECONDS)  # type: ignore[no-untyped-call]
            return
        self.database.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.database, timeout=PROBE_SECONDS)) as connection:
            connection.execute("PRAGMA schema_version")  # MLflow itself would retry an unusable file for 100 s

    def _translated(self, error: MlflowException) -> RegistryError:
        if error.error_code in TRANSIENT:
            return self._unavailable(error)
        said = f"MLflow at {_public(self.tracking_uri)} refused ({error.error_code}): {self._redacted(error)}"
        return ModelNotFound(said) if error.error_code == "RESOURCE_DOES_NOT_EXIST" else RegistryError(said)

    def _unavailable(self, error: Exception) -> RegistryUnavailable:
        return RegistryUnavailable(
            f"MLflow at {_public(self.tracking_uri)} did not answer: {type(error).__name__}: {self._redacted(error)}. "
            "Check that it runs and that this machine reaches it; then run the task again."
        )

    def _redacted(self, error: Exception) -> str:
        credentials, at, _ = urlsplit(self.tracking_uri).netloc.rpartition("@")
        return str(error).replace(credentials + at, "").strip() if at else str(error).strip()


def _public(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
