"""Load on a model server: closed loops that find out how much it can answer, open loops that ask at a given rate whatever it answers.

In an open loop a request's latency counts from the time it was to be sent, so that a server that stalls is charged for those who waited
(Gil Tene's "coordinated omission"). Each function runs in a process of its own (`in_process`), with one event loop and little beside it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import urlsplit

Ask = Callable[[], Awaitable[bytes]]
PREDICT = "/tensorflow.serving.PredictionService/Predict"


class Query(NamedTuple):
    """One request, as bytes: by gRPC (`url` is ``host:port``) or by REST (`url` is the whole ``http://...:predict``)."""

    url: str
    payload: bytes

    @property
    def is_rest(self) -> bool:
        return self.url.startswith("http")


class Sample(NamedTuple):
    """What became of one request: when it was to be sent and when it was done (monotonic seconds), and its answer or error."""

    due: float
    done: float
    answer: bytes | None
    error: str = ""

    @property
    def latency(self) -> float:
        return self.done - self.due


def in_process() -> ProcessPoolExecutor:
    """Return one fresh process that runs what is submitted, one after the other."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def once(query: Query) -> bytes:
    """Return the answer to a query."""

    async def run(asks: list[Ask]) -> bytes:
        return await asks[0]()

    answer: bytes = _with_clients([query], run)
    return answer


def closed_loop(query: Query, num_clients: int, seconds: float) -> float:
    """Return how many requests per second `num_clients` get answered, each asking again as soon as it has its answer."""

    async def run(asks: list[Ask]) -> float:
        await asyncio.gather(*(ask() for ask in asks))
        began, end, counts = time.perf_counter(), time.perf_counter() + seconds, [0] * len(asks)

        async def client(number: int) -> None:
            while time.perf_counter() < end:
                await asks[number]()
                counts[number] += 1

        await asyncio.gather(*(client(number) for number in range(len(asks))))
        return sum(counts) / (time.perf_counter() - began)

    return _with_clients([query] * num_clients, run)


def open_loop(queries: list[Query], rate: float, seconds: float, num_connections: int = 64) -> list[list[Sample]]:
    """Ask each query `rate` times a second for `seconds`, evenly, and return its samples; a late request is asked all the same."""

    async def run(asks: list[Ask]) -> list[list[Sample]]:
        samples: list[list[Sample]] = [[] for _ in queries]
        await asyncio.gather(*(ask() for ask in asks))
        began = time.monotonic() + 0.1
        tasks: set[asyncio.Task[None]] = set()

        async def one(which: int, ask: Ask, due: float) -> None:
            try:
                answer, error = await ask(), ""
            except Exception as problem:
                answer, error = None, f"{type(problem).__name__}: {problem}"
            samples[which].append(Sample(due, time.monotonic(), answer, error))

        for number in range(int(rate * seconds)):
            due = began + number / rate
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            for which in range(len(queries)):
                ask = asks[which * num_connections + number % num_connections]
                task = asyncio.create_task(one(which, ask, due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        return samples

    return _with_clients([query for query in queries for _ in range(num_connections)], run)


def _with_clients(queries: list[Query], run: Callable[[list[Ask]], Awaitable[Any]]) -> Any:
    """Run `run` with one way to ask per query; gRPC shares a channel per address, REST has a connection each."""
    import grpc
    import uvloop

    async def main() -> Any:
        channels = {query.url: grpc.aio.insecure_channel(query.url) for query in queries if not query.is_rest}
        try:
            return await run([_Rest(query).ask if query.is_rest else _by_grpc(channels[query.url], query.payload) for query in queries])
        finally:
            for channel in channels.values():
                await channel.close()

    return uvloop.run(main())


def _by_grpc(channel: Any, payload: bytes) -> Ask:
    call = channel.unary_unary(PREDICT)

    async def ask() -> bytes:
        answer: bytes = await call(payload, timeout=20)
        return answer

    return ask


class _Rest:
    """One connection that asks one query again and again; as little HTTP as that needs, because it shares the cores with the server."""

    def __init__(self, query: Query) -> None:
        parts = urlsplit(query.url)
        head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-length: {len(query.payload)}\r\n\r\n"
        self._address = (parts.hostname, parts.port)
        self._request = head.encode() + query.payload
        self._turn = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> bytes:
        async with self._turn:
            if self._streams is None:
                self._streams = await asyncio.open_connection(*self._address)
            reader, writer = self._streams
            try:
                writer.write(self._request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                body = await reader.readexactly(length)
            except (OSError, asyncio.IncompleteReadError):
                self._streams = None
                raise
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{head[:40]!r} {body[:200]!r}")
            return body
