"""The front's side of one model process: asking it, seeing whether it is alive, and knowing how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from typing import Any, NamedTuple

import grpc

from airflow_mlops.serving.embedded.frames import HUNG, AnswerParser, Board, Call, Kind, pack_call
from airflow_mlops.serving.embedded.orders import Order
from airflow_mlops.serving.embedded.refusal import CODES, Refusal, Shortage

_STATUS_SECONDS = 1.0  # how long to wait for the word on how a process ended, once its socket is closed
_MAX_UNSENT = 64 << 20  # bytes; also those of clients that have gone away
LARGE = 1 << 20  # bytes from which a request goes its own way to the process, and waits for other large ones alone
_MAX_LARGE = 512 << 20  # bytes of large requests of one version that may wait, if there is more than one
_CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP)
_MAX_WAITING = 10_000  # requests of one version; more of them could only fill the memory


class Result(NamedTuple):
    """An answer's bytes and the microseconds that the model ran for it."""

    payload: bytes
    run_micros: int


class Lane(asyncio.Protocol):
    """The way of large requests to a process, one at a time, so that they hold up no small ones; answers come by the other."""

    transport: asyncio.Transport | None = None

    def __init__(self) -> None:
        self.turn = asyncio.Semaphore(1)
        self.num_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]


class End(NamedTuple):
    """How a process ended, and whether a request was the reason."""

    reason: str
    by_request: bool = False


class Crashed(Refusal):
    """The process ended because of this very request, as far as can be seen."""


class ModelProcess(asyncio.Protocol):
    """One model version's process. `ready` ends with its serialized signatures or a `Refusal`, `gone` with how it ended."""

    def __init__(self, number: int, order: Order, board: Board) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.order = order
        self.pid = 0
        self.ready: asyncio.Future[bytes] = loop.create_future()
        self.gone: asyncio.Future[End] = loop.create_future()
        self.status: asyncio.Future[int] = loop.create_future()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Result]] = {}
        self._parser = AnswerParser()
        self._board = board
        self._seen = (0, 0)  # its beats at the last look, and at how many looks before it had no more
        self._transport: asyncio.Transport | None = None
        self.lane = Lane()
        self._retired = False
        self._given_up = ""
        batching = order.batching
        self._most = batching.max_enqueued_batches * batching.max_batch_size if batching else _MAX_WAITING

    async def ask(self, kind: Kind, payload: bytes, deadline: float, *, alone: bool = False) -> Result:
        """Return the answer to a client's bytes; raise `Refusal`. `deadline` is monotonic seconds, 0 for none; `alone`: joined with no other."""
        if len(self._waiting) >= self._most:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, f"The queue of {self._name()} is full: {self._most} requests wait")
        if len(payload) <= LARGE:
            transport = self._open(self._transport)
            if transport.get_write_buffer_size() > _MAX_UNSENT:
                raise Refusal(grpc.StatusCode.UNAVAILABLE, f"{self._name()} does not take requests as fast as they come; try again later")
            return await self._answer(transport, kind, payload, deadline, alone=alone)
        lane = self.lane
        if lane.num_bytes and lane.num_bytes + len(payload) > _MAX_LARGE:
            words = f"{self._name()} has {lane.num_bytes >> 20} MB of large requests to answer; try again later, or send smaller ones"
            raise Refusal(grpc.StatusCode.UNAVAILABLE, words)
        lane.num_bytes += len(payload)
        try:
            async with lane.turn:
                return await self._answer(self._open(lane.transport), kind, payload, deadline, alone=alone)
        finally:
            lane.num_bytes -= len(payload)
            self._close_when_idle()

    def _open(self, transport: asyncio.Transport | None) -> asyncio.Transport:
        if transport is None or transport.is_closing():
            raise Refusal(grpc.StatusCode.UNAVAILABLE, f"The process of {self._name()} has ended; it is being restarted")
        return transport

    async def _answer(self, transport: asyncio.Transport, kind: Kind, payload: bytes, deadline: float, *, alone: bool) -> Result:
        number = next(self._numbers)
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        transport.write(pack_call(Call(number, kind, deadline, payload, alone)))
        try:
            return await future
        except asyncio.CancelledError:
            self._board.leave(number)
            raise
        finally:
            self._waiting.pop(number, None)
            self._close_when_idle()

    def refuse(self, reason: str) -> None:
        """The system did not let the process start."""
        if not self.ready.done():
            self.ready.set_exception(Shortage(grpc.StatusCode.UNAVAILABLE, f"No process could be started: {reason}"))

    def retire(self) -> None:
        """Let the process end once it has answered what it was asked."""
        self._retired = True
        self._close_when_idle()

    def give_up(self, reason: str = "") -> None:
        """Wait no longer for the process, which is killed, for this `reason`."""
        self._given_up = reason
        self._abort()

    def look(self) -> int:
        """Return for how many looks in a row the process has not said that it is alive though somebody waits, for an answer or for its end.

        Looks are counted and not seconds: if the front itself was stopped, or the whole machine, that says nothing about the process.
        """
        (before, looks), beats = self._seen, self._board.beats
        is_waited_for = bool(self._waiting) or self.is_closed
        self._seen = (beats, looks + 1 if is_waited_for and beats == before else 0)
        return self._seen[1]

    @property
    def is_closed(self) -> bool:
        """Whether the process has been told to end, or has."""
        return self._transport is not None and self._transport.is_closing()

    def _close_when_idle(self) -> None:
        if self._retired and not self._waiting and not self.lane.num_bytes:
            self._abort()  # what was not taken yet belongs to clients that are gone

    def _abort(self) -> None:
        for transport in (self._transport, self.lane.transport):
            if transport is not None:
                transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        for answer in self._parser.feed(data):
            future: asyncio.Future[Any] | None = self._waiting.get(answer.number) if answer.number else self.ready
            if future is None or future.done():
                continue  # the client did not wait
            if answer.code:
                future.set_exception(Refusal(CODES[answer.code], answer.payload.decode(errors="replace")))
            else:
                future.set_result(Result(answer.payload, answer.run_micros) if answer.number else answer.payload)

    def connection_lost(self, error: Exception | None) -> None:
        if self.lane.transport is not None:
            self.lane.transport.abort()
        self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        """Tell everybody who waits how the process ended."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.status), _STATUS_SECONDS)
        status = self.status.result() if self.status.done() else None
        reason, threads = self._reason(status), self._crashed(status)
        crashed = {number for number in self._waiting if self._board.worker(number) in threads}
        self.gone.set_result(End(reason, bool(threads)))
        self._board.close()
        words = f"The process of {self._name()} {reason}"
        waiting: list[tuple[int, asyncio.Future[Any]]] = [(0, self.ready), *self._waiting.items()]
        for number, future in waiting:
            if not future.done():
                future.set_exception((Crashed if number in crashed else Refusal)(grpc.StatusCode.UNAVAILABLE, words))
        self.ready.exception()  # whoever waited has it; nobody need have

    def _crashed(self, status: int | None) -> set[int]:
        """Return the threads whose work may have ended the process: the one it happened in, or all that worked if it was none of Python's."""
        if status != HUNG and -(status or 0) not in _CRASHES:
            return set()
        accused = self._board.accused
        return {thread for thread in self._board.workers() if accused in (None, 0, thread)}

    def _reason(self, status: int | None) -> str:
        if self._given_up:
            return self._given_up
        if status == HUNG:
            return f"was ended because a run took more than {self.order.run_timeout_seconds:g} s"
        if status is not None and status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return "ended" if status in (None, 0) else f"ended with status {status}"

    def _name(self) -> str:
        return f"model {self.order.name} version {self.order.version}"
