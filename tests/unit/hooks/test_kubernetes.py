"""An API server that is busy is asked again, one that refuses is not."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import ProtocolError

from airflow_mlops.exceptions import ClusterUnavailable
from airflow_mlops.hooks.kubernetes import patiently, refusal


class Server:
    """Raises what it is given, one after the other, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.warnings = list(errors), []  # type: ignore[var-annotated]

    def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "answer"

    def warn(self, *words: Any) -> None:
        self.warnings.append(words)


def test_a_busy_server_is_asked_again_until_it_answers() -> None:
    server = Server(ApiException(status=429), ApiException(status=410), ApiException(status=503), ProtocolError("broken"))
    assert patiently(server, server.warn, pause=0.001) == "answer"
    assert len(server.warnings) == 4


def test_not_for_ever() -> None:
    server = Server(*[ApiException(status=500, reason="Internal Server Error")] * 1000)
    with pytest.raises(ClusterUnavailable, match="did not answer for 0 s: 500 Internal Server Error") as raised:
        patiently(server, server.warn, seconds=0.01, pause=0.001)
    assert raised.value.retryable and 1 <= len(server.warnings) < 20


def test_a_refusal_passes_at_once() -> None:
    server = Server(ApiException(status=403))
    with pytest.raises(ApiException):
        patiently(server, server.warn)
    assert server.warnings == []


def test_a_refusal_is_final_except_for_a_quota_that_others_use_up() -> None:
    assert isinstance(refusal(ApiException(status=403)), AirflowFailException)
    full = ApiException(status=403)
    full.body = 'pods "p" is forbidden: exceeded quota: q'
    assert isinstance(refusal(full), ClusterUnavailable)
