"""A real MLflow server, and a proxy before it in which its bad days happen."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.servers import free_port


@contextlib.contextmanager
def running_server(home: Path, empty_mlflow: Path | None = None) -> Iterator[SimpleNamespace]:
    """Yield the `uri`, `port` and `process` of an `mlflow server` that keeps everything in `home`, in a process group of its own.

    :param empty_mlflow: a database to begin with, whose tables it need not make.
    """
    if empty_mlflow:
        shutil.copy(empty_mlflow, home / "server.db")
    port = free_port()
    command: list[Any] = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{home}/server.db", "--artifacts-destination", home / "server-artifacts"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # its job runners are slow to start, and not used
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=home, env=environment, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{uri}/health", process, home / "server.log")
        yield SimpleNamespace(uri=uri, port=port, process=process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise TimeoutError(log.read_text())


@dataclass
class Proxy:
    """Passes requests on to the server at `behind`, except where its fields say otherwise.

    Each is by ``(method, end of the path)``. `lost` counts requests that are applied and answered 500 all the same; `late` holds an answer back
    for seconds; `first` is done before a request is passed on, once. `seen` keeps every request that came. With a `token` every request must bring
    that one.
    """

    behind: int
    port: int = 0
    token: str = ""
    lost: dict[tuple[str, str], int] = field(default_factory=dict)
    late: dict[tuple[str, str], float] = field(default_factory=dict)
    first: dict[tuple[str, str], Callable[[], object]] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, about: tuple[str, str]) -> int:
        """Return how many requests came that are about this."""
        return sum(_about(one, about) for one in self.seen)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Pass a request on and answer it, or not."""
        asked = (request.command, request.path.partition("?")[0])
        self.seen.append(asked)
        for about in [about for about in self.first if _about(asked, about)]:
            self.first.pop(about)()
        allowed = not self.token or request.headers.get("Authorization") == f"Bearer {self.token}"
        status, headers, body = self._passed_on(request) if allowed else (401, {}, b"Unauthorized")
        for about, seconds in self.late.items():
            if _about(asked, about):
                self.stopping.wait(seconds)
        for about, num in self.lost.items():
            if _about(asked, about) and num:
                self.lost[about] -= 1
                status, headers, body = 500, {}, b"Internal Server Error"
        with contextlib.suppress(OSError):  # who asked no longer waits
            request.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(body)

    def _passed_on(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        content = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        connection = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=60)
        with contextlib.closing(connection):
            connection.request(request.command, request.path, content, {**request.headers, "Host": f"127.0.0.1:{self.behind}"})
            answer = connection.getresponse()
            return answer.status, {"Content-Type": answer.headers.get("Content-Type", "text/plain")}, answer.read()


def _about(asked: tuple[str, str], about: tuple[str, str]) -> bool:
    return asked[0] == about[0] and asked[1].endswith(about[1])


@contextlib.contextmanager
def proxy(behind: int) -> Iterator[Proxy]:
    """Yield a running proxy before the server on the port `behind`."""
    running = Proxy(behind)

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            running.answer(self)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = handle_any

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        running.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield running
        finally:
            running.stopping.set()
            server.shutdown()
            thread.join()
