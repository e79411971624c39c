"""What the front and a model's process say to each other over one socket: frames with a fixed head and raw bytes.

A call carries its number, its kind, its deadline (seconds of the machine's monotonic clock, which all its processes share) and the client's
bytes untouched. An answer carries the number, a gRPC status code, the microseconds the model ran, and the bytes for the client or the words
of the error. Number 0 is the process itself: its signatures once it is ready, or an error when it could not load.

What must not wait in that socket behind other calls stands on a `Board` that both see.
"""

from __future__ import annotations

import enum
import mmap
import os
import re
import select
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

_CALL = struct.Struct("<QQB?d")
_ANSWER = struct.Struct("<QQHI")
_CHUNK = 1 << 18
_SLOTS = 1 << 14  # more than may wait by default: two numbers of one slot are rare, and the worst is a run for nobody
_BOARD = 8 * (2 * _SLOTS + 1)  # bytes: a slot for each call that was left, the beats, a slot for the thread of each call
_REPORT = 1 << 16  # bytes for Python's report of all threads when its process crashes
_CRASHED = re.compile(rb"Current thread 0x([0-9a-f]+)")
HUNG = 86  # exit status of a model's process that ended itself because a run took too long


class Kind(enum.IntEnum):
    """What a call's bytes are."""

    PREDICT = 1
    CLASSIFY = 2
    REGRESS = 3
    MULTI_INFERENCE = 4
    REST_PREDICT = 5
    REST_CLASSIFY = 6
    REST_REGRESS = 7


class Call(NamedTuple):
    """One request of one client; `alone` if it must not be joined with others, because it may end the process."""

    number: int
    kind: Kind
    deadline: float
    payload: bytes
    alone: bool = False


class Answer(NamedTuple):
    """One answer; `code` 0 is OK."""

    number: int
    code: int
    run_micros: int
    payload: bytes


def pack_call(call: Call) -> bytes:
    """Return a call as one frame."""
    return _CALL.pack(len(call.payload), call.number, call.kind, call.alone, call.deadline) + call.payload


def pack_answer(answer: Answer) -> bytes:
    """Return an answer as one frame."""
    return _ANSWER.pack(len(answer.payload), answer.number, answer.code, min(answer.run_micros, 2**32 - 1)) + answer.payload


class Board:
    """Memory that the front and one model's process share: a look costs no system call, and what is written is seen before what was sent earlier.

    The front writes the numbers of abandoned calls (see `__contains__`). The process raises `beats` while it is alive, notes which
    thread works on which call, and when it crashes, which thread that was.
    """

    def __init__(self, descriptor: int) -> None:
        self._whole = memoryview(mmap.mmap(descriptor, _BOARD + _REPORT))
        self._slots = self._whole[:_BOARD].cast("Q")

    @staticmethod
    def descriptor() -> int:
        """Return the descriptor of a new board, which its caller closes."""
        descriptor = os.memfd_create("board")
        os.ftruncate(descriptor, _BOARD + _REPORT)
        return descriptor

    def close(self) -> None:
        """Give back the shared memory; what is written from now on is seen by nobody."""
        self._whole = memoryview(bytearray(_BOARD + _REPORT))
        self._slots = self._whole[:_BOARD].cast("Q")

    def leave(self, number: int) -> None:
        """Nobody waits for the answer to this call."""
        self._slots[number % _SLOTS] = number

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self._slots[number % _SLOTS] == number != 0

    @property
    def beats(self) -> int:
        """How often the process said that it is alive."""
        return self._slots[_SLOTS]

    def beat(self) -> None:
        """Say that this process is alive; for one thread, which does nothing that may take long."""
        self._slots[_SLOTS] += 1

    def work(self, number: int, thread: int) -> None:
        """A thread begins to work on a call, or ends (0)."""
        self._slots[_SLOTS + 1 + number % _SLOTS] = thread

    def worker(self, number: int) -> int:
        """Return the thread that works on a call, 0 if none does."""
        return self._slots[_SLOTS + 1 + number % _SLOTS]

    def workers(self) -> set[int]:
        """Return the threads that work on calls, abandoned ones included."""
        return set(self._slots[_SLOTS + 1 :].tolist()) - {0}

    def accuse(self, thread: int) -> None:
        """The process ends because of what this thread does."""
        self._whole[_BOARD:] = (b"Current thread 0x%x\n" % thread).ljust(_REPORT, b"\0")

    @property
    def accused(self) -> int | None:
        """The thread that ended the process; 0 is one of TensorFlow's own, None none that said so."""
        report = bytes(self._whole[_BOARD:])
        found = _CRASHED.search(report)
        return int(found[1], 16) if found else None if report.startswith(b"\0") else 0

    @staticmethod
    def report_to(descriptor: int) -> int:
        """Return the descriptor of a board, positioned at the place for Python's report of its threads when the process crashes."""
        os.lseek(descriptor, _BOARD, os.SEEK_SET)
        return descriptor


class CallReader:
    """Reads calls from a blocking socket; only one thread at a time may use it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def read(self) -> Call | None:
        """Wait for a call and return it, or None when the front is gone."""
        head = self._take(_CALL.size)
        if head is None:
            return None
        length, number, kind, alone, deadline = _CALL.unpack(head)
        payload = self._take(length)
        return None if payload is None else Call(number, Kind(kind), deadline, payload, alone)

    def waiting(self, seconds: float) -> bool:
        """Return whether another call has begun to arrive within `seconds`."""
        return bool(self._buffer) or bool(self._poll.poll(seconds * 1000))

    def _take(self, size: int) -> bytes | None:
        while len(self._buffer) < min(size, _CHUNK):
            chunk = self._socket.recv(_CHUNK)
            if not chunk:
                return None
            self._buffer += chunk
        if size <= len(self._buffer):
            taken = bytes(self._buffer[:size])
            del self._buffer[:size]
            return taken
        return self._take_large(size)

    def _take_large(self, size: int) -> bytes | None:
        """Receive a large body in place: a buffer that grows would be copied again and again."""
        body = bytearray(size)
        filled = len(self._buffer)
        body[:filled] = self._buffer
        self._buffer.clear()
        with memoryview(body) as view:
            while filled < size:
                received = self._socket.recv_into(view[filled:])
                if not received:
                    return None
                filled += received
        return bytes(body)


class AnswerParser:
    """Takes bytes as they come and gives whole answers."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._have = 0
        self._need = _ANSWER.size

    def feed(self, data: bytes) -> Iterator[Answer]:
        """Add `data` and yield the answers that are whole now."""
        self._parts.append(data)
        self._have += len(data)
        if self._have < self._need:
            return  # joined only when something is whole, so that a large answer is copied once
        buffer = b"".join(self._parts)
        place = 0
        while len(buffer) - place >= _ANSWER.size:
            length, number, code, run_micros = _ANSWER.unpack_from(buffer, place)
            end = place + _ANSWER.size + length
            if end > len(buffer):
                self._need = end - place
                break
            yield Answer(number, code, run_micros, buffer[place + _ANSWER.size : end])
            place, self._need = end, _ANSWER.size
        self._parts, self._have = [buffer[place:]], len(buffer) - place
