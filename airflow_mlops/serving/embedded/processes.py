"""The front's side of the model processes: starting them through the zygote, asking them, and knowing how they ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
from typing import Any, NamedTuple

import grpc

from airflow_mlops.serving.embedded.frames import HUNG, AnswerParser, Call, Kind, pack_call
from airflow_mlops.serving.embedded.orders import MAX_MESSAGE, Ended, Kill, NotStarted, Order, Start, Started
from airflow_mlops.serving.embedded.refusal import CODES, Refusal, Shortage

log = logging.getLogger(__name__)
_END_SECONDS = 5.0  # how long the zygote may take to see that it is no longer needed
_STATUS_SECONDS = 1.0  # how long to wait for the word on how a process ended, once its socket is closed
_MAX_UNSENT = 64 << 20  # bytes; also those of clients that have gone away
_MAX_WAITING = 10_000  # requests of one version; more of them could only fill the memory


class Result(NamedTuple):
    """An answer's bytes and the microseconds that the model ran for it."""

    payload: bytes
    run_micros: int


class ModelProcess(asyncio.Protocol):
    """One model version's process. `ready` ends with its serialized signatures or a `Refusal`, `gone` with how it ended."""

    def __init__(self, number: int, order: Order) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.order = order
        self.pid = 0
        self.ready: asyncio.Future[bytes] = loop.create_future()
        self.gone: asyncio.Future[str] = loop.create_future()
        self.status: asyncio.Future[int] = loop.create_future()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Result]] = {}
        self._parser = AnswerParser()
        self._transport: asyncio.Transport | None = None
        self._retired = False
        batching = order.batching
        self._most = batching.max_enqueued_batches * batching.max_batch_size if batching else _MAX_WAITING

    async def ask(self, kind: Kind, payload: bytes, deadline: float) -> Result:
        """Return the answer to a client's bytes; raise `Refusal`. `deadline` is monotonic seconds, 0 for none."""
        if self._transport is None or self._transport.is_closing():
            raise Refusal(grpc.StatusCode.UNAVAILABLE, f"The process of {self._name()} is gone; it is started again")
        if len(self._waiting) >= self._most:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, f"The queue of {self._name()} is full: {self._most} requests wait")
        if self._transport.get_write_buffer_size() > _MAX_UNSENT:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, f"{self._name()} does not take requests as fast as they come; try again later")
        number = next(self._numbers)
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._transport.write(pack_call(Call(number, kind, deadline, payload)))
        try:
            return await future
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

    def _close_when_idle(self) -> None:
        if self._retired and not self._waiting and self._transport is not None:
            self._transport.close()

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
        self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        """Tell everybody who waits how the process ended."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.status), _STATUS_SECONDS)
        reason = self._reason(self.status.result() if self.status.done() else None)
        self.gone.set_result(reason)
        refusal = Refusal(grpc.StatusCode.UNAVAILABLE, f"The process of {self._name()} {reason}")
        waiting: list[asyncio.Future[Any]] = [self.ready, *self._waiting.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(refusal)
        self.ready.exception()  # whoever waited has it; nobody need have

    def _reason(self, status: int | None) -> str:
        if status == HUNG:
            return f"was ended because a run took more than {self.order.run_timeout_seconds:g} s"
        if status is not None and status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return "ended" if status in (None, 0) else f"ended with status {status}"

    def _name(self) -> str:
        return f"model {self.order.name} version {self.order.version}"


class Zygote:
    """Starts model processes by forking them from one prepared process, which is started itself when it is not there."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._models: dict[int, ModelProcess] = {}

    def start(self) -> None:
        """Start the zygote; it prepares itself meanwhile, so call this early."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A thread in the zygote would make forking unsafe; what TensorFlow says at its start is of no use to anybody.
        environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
        command = [sys.executable, "-m", "airflow_mlops.serving.embedded.zygote", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        ours.setblocking(False)
        self._control = ours

    def listen(self) -> None:
        """Hear what becomes of the processes; needs the running loop."""
        if self._control is not None:
            asyncio.get_running_loop().add_reader(self._control, self._hear, self._control)

    async def spawn(self, order: Order) -> ModelProcess:
        """Return a new process that loads `order`; raise `Shortage` if none could be started."""
        process = ModelProcess(next(self._numbers), order)
        with contextlib.ExitStack() as closing:
            try:
                if self._control is None:
                    log.warning("the process that forks model processes was gone and is started again")
                    self.start()
                    self.listen()
                ours, theirs = socket.socketpair()
                closing.callback(theirs.close)
                ours.setblocking(False)
                self._models[process.number] = process
                await asyncio.get_running_loop().create_connection(lambda: process, sock=ours)
                self._tell(Start(process.number, order), [theirs.fileno()])
            except OSError as error:
                self._models.pop(process.number, None)  # nobody will tell how it ended
                process.retire()
                raise Shortage(grpc.StatusCode.UNAVAILABLE, f"No process could be started: {error}") from error
        return process

    def kill(self, process: ModelProcess) -> None:
        """Kill a process that does not end by itself."""
        with contextlib.suppress(OSError):  # then the zygote is gone, and closing the socket must do
            self._tell(Kill(process.number), [])
        process.retire()

    def stop(self) -> None:
        """End the zygote; model processes end when their sockets are closed, and are killed if they can not see that."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                for number in self._models:
                    self._tell(Kill(number), [])
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:  # somebody stopped it
                self._process.kill()
                self._process.wait()

    def _tell(self, message: Start | Kill, descriptors: list[int]) -> None:
        if self._control is None:
            raise OSError("the process that forks them is gone")
        socket.send_fds(self._control, [pickle.dumps(message)], descriptors)

    def _hear(self, control: socket.socket) -> None:
        try:
            message = control.recv(MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._lost(control)
            return
        told = pickle.loads(message)  # noqa: S301 - from our own child, through a socket pair
        if isinstance(told, Started):
            self._models[told.number].pid = told.pid
        elif isinstance(told, NotStarted):
            self._models.pop(told.number).refuse(told.reason)
        elif isinstance(told, Ended):
            self._models.pop(told.number).status.set_result(told.status)

    def _lost(self, control: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(control)
        control.close()
        self._control = None
        self._models.clear()
        if self._process is not None:
            self._process.poll()
