"""The process of one model version: load, then answer calls until the front is gone.

A model that crashes or hangs TensorFlow takes its own process with it and nothing else, and unloading is the end of a process, so that memory
comes back whole. Several threads take turns at reading: one reads what has come, lets the next one read, and answers. Nothing is handed from
thread to thread, and what arrives while a run is under way is the next batch.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded.frames import HUNG, Answer, Board, Call, CallReader, pack_answer
from airflow_mlops.serving.embedded.load import load, step_back
from airflow_mlops.serving.embedded.orders import Order
from airflow_mlops.serving.embedded.refusal import Refusal
from airflow_mlops.serving.embedded.requests import Model
from airflow_mlops.serving.embedded.runner import Runner

log = logging.getLogger(__name__)
_BEAT_SECONDS = 1.0
_SWITCH_SECONDS = 0.0005  # a thread that only passes bytes on must not wait 5 ms for one that parses


def serve(order: Order, sock: socket.socket, lane: socket.socket, board: int) -> None:
    """Load what `order` names, say so, and answer until the other end of `sock` is closed; ends the process.

    Large calls come by `lane`. `board` is the `Board`'s descriptor.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    worker = Worker(order, sock, Board(board))
    faulthandler.enable(Board.report_to(board))  # so that the front knows whose request it was
    # Already while it loads: a front that is gone, or has given up, needs no model.
    threading.Thread(target=worker.watch, name="watch", daemon=True).start()
    try:
        model = load(order)
    except Refusal as error:
        worker.send([Answer(0, error.code.value[0], 0, str(error).encode(errors="replace"))])
        os._exit(1)
    worker.answer_with(model, lane)


class Worker:
    """Answers calls from `sock` in as many threads as `order` says."""

    def __init__(self, order: Order, sock: socket.socket, board: Board) -> None:
        self._order = order
        self._socket = sock
        self._board = board
        self._reader = CallReader(sock)
        self._runner: Runner | None = None
        self._turn = threading.Lock()
        self._sending = threading.Lock()

    def answer_with(self, model: Model, lane: socket.socket) -> None:
        """Say that the model is ready, with its signatures, and answer calls until the front is gone, those of `lane` in a thread of their own."""
        runner = self._runner = Runner(model, self._order.batching, self._board, self._board.work)
        signatures = protos.get_model_metadata_pb2.SignatureDefMap()
        for name, definition in model.servable.signature_defs.items():
            signatures.signature_def[name].CopyFrom(definition)
        self.send([Answer(0, 0, 0, signatures.SerializeToString())])
        threading.Thread(target=self._work_off, args=(runner, CallReader(lane)), name="large", daemon=True).start()
        num_threads = self._order.batching.num_batch_threads if self._order.batching else self._order.num_threads
        for number in range(num_threads - 1):
            threading.Thread(target=self._work, args=(runner,), name=f"run-{number}", daemon=True).start()
        self._work(runner)

    def send(self, answers: Iterable[Answer]) -> None:
        """Write answers to the front."""
        frames = b"".join(map(pack_answer, answers))
        with self._sending:
            self._socket.sendall(frames)

    def watch(self) -> None:
        """Tell the front that this process is alive; end it when the front is gone, even while every thread runs, or when a run exceeds its limit."""
        limit = self._order.run_timeout_seconds
        gone = select.poll()
        gone.register(self._socket, select.POLLRDHUP)
        while not gone.poll(min(_BEAT_SECONDS, limit / 4 or _BEAT_SECONDS) * 1000):
            self._board.beat()
            seconds, thread = self._runner.longest() if limit and self._runner is not None else (0.0, 0)
            if seconds > limit:
                self._board.accuse(thread)
                log.error("model %s version %s: a run took more than %g s", self._order.name, self._order.version, limit)
                os._exit(HUNG)
        _leave()

    def _work(self, runner: Runner) -> None:
        with contextlib.suppress(OSError):  # the front closed the socket while this thread wrote
            while calls := self._next():
                self.send(runner.answers(calls))
        _leave()

    def _work_off(self, runner: Runner, lane: CallReader) -> None:
        """Answer large calls one by one; that the front is gone, the others notice."""
        with contextlib.suppress(OSError):
            while (call := lane.read()) is not None:
                self.send(runner.answers([call]))

    def _next(self) -> list[Call]:
        """Return the next call, and with batching those that have come with it; none when the front is gone."""
        batching = self._order.batching
        with self._turn:
            first = self._reader.read()
            if first is None or batching is None:
                return [first] if first else []
            calls = [first]
            until = time.monotonic() + batching.batch_timeout_micros / 1e6
            while len(calls) < batching.max_batch_size and self._reader.waiting(max(0.0, until - time.monotonic())):
                if (call := self._reader.read()) is None:
                    break
                calls.append(call)
            return calls


def _leave() -> None:
    """End the process, which nobody waits for; giving back a large model's memory takes milliseconds that others can use."""
    for thread in Path("/proc/self/task").iterdir():
        step_back(int(thread.name))
    os._exit(0)
