"""The front's side of the model processes: starting them through the zygote, and killing those that are of no use to anybody any more."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import pickle
import socket
import subprocess
import sys

import grpc

from airflow_mlops.serving.embedded.frames import Board
from airflow_mlops.serving.embedded.model_process import ModelProcess
from airflow_mlops.serving.embedded.orders import MAX_MESSAGE, Ended, Kill, NotStarted, Order, Start, Started
from airflow_mlops.serving.embedded.refusal import Shortage

log = logging.getLogger(__name__)
_END_SECONDS = 5.0  # how long the zygote may take to see that it is no longer needed
_LOOK_SECONDS = 1.0  # as often as a process says that it is alive
_GRACE_LOOKS = 5  # for a process to end whose socket is closed
_STILL_LOOKS = 20  # for one that is waited for; reading a very large request can keep a process from saying anything for seconds


async def _connected(protocol: asyncio.Protocol, closing: contextlib.ExitStack) -> int:
    """Return the descriptor of a socket whose other end is the protocol's; `closing` closes it."""
    ours, theirs = socket.socketpair()
    closing.callback(theirs.close)
    ours.setblocking(False)
    await asyncio.get_running_loop().create_connection(lambda: protocol, sock=ours)
    return theirs.fileno()


class Zygote:
    """Starts model processes by forking them from one prepared process, which is started itself when it is not there."""

    def __init__(self, still_looks: int = _STILL_LOOKS) -> None:
        self._still_looks = still_looks
        self._looking: asyncio.TimerHandle | None = None
        self._control: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
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
        """Hear what becomes of the processes, and look after them; needs the running loop."""
        self._loop = loop = asyncio.get_running_loop()
        if self._control is not None:
            loop.add_reader(self._control, self._hear, self._control)
        self._looking = self._looking or loop.call_later(_LOOK_SECONDS, self._look)

    async def spawn(self, order: Order) -> ModelProcess:
        """Return a new process that loads `order`; raise `Shortage` if none could be started."""
        number = next(self._numbers)
        with contextlib.ExitStack() as closing:
            try:
                if self._control is None:
                    log.warning("the process that forks model processes was gone and is started again")
                    self.start()
                    self.listen()
                board = Board.descriptor()
                closing.callback(os.close, board)
                process = self._models[number] = ModelProcess(number, order, Board(board))
                theirs = [await _connected(protocol, closing) for protocol in (process, process.lane)]
                self._tell(Start(number, order), [*theirs, board])
            except OSError as error:
                if unborn := self._models.pop(number, None):  # nobody will tell how it ended
                    unborn.retire()
                raise Shortage(grpc.StatusCode.UNAVAILABLE, f"No process could be started: {error}") from error
        return process

    def kill(self, process: ModelProcess, reason: str = "") -> None:
        """Kill a process that does not end by itself."""
        with contextlib.suppress(OSError):  # then the zygote is gone, and closing the socket must do
            self._tell(Kill(process.number), [])
        process.give_up(reason)

    def stop(self) -> None:
        """End the zygote; model processes end when their sockets are closed, and are killed if they cannot see that."""
        if self._looking is not None:
            self._looking.cancel()
        if self._control is not None:
            with contextlib.suppress(OSError):
                for number in self._models:
                    self._tell(Kill(number), [])
            if self._loop is not None:  # else the loop never hears the next socket with this number
                self._loop.remove_reader(self._control)
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

    def _look(self) -> None:
        """Kill the processes that somebody waits for in vain: a stopped one answers nothing, and does not see that it is no longer needed."""
        self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)
        for process in list(self._models.values()):
            if process.look() >= (_GRACE_LOOKS if process.is_closed else self._still_looks):
                log.error("model %s version %s: its process gives no sign of life, and is killed", process.order.name, process.order.version)
                self.kill(process, f"gave no sign of life for {self._still_looks * _LOOK_SECONDS:g} s and was killed")

    def _forget(self, number: int, _: object) -> None:
        self._models.pop(number, None)

    def _lost(self, control: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(control)
        control.close()
        self._control = None
        for process in self._models.values():  # nobody will tell how they end
            process.gone.add_done_callback(functools.partial(self._forget, process.number))
        if self._process is not None:
            self._process.poll()
