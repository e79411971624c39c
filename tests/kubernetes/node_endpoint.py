"""The door of a played node: where the API server fetches the logs of containers, as from a kubelet."""

from __future__ import annotations

import contextlib
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.certificates import Authority
from tests.kubernetes.containers import Log

KNOWN = {"follow", "previous", "sinceSeconds", "sinceTime", "tailLines", "timestamps"}
Find = Callable[[str, str, str, bool], Log | None]  # namespace, pod, container, whether the try before: its log


@contextlib.contextmanager
def node_endpoint(find: Find) -> Iterator[int]:
    """Serve logs over HTTPS on a free port of loopback, which is yielded; those who follow one stay until its container ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, find)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = _context().wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _context() -> ssl.SSLContext:
    signed, context = Authority("a played node").sign("127.0.0.1"), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as directory:  # the key is read from a file alone
        path = Path(directory, "node.pem")
        path.write_text(signed.key + signed.cert)
        context.load_cert_chain(path)
    return context


def _answer(request: BaseHTTPRequestHandler, find: Find) -> None:
    asked = urlsplit(request.path)
    query, parts = dict(parse_qsl(asked.query)), asked.path.strip("/").split("/")
    if parts[0] != "containerLogs" or len(parts) != 4 or query.keys() - KNOWN:
        return request.send_error(400, f"A played node serves logs alone, by {sorted(KNOWN)}")
    log = find(parts[1], parts[2], parts[3], query.get("previous") == "true")
    if log is None:
        return request.send_error(404, f"container {parts[3]} of {parts[1]}/{parts[2]} did not start here")
    request.send_response(200)
    request.send_header("Content-Type", "text/plain")
    request.end_headers()
    with contextlib.suppress(OSError):  # who followed went away
        for at, line in _chosen(log, query):
            request.wfile.write(f"{at:%Y-%m-%dT%H:%M:%S.%f}000Z ".encode() + line if query.get("timestamps") == "true" else line)
    return None


def _chosen(log: Log, query: dict[str, str]) -> Iterator[tuple[datetime, bytes]]:
    lines, since = log.lines(), datetime.min.replace(tzinfo=UTC)
    if "sinceSeconds" in query:
        since = datetime.now(UTC) - timedelta(seconds=int(query["sinceSeconds"]))
    elif "sinceTime" in query:
        since = datetime.fromisoformat(query["sinceTime"])
    first = max(0, len(lines) - int(query["tailLines"])) if "tailLines" in query else 0
    told = log.follow(first) if query.get("follow") == "true" else iter(lines[first:])
    return ((at, line) for at, line in told if at >= since)
