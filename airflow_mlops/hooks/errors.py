"""The one place where `retryable` becomes Airflow's decision to retry or to fail."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from airflow.sdk.exceptions import AirflowFailException

from airflow_mlops.exceptions import MlopsError


@contextlib.contextmanager
def airflow_errors() -> Iterator[None]:
    """Let a retryable error pass, so that Airflow retries by the task's own rules, and turn every other into `AirflowFailException`."""
    try:
        yield
    except MlopsError as error:
        if error.retryable:
            raise
        raise AirflowFailException(f"{type(error).__name__}: {error}") from error
