"""Workers that wait for each other: all go at once, whoever comes first, comes twice or only knocks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from airflow_mlops.exceptions import TrainingError
from airflow_mlops.training.meeting import meet
from tests.processes import wait_until
from tests.servers import free_port


def begun(*arguments: object) -> threading.Thread:
    thread = threading.Thread(target=meet, args=arguments, daemon=True)
    thread.start()
    return thread


def all_gone(*workers: threading.Thread) -> Callable[[], bool]:
    return lambda: not any(each.is_alive() for each in workers)


def test_nobody_goes_before_all_are_there_and_the_port_is_free_then() -> None:
    port = free_port()
    addresses = [f"127.0.0.1:{port}", "b:1", "c:1"]
    first = begun(1, addresses)  # before its chief
    chief = begun(0, addresses)
    first.join(2.0)
    assert first.is_alive() and chief.is_alive()
    last = begun(2, addresses)
    wait_until(all_gone(first, chief, last))
    socket.create_server(("127.0.0.1", port)).close()


def test_who_only_knocks_and_who_comes_twice_takes_nobodys_place() -> None:
    port = free_port()
    addresses = [f"127.0.0.1:{port}", "b:1", "c:1"]
    chief = begun(0, addresses)
    wait_until(lambda: said(port, b"GET / HTTP/1.1\r\n\r\n"))
    first = begun(1, addresses)
    first.join(1.0)
    assert said(port, b"7") and said(port, b"0") and said(port, b"1") and said(port, b"")
    assert chief.is_alive()
    again = begun(1, addresses)  # a pod in the place of one that is gone
    again.join(1.0)
    last = begun(2, addresses)
    wait_until(all_gone(chief, last, again))
    wait_until(all_gone(first, begun(0, addresses[:2])))


def test_a_worker_that_is_gone_when_the_last_one_comes_is_waited_for_again() -> None:
    port = free_port()
    addresses = [f"127.0.0.1:{port}", "b:1", "c:1"]
    chief = begun(0, addresses)
    wait_until(lambda: said(port, b"1"))  # and is gone
    last = begun(2, addresses)
    last.join(2.0)
    assert chief.is_alive() and last.is_alive()
    wait_until(all_gone(chief, last, begun(1, addresses)))


def said(port: int, words: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as peer:
            peer.sendall(words)
            return True
    except ConnectionRefusedError:
        return False


def test_a_worker_does_not_join_what_its_chief_does_without_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        addresses = [f"127.0.0.1:{busy.getsockname()[1]}", "b:1"]
        worker = begun(1, addresses)
        for _ in range(2):  # it asks again
            peer, _ = busy.accept()
            with peer:
                assert peer.recv(16) == b"1"
                peer.sendall(b"\x00\x00\x12\x04")  # the first bytes of HTTP/2, which TensorFlow speaks there
        assert worker.is_alive()
    chief = begun(0, addresses)
    wait_until(all_gone(worker, chief))


def test_a_port_that_another_process_has_is_named() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TrainingError, match=rf"cannot open port {port}, .*Address already in use.* See what else"):
            meet(0, [f"127.0.0.1:{port}", "b:1"])
