"""Where the workers of one training wait for each other, before TensorFlow does anything.

TensorFlow's own waiting takes SIGTERM and holds the interpreter: a worker that waited there could not be told to stop. And it would let a worker that
was replaced join a training that goes on without it, and wait there for ever. Here it waits until the chief begins anew.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence

from airflow_mlops.exceptions import TrainingError

PAUSE_SECONDS = 0.5
_HELLO_SECONDS = 5.0  # for a worker to say which one it is, and for a connection to be made
_GO = b"go"


def meet(index: int, addresses: Sequence[str]) -> None:
    """Return when all workers are there, for as long as that takes; then no port is held any more.

    :param index: of this worker in `addresses`, ``host:port`` each; worker 0 is the chief, whom the others come to.
    :raises TrainingError: the chief's port is another process's.
    """
    host, _, port = addresses[0].rpartition(":")
    if index == 0:
        _gather(int(port), len(addresses))
    while index and not _went(index, host, int(port)):
        time.sleep(PAUSE_SECONDS)


def _gather(port: int, num_workers: int) -> None:
    """Let all go as soon as all are there; who comes again takes its own place, and who is gone by then is waited for again."""
    with contextlib.ExitStack() as open_until_the_end, _open(port) as here:
        come: dict[int, socket.socket] = {}
        while len(come) < num_workers - 1:
            peer = open_until_the_end.enter_context(here.accept()[0])
            peer.settimeout(_HELLO_SECONDS)
            with contextlib.suppress(OSError, ValueError):  # who says anything else is no worker
                said = int(peer.recv(16))
                if 0 < said < num_workers:
                    come[said] = peer
            come = {said: peer for said, peer in come.items() if _is_there(peer)}
        for peer in come.values():
            with contextlib.suppress(OSError):  # gone in this moment: TensorFlow misses it
                peer.sendall(_GO)


def _is_there(peer: socket.socket) -> bool:
    """Whether the other end, which has nothing more to say, is still open."""
    peer.setblocking(False)
    try:
        return bool(peer.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _open(port: int) -> socket.socket:
    try:
        return socket.create_server(("", port))
    except OSError as error:
        raise TrainingError(
            f"Worker 0 cannot open port {port}, at which the others find it: {error.strerror}. See what else listens there, in its pod or on its "
            "machine, and end that."
        ) from error


def _went(index: int, host: str, port: int) -> bool:
    """Wait at the chief; return False when it is not there, or does something else by now."""
    try:
        with socket.create_connection((host, port), _HELLO_SECONDS) as peer:
            peer.sendall(str(index).encode())
            peer.settimeout(None)
            _notice_a_lost_node(peer)
            return peer.recv(len(_GO)) == _GO
    except OSError:
        return False


def _notice_a_lost_node(peer: socket.socket) -> None:
    """Let the kernel ask every 10 s whether the chief's machine is there: one that is lost closes no connection."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        peer.setsockopt(socket.IPPROTO_TCP, option, value)
