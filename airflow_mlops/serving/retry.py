"""Asking again: only what has no effect, only after a failure that passes, and never beyond the one deadline of the call."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc
import httpx

from airflow_mlops.serving.tls import distrusted

T = TypeVar("T")
NUM_ATTEMPTS = 4  # a connection that was just dropped is there again in under a second; what lasts longer is for those who poll or retry tasks
FIRST_PAUSE_SECONDS = 0.1


def call(
    attempt: Callable[[float], T],
    deadline_seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    draw: Callable[[], float] = random.random,
) -> T:
    """Return what `attempt` returns, which gets the seconds that are left of the deadline; raise its last error.

    `clock` gives seconds, `draw` a number from 0 to 1.
    """
    end = clock() + deadline_seconds
    for pause in _pauses(draw):
        try:
            return attempt(end - clock())
        except (grpc.RpcError, httpx.HTTPError) as error:
            if not passes(error) or clock() + pause >= end:
                raise
        sleep(pause)
    return attempt(end - clock())


def passes(error: Exception) -> bool:
    """Return whether the server was away for the moment, and no deadline had passed."""
    if isinstance(error, grpc.RpcError):
        return error.code() is grpc.StatusCode.UNAVAILABLE and not distrusted(error.details() or "")
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == httpx.codes.SERVICE_UNAVAILABLE
    return isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError) and not distrusted(str(error))


def _pauses(draw: Callable[[], float]) -> Iterator[float]:
    """Yield twice as much each time, by chance up to half of it less: clients that failed together shall not come back together."""
    for number in range(NUM_ATTEMPTS - 1):
        yield FIRST_PAUSE_SECONDS * 2**number * (1 - draw() / 2)
