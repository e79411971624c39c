"""The one place where this package's errors become what Airflow asks for: a retry or a failure, and the answer of a connection's button."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

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


def tested(ask: Callable[[], str]) -> tuple[bool, str]:
    """Return what the button that tests a connection answers: what `ask` says, or why it could not; it runs in the API server."""
    from airflow_mlops.installation import advice

    try:
        return True, ask()
    except ImportError as error:
        return False, f"{error}: the API server cannot try this connection. Run there: pip install '{advice('webserver')}'"
    except MlopsError as error:
        return False, str(error)
