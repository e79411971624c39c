"""A reverse proxy for tests, on a thread of its own: it hands the path on as it is, or takes the prefix away."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response

HOPS = {"connection", "content-encoding", "content-length", "keep-alive", "transfer-encoding"}
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]


@contextlib.contextmanager
def proxy(port: int, upstream: str, *, strip: str = "") -> Iterator[str]:
    """Yield the address of a proxy for `upstream` on `port`, which takes the path `strip` off every request."""
    server = uvicorn.Server(uvicorn.Config(_app(upstream, strip), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < end, "the proxy did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def _app(upstream: str, strip: str) -> FastAPI:
    app = FastAPI()

    @app.api_route("/{path:path}", methods=METHODS)
    async def forward(request: Request, path: str) -> Response:
        raw = request.scope["raw_path"].decode().removeprefix(strip)
        url = f"{upstream}{raw}" + (f"?{request.url.query}" if request.url.query else "")
        headers = {name: value for name, value in request.headers.items() if name not in HOPS}
        async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
            answer = await client.request(request.method, url, headers=headers, content=await request.body())
        forwarded = Response(answer.content, answer.status_code)
        for name, value in answer.headers.multi_items():
            if name not in HOPS:
                forwarded.headers.append(name, value)
        return forwarded

    return app
