"""uvicorn in the front's own loop, with what it lacks: a limit on how long a request's head may take to arrive."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from airflow_mlops.exceptions import ServingError

GRACE_SECONDS = 5
_MAX_HEAD = 64 << 10
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


class HttpServer(uvicorn.Server):
    """Serves an application until `should_exit` is set; signals are its owner's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HeadLimitProtocol(HttpToolsProtocol):
    """Closes connections that never get to the end of a request's head: each costs a descriptor, and a client can open thousands."""

    def __init__(self, *, head_seconds: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._head_seconds = head_seconds
        self._head: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            # HTTP/2 is offered by some clients with every request; httptools would take the body for the other protocol's.
            data = _UPGRADE.sub(b"\r\nx-upgrade:", data)
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head is not None and self._head_bytes > _MAX_HEAD:
            self.send_400_response("The request's head is too large.")

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_came()
        self._head_bytes = 0
        self._head = self.loop.call_later(self._head_seconds, self.transport.close)

    def _head_came(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


def http_server(application: Any, *, head_seconds: float) -> HttpServer:
    """Return a server for an ASGI `application`; a connection whose request line and headers take longer than `head_seconds` is closed."""
    protocol: Any = functools.partial(HeadLimitProtocol, head_seconds=head_seconds)
    settings = uvicorn.Config(
        application,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # a client's bad requests are no news, and would fill the log as fast as it likes
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
        backlog=2048,
    )
    return HttpServer(settings)


def listener(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address; raise `ServingError` if somebody else has it."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ServingError(f"Can not listen for REST on {host}:{port}: {error}. Choose a free --rest_api_port or stop the other server.") from error
    return sock
