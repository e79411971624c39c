"""An S3 server for tests: moto's, over real HTTP, with a place to stand between it and its clients."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterable
from typing import Any, Self

from moto.server import ThreadedMotoServer

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Meddler = Callable[[dict[str, Any], Callable[..., Any], App], Iterable[bytes]]


class S3Server:
    """`requests` holds method and path of every request; `meddler` gets each before the server does, and may refuse, alter or kill."""

    def __enter__(self) -> Self:
        self.requests: list[tuple[str, str]] = []
        self.meddler: Meddler | None = None
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        inner = self._server._server.app  # type: ignore[union-attr]

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
            return self.meddler(environ, start_response, inner) if self.meddler else inner(environ, start_response)

        self._server._server.app = app  # type: ignore[union-attr]
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    @property
    def url(self) -> str:
        host, port = self._server.get_host_and_port()
        return f"http://{host}:{port}"

    def options(self, **more: Any) -> dict[str, Any]:
        """Return the storage options of a client that does not try twice."""
        region = {"region_name": "eu-central-1"}
        own = {
            "key": "testing",
            "secret": "testing",
            "endpoint_url": self.url,
            "client_kwargs": region,
            "config_kwargs": {"retries": {"max_attempts": 0}},
        }
        return {**own, **more}


def error(code: str, status: str, message: str = "so said the test", method: str = "") -> Meddler:
    """Return a meddler that answers every request, or those of one method, with an error of S3's."""

    def refuse(environ: dict[str, Any], start_response: Callable[..., Any], inner: App) -> Iterable[bytes]:
        if method not in ("", environ["REQUEST_METHOD"]):
            return inner(environ, start_response)
        start_response(status, [("Content-Type", "application/xml")])
        if environ["REQUEST_METHOD"] == "HEAD":
            return []
        return [f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()]

    return refuse


def killing_after_an_upload(environ: dict[str, Any], start_response: Callable[..., Any], inner: App) -> Iterable[bytes]:
    """Obey every request, and kill the process that sends one with an object."""
    answer = list(inner(environ, start_response))
    if environ["REQUEST_METHOD"] == "PUT":
        found = re.search(r"publisher/(\d+)", environ["HTTP_USER_AGENT"])
        assert found, environ["HTTP_USER_AGENT"]
        os.kill(int(found[1]), signal.SIGKILL)
    return answer
