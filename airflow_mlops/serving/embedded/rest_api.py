"""The REST interface: ``/v1/models/NAME[/versions/N|/labels/L]`` with ``:predict``, ``:classify`` and ``:regress`` by POST, status and
``/metadata`` by GET, and Prometheus metrics. A request's JSON is read, and its answer's written, by the model's own process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import zlib
from typing import Any, NamedTuple
from urllib.parse import unquote

import grpc
from starlette.types import Receive, Scope, Send

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded.frames import Kind
from airflow_mlops.serving.embedded.gateway import Gateway, Target
from airflow_mlops.serving.embedded.metrics import Metrics
from airflow_mlops.serving.embedded.refusal import MAX_WORDS, Refusal, invalid, precondition

log = logging.getLogger(__name__)
_CHOICE = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
# The path ignores case, the method word does not (http_rest_api_util.cc).
_ASK = re.compile(rf"(?i:/v1/models)/(?P<name>[^/:]+)(?i:{_CHOICE}):(?P<method>classify|regress|predict)", re.ASCII)
_LOOK = re.compile(rf"(?i:/v1/models)(?:/(?P<name>[^/:]+))?(?i:{_CHOICE})(?P<metadata>(?i:/metadata))?", re.ASCII)
_ORIGIN = re.compile(rb"https?://")
_KINDS = {"predict": Kind.REST_PREDICT, "classify": Kind.REST_CLASSIFY, "regress": Kind.REST_REGRESS}
_PART = 256 << 10
_CORS = [  # http_rest_api_util.cc
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
]
_JSON, _TEXT = b"application/json", b"text/plain; version=0.0.4; charset=utf-8"


class RestOptions(NamedTuple):
    """Seconds that a request may take to arrive, to be answered and to be taken; most bytes of its body; the path of the metrics, if any.

    With `cors`, answers say that pages of any origin may read them.
    """

    timeout_seconds: float = 30.0
    max_body_bytes: int = 256 << 20
    metrics_path: str | None = None
    cors: bool = False


class TooLarge(Refusal):
    """A body of more bytes than the server takes."""

    http_status = 413

    def __init__(self, limit: int) -> None:
        super().__init__(grpc.StatusCode.RESOURCE_EXHAUSTED, f"The request's body has more than {limit} bytes (--rest_max_body_bytes)")


class RestApi:
    """The ASGI application."""

    def __init__(self, gateway: Gateway, metrics: Metrics, options: RestOptions) -> None:
        self._gateway = gateway
        self._metrics = metrics
        self._options = options
        self._unzipping = asyncio.Semaphore(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["raw_path"].decode("latin-1")
        asked = path + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")  # which no path of the API has
        until = time.monotonic() + self._options.timeout_seconds
        kind, headers = _JSON, []
        try:
            if method == "GET" and path == self._options.metrics_path:
                status, body, kind = 200, self._metrics.text().encode(), _TEXT
            elif not path.lower().startswith("/v1/"):
                status, body = 404, _error(f"Not found: {method} {path}. Models are under /v1/models/.")
            else:
                headers = list(_CORS) if self._options.cors else []
                status, body = 200, await self._answer(method, asked, scope, receive, until)
        except Refusal as refusal:
            status, body = refusal.http_status, _error(str(refusal))
            headers += [(b"connection", b"close")] if status in (413, 504) else []  # what was not read cannot be answered again
        except asyncio.CancelledError:
            status, body = 503, _error("The server is stopping")
        except Exception as error:
            log.exception("%s %s failed", method, path)
            status, body = 500, _error(f"{type(error).__name__}: {error}")
        headers += [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        async with asyncio.timeout(self._options.timeout_seconds):  # a client that does not read must not keep the answer for ever
            await send({"type": "http.response.start", "status": status, "headers": headers})
            for start in range(0, 0 if method == "HEAD" else len(body), _PART):  # each part waits until the last one is taken
                await send({"type": "http.response.body", "body": body[start : start + _PART], "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _answer(self, method: str, path: str, scope: Scope, receive: Receive, until: float) -> bytes:
        if method == "POST" and (match := _ASK.fullmatch(path)):
            target, kind = _target(match), _KINDS[match["method"]]
            body = await self._body(scope, receive, until)
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    return await self._gateway.ask(kind, target, body, until - time.monotonic())
            except TimeoutError as error:
                words = f"Model {target.name} did not answer within {self._options.timeout_seconds:g} s (--rest_api_timeout_in_ms)"
                raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, words) from error
        if method == "GET" and (match := _LOOK.fullmatch(path)):
            target = _target(match)
            return _message_json(self._metadata(target) if match["metadata"] else _plain(self._gateway.status(target.name, target.version)))
        if method == "OPTIONS":
            if _ORIGIN.search(_header(scope, b"origin")):
                return b""
            raise precondition("Origin header is missing in CORS preflight")
        raise invalid(f"Malformed request: {method} {path}")

    def _metadata(self, target: Target) -> Any:
        version, signatures = self._gateway.signatures(target)
        spec = {"name": target.name, "signature_name": "", "version": str(version)}
        return {"model_spec": spec, "metadata": {"signature_def": _plain(signatures)}}

    async def _body(self, scope: Scope, receive: Receive, until: float) -> bytes:
        """Return the whole body; raise `Refusal` if it comes too slowly or is too large."""
        limit, parts, size = self._options.max_body_bytes, [], 0
        if (length := _header(scope, b"content-length")).isdigit() and int(length) > limit:
            raise TooLarge(limit)
        try:
            async with asyncio.timeout(until - time.monotonic()):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(grpc.StatusCode.CANCELLED, "The client went away")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise TooLarge(limit)
                    if not message.get("more_body"):
                        break
        except TimeoutError as error:
            words = f"The request did not arrive within {self._options.timeout_seconds:g} s; {size} bytes of its body did"
            raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, words) from error
        body = b"".join(parts)
        encoding = _header(scope, b"content-encoding").decode("latin-1").strip().lower()
        if encoding not in ("", "identity", "gzip"):
            raise invalid(f"Content-encoding {encoding!r} is not supported; send the body as it is, or as gzip")
        if encoding != "gzip":
            return body
        async with self._unzipping:  # one at a time, and beside the loop: a small body may be large inside
            return await asyncio.to_thread(_unzipped, body, limit)


def _unzipped(body: bytes, limit: int) -> bytes:
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = unpacker.decompress(body, limit)
    except zlib.error as error:
        raise invalid(f"The body is not gzip, as its content-encoding says: {error}") from error
    if unpacker.unconsumed_tail:
        raise TooLarge(limit)
    if not unpacker.eof or unpacker.unused_data:
        raise invalid("The body is not one whole gzip stream")
    return plain


def _header(scope: Scope, wanted: bytes) -> bytes:
    return next((value for name, value in scope["headers"] if name == wanted), b"")


def _message_json(answer: Any) -> bytes:
    return json.dumps(answer, indent=1).encode()


def _plain(message: Any) -> Any:
    return protos.json_format.MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _target(match: re.Match[str]) -> Target:
    name, version, label = match["name"], match["version"], match["label"]
    if not name:
        raise invalid("Missing model name in request.")
    if version is not None and (len(version) > 19 or int(version) >= 2**63):
        raise invalid(f"Failed to convert version: {version} to numeric.")
    return Target(unquote(name), None if version is None else int(version), None if label is None else unquote(label))


def _error(words: str) -> bytes:
    return json.dumps({"error": words[:MAX_WORDS]}).encode()
