"""The process that model processes are forked from: it has TensorFlow's library open and everything imported, but has run nothing of it.

A fork takes milliseconds and shares what was loaded; a fresh process would take a second of CPU, just when a new version is to be loaded
beside serving ones. Forking is only safe while there is a single thread, so nothing here may start one (`_check_alone`).

It obeys one socket: a `Start` with the model's ends of two socket pairs and its `Board` starts a process, a `Kill` ends one. It tells what it started
and how each ended, and ends with the front.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import pickle
import select
import signal
import socket
import sys
from pathlib import Path

from airflow_mlops.serving.embedded import worker
from airflow_mlops.serving.embedded.orders import MAX_MESSAGE, Ended, Kill, NotStarted, Order, Start, Started
from airflow_mlops.serving.embedded.tensorflow_c import register


def main(control: socket.socket) -> None:
    """Obey `control` (SOCK_SEQPACKET) until its other end is closed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    register()
    _check_alone()
    gc.freeze()  # what is there now stays shared: collecting it would copy every page that holds a reference count
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they may reach the whole group; the front decides
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    children: dict[int, int] = {}
    while True:
        readable, _, _ = select.select([control, woken], [], [])
        if woken in readable:
            with contextlib.suppress(BlockingIOError):
                woken.recv(4096)
            _reap(control, children)
        if control in readable:
            message, descriptors = _received(control)
            if not message:
                return
            _obey(pickle.loads(message), descriptors, control, children)  # noqa: S301 - from our own parent, through a socket pair


def _received(control: socket.socket) -> tuple[bytes, list[int]]:
    """Return a message and what came with it, nothing when the front is gone."""
    try:
        message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE, 3)
    except ConnectionResetError:  # it went with messages of ours unread
        return b"", []
    return message, descriptors


def _obey(message: Start | Kill, descriptors: list[int], control: socket.socket, children: dict[int, int]) -> None:
    if isinstance(message, Kill):
        for pid in [pid for pid, number in children.items() if number == message.number]:
            os.kill(pid, signal.SIGKILL)
        return
    try:
        pid = os.fork()
    except OSError as error:  # memory or processes are short; this one must live, for the shortage may pass
        _tell(control, NotStarted(message.number, str(error)))
    else:
        if pid == 0:
            control.close()
            _become(message.order, *descriptors)
        children[pid] = message.number
        _tell(control, Started(message.number, pid))
    for descriptor in descriptors:
        os.close(descriptor)


def _become(order: Order, sock: int, lane: int, board: int) -> None:
    """Turn the forked process into the model's."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # if memory runs out, better one model than the front
            Path("/proc/self/oom_score_adj").write_text("500")
        worker.serve(order, socket.socket(fileno=sock), socket.socket(fileno=lane), board)
    except BaseException:
        logging.exception("model %s version %s", order.name, order.version)
    finally:
        os._exit(1)


def _reap(control: socket.socket, children: dict[int, int]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        _tell(control, Ended(children.pop(pid), os.waitstatus_to_exitcode(status)))


def _tell(control: socket.socket, message: Started | NotStarted | Ended) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # then the front is gone, and reading ends this process
        control.send(pickle.dumps(message))


def _check_alone() -> None:
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        logging.warning("%d threads run where none should: a library started them, and forking may not be safe", threads)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
