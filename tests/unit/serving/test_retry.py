"""When it is asked again is decided here with a clock of the test's own; that real servers are, `test_client` shows."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest

from airflow_mlops.serving import retry


class Refused(grpc.RpcError):
    """What gRPC raises for a code."""

    def __init__(self, code: grpc.StatusCode, details: str = "") -> None:
        super().__init__(code)
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


def answered(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("refused", request=httpx.Request("GET", "http://h"), response=httpx.Response(status))


AWAY = Refused(grpc.StatusCode.UNAVAILABLE)


class Server:
    """Fails with the errors given, then answers; every attempt takes `seconds` of the test's clock."""

    def __init__(self, *failures: Exception, seconds: float = 0.0) -> None:
        self.failures, self.seconds, self.now, self.left = list(failures), seconds, 1000.0, list[float]()

    def attempt(self, left: float) -> str:
        self.left.append(left)
        self.now += self.seconds
        if self.failures:
            raise self.failures.pop(0)
        return "answer"

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def ask(self, deadline_seconds: float = 10.0, draw: Callable[[], float] = lambda: 0.0) -> str:
        return retry.call(self.attempt, deadline_seconds, clock=lambda: self.now, sleep=self.sleep, draw=draw)


def test_what_passes_is_asked_again_after_ever_longer_pauses_and_each_time_with_what_is_left() -> None:
    server = Server(AWAY, answered(503), httpx.ConnectError("refused"), seconds=0.01)
    assert server.ask() == "answer"
    assert server.left == pytest.approx([10.0, 9.89, 9.68, 9.27])


def test_it_is_asked_four_times_at_most() -> None:
    server = Server(*[AWAY] * 9)
    with pytest.raises(Refused):
        server.ask()
    assert len(server.left) == 4


@pytest.mark.parametrize(
    "failure",
    [
        Refused(grpc.StatusCode.DEADLINE_EXCEEDED),
        Refused(grpc.StatusCode.INVALID_ARGUMENT),
        Refused(grpc.StatusCode.INTERNAL),
        Refused(grpc.StatusCode.UNAVAILABLE, "Ssl handshake failed: CERTIFICATE_VERIFY_FAILED"),
        httpx.ReadTimeout("too late"),
        httpx.ConnectTimeout("too late"),
        answered(504),
        httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
    ],
    ids=repr,
)
def test_what_does_not_pass_is_asked_once(failure: Exception) -> None:
    server = Server(failure)
    with pytest.raises(type(failure)):
        server.ask()
    assert len(server.left) == 1


@pytest.mark.parametrize("failure", [httpx.ReadError("reset"), httpx.RemoteProtocolError("gone"), httpx.WriteError("reset")], ids=repr)
def test_a_connection_that_broke_is_made_anew(failure: Exception) -> None:
    assert Server(failure).ask() == "answer"


@pytest.mark.parametrize(("deadline", "attempts"), [(0.05, 1), (0.15, 2), (0.35, 3), (0.75, 4)])
def test_no_attempt_begins_after_the_deadline(deadline: float, attempts: int) -> None:
    server = Server(*[AWAY] * 9)
    with pytest.raises(Refused):
        server.ask(deadline)
    assert len(server.left) == attempts
    assert server.now <= 1000.0 + deadline


def test_an_attempt_that_used_the_deadline_up_is_the_last() -> None:
    server = Server(AWAY, seconds=10.0)
    with pytest.raises(Refused):
        server.ask(10.0)
    assert len(server.left) == 1


def test_pauses_differ_by_chance_by_up_to_a_half() -> None:
    draws: list[Any] = [lambda: 0.0, lambda: 1.0, random.Random(1).random]
    pauses = []
    for draw in draws:
        server = Server(AWAY)
        server.ask(draw=draw)
        pauses.append(round(server.now - 1000.0, 3))
    assert pauses[:2] == [0.1, 0.05]
    assert 0.05 < pauses[2] < 0.1
