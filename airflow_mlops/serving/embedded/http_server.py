"""uvicorn in the front's own loop, with what it lacks: limits on a request's head, an end of what is done for a client that goes away, and
errors in JSON."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
import socket
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
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
    """Closes connections that never get to the end of a request's head: each costs a descriptor, and a client can open thousands.

    Whatever is done for a request ends with its connection.
    """

    def __init__(self, *, head_seconds: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._head_seconds = head_seconds
        self._head: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._served: asyncio.Task[Any] | None = None
        self.app: Any = self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._served = asyncio.current_task()
        try:
            await self.config.loaded_app(scope, receive, send)
        except asyncio.CancelledError:
            if not self.transport.is_closing():
                raise  # the server stops; a client that went away is no news

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            # HTTP/2 is offered by some clients with every request; httptools would take the body for the other protocol's.
            data = _UPGRADE.sub(b"\r\nx-upgrade:", data)
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head is not None and self._head_bytes > _MAX_HEAD:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"The request's head has more than {_MAX_HEAD} bytes")

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, as everything else is refused; uvicorn would answer with text."""
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _refuse(self, status: HTTPStatus, words: str) -> None:
        body = json.dumps({"error": words}).encode()
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        self.transport.close()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)
        if self._served is not None:
            self._served.cancel()  # uvicorn tells only those who wait for the rest of a body

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._head_came()
        self._head_bytes = 0  # not when a head begins: the bytes it begins with are counted by then
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_came()
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
        raise ServingError(f"Cannot listen for REST on {host}:{port}: {error}. Choose a free --rest_api_port or stop the other server.") from error
    return sock
