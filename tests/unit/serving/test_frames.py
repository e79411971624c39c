"""Frames over a real socket pair: however the bytes are cut, what comes out is what went in."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlops.serving.embedded.frames import Answer, AnswerParser, Board, Call, CallReader, Kind, pack_answer, pack_call

LARGE = (1 << 20) + 3  # several times what is received at once
BODIES = st.one_of(st.binary(max_size=40), st.sampled_from([b"", b"x" * ((1 << 18) - 25), b"y" * (1 << 18), bytes(range(256)) * 1100]))
CALLS = st.builds(Call, st.integers(0, 2**64 - 1), st.sampled_from(Kind), st.floats(allow_nan=False), BODIES, st.booleans())
ANSWERS = st.builds(Answer, st.integers(0, 2**64 - 1), st.integers(0, 16), st.integers(0, 2**32 - 1), BODIES)


def cut(data: bytes, places: Sequence[int]) -> Iterator[bytes]:
    """Yield `data` in parts, cut at `places`."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    for start, end in itertools.pairwise(edges):
        yield data[start:end]


@contextlib.contextmanager
def reading(parts: Iterator[bytes]) -> Iterator[CallReader]:
    """Yield a reader of what another thread sends part by part, before it closes its end."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        with theirs, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                theirs.sendall(part)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield CallReader(ours)
    finally:
        ours.close()
        sender.join(10)
        assert not sender.is_alive()


def calls_of(parts: Iterator[bytes]) -> list[Call]:
    with reading(parts) as reader:
        return list(iter(reader.read, None))


def answers_of(parts: Iterator[bytes]) -> list[Answer]:
    parser = AnswerParser()
    return [answer for part in parts for answer in parser.feed(part)]


CALL = Call(2**64 - 1, Kind.REST_REGRESS, 12345.678, b"payload")
ANSWER = Answer(2**64 - 1, 16, 2**32 - 1, b"payload")


class TestCallReader:
    @given(st.lists(CALLS, max_size=4), st.lists(st.integers(0, 2**21), max_size=8))
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_calls_arrive_whole_and_in_order_however_they_are_cut(self, calls: list[Call], places: list[int]) -> None:
        assert calls_of(cut(b"".join(map(pack_call, calls)), places)) == calls

    def test_calls_arrive_one_byte_at_a_time(self) -> None:
        calls = [CALL, CALL._replace(number=0, payload=b""), CALL]
        data = b"".join(map(pack_call, calls))
        assert calls_of(data[place : place + 1] for place in range(len(data))) == calls

    def test_large_bodies_arrive_between_small_ones(self) -> None:
        calls = [CALL, CALL._replace(payload=bytes(range(256)) * (LARGE // 256)), CALL, CALL._replace(payload=b"z" * LARGE), CALL]
        assert calls_of(iter([b"".join(map(pack_call, calls))])) == calls

    @pytest.mark.parametrize("size", [0, 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 2 << 18])
    def test_a_body_may_have_any_size_around_that_of_a_chunk(self, size: int) -> None:
        calls = [CALL._replace(payload=b"x" * size), CALL]
        assert calls_of(iter([b"".join(map(pack_call, calls))])) == calls

    @pytest.mark.parametrize("size", [0, 7, 24, 25, 31, 1000, LARGE - 1, LARGE])
    def test_a_front_that_is_gone_in_the_middle_of_a_call_leaves_no_call(self, size: int) -> None:
        whole = pack_call(CALL)
        begun = pack_call(CALL._replace(payload=b"x" * LARGE))[:size]
        assert calls_of(iter([whole, begun])) == [CALL]

    def test_it_says_whether_more_has_begun_to_arrive(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            reader = CallReader(ours)
            assert not reader.waiting(0.0)
            theirs.sendall(pack_call(CALL) + pack_call(CALL)[:1])
            assert reader.waiting(10.0)
            assert reader.read() == CALL
            assert reader.waiting(0.0)  # the first byte of the second one is here already
            theirs.sendall(pack_call(CALL)[1:])
            assert reader.read() == CALL
            assert not reader.waiting(0.01)

    def test_a_front_that_is_gone_is_something_to_read(self) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            reader = CallReader(ours)
            theirs.close()
            assert reader.waiting(10.0)
            assert reader.read() is None


class TestAnswerParser:
    @given(st.lists(ANSWERS, max_size=4), st.lists(st.integers(0, 2**21), max_size=8))
    @settings(max_examples=100, deadline=None, derandomize=True)
    def test_answers_come_out_whole_and_in_order_however_they_are_cut(self, answers: list[Answer], places: list[int]) -> None:
        assert answers_of(cut(b"".join(map(pack_answer, answers)), places)) == answers

    def test_answers_come_out_of_one_byte_at_a_time(self) -> None:
        answers = [ANSWER, ANSWER._replace(number=0, payload=b""), ANSWER]
        data = b"".join(map(pack_answer, answers))
        assert answers_of(data[place : place + 1] for place in range(len(data))) == answers

    def test_an_answer_comes_out_with_its_last_byte_and_not_before(self) -> None:
        parser, data = AnswerParser(), pack_answer(ANSWER)
        assert list(parser.feed(data[:-1])) == []
        assert list(parser.feed(data[-1:] + data[:5])) == [ANSWER]
        assert list(parser.feed(data[5:])) == [ANSWER]

    def test_a_small_answer_after_a_large_one_waits_for_nothing(self) -> None:
        parser, large = AnswerParser(), ANSWER._replace(payload=b"x" * 1000)
        data = pack_answer(large)
        assert [list(parser.feed(part)) for part in (data[:500], data[500:], pack_answer(ANSWER))] == [[], [large], [ANSWER]]

    def test_a_large_answer_is_not_copied_again_with_every_part(self) -> None:
        """64 MB in parts of 64 kB: copying what is there each time would move 32 GB."""
        body = b"x" * (1 << 26)
        data = memoryview(pack_answer(ANSWER._replace(payload=body)))
        parser = AnswerParser()
        joined: list[int] = []
        for place in range(0, len(data), 1 << 16):
            found = list(parser.feed(bytes(data[place : place + (1 << 16)])))
            joined.append(len(parser._parts))
        assert [answer.payload == body for answer in found] == [True]
        assert max(joined) > 1000  # the parts lie side by side until all are there

    def test_a_run_of_more_than_an_hour_is_counted_as_one(self) -> None:
        assert answers_of(iter([pack_answer(ANSWER._replace(run_micros=2**40))])) == [ANSWER._replace(run_micros=2**32 - 1)]


class TestBoard:
    @pytest.fixture
    def boards(self) -> Iterator[tuple[Board, Board]]:
        descriptor = Board.descriptor()
        front, process = Board(descriptor), Board(descriptor)
        os.close(descriptor)
        yield front, process

    def test_who_was_left_is_seen_by_the_other_and_nobody_else_is(self, boards: tuple[Board, Board]) -> None:
        front, process = boards
        assert 1 not in process and 0 not in process
        front.leave(1)
        front.leave(2**63)
        assert (1 in process, 2**63 in process) == (True, True)
        assert not any(number in process for number in (0, 2, 1 + (1 << 14), 2**63 + 1))

    def test_of_two_numbers_that_share_a_place_the_later_is_known(self, boards: tuple[Board, Board]) -> None:
        """So that the worst is a run for nobody, never a request that is not answered."""
        front, process = boards
        front.leave(3)
        front.leave(3 + (1 << 14))
        assert (3 in process, 3 + (1 << 14) in process) == (False, True)

    def test_beats_are_counted_beside_all_numbers(self, boards: tuple[Board, Board]) -> None:
        front, process = boards
        for number in range(1, (1 << 14) + 1):
            front.leave(number)
        process.beat()
        process.beat()
        assert front.beats == 2
        assert all(number in process for number in range(1, (1 << 14) + 1))

    def test_which_thread_works_on_which_call_is_seen_by_the_other(self, boards: tuple[Board, Board]) -> None:
        front, process = boards
        process.work(7, 0x7F12_3456_7890)
        process.work(8, 5)
        assert (front.worker(7), front.worker(8), front.worker(9), front.workers()) == (0x7F12_3456_7890, 5, 0, {0x7F12_3456_7890, 5})
        process.work(7, 0)
        assert (front.worker(7), front.workers(), 7 in process) == (0, {5}, False)

    def test_the_thread_that_ended_the_process_is_known_if_it_was_one_of_python_s(self, boards: tuple[Board, Board]) -> None:
        front, process = boards
        assert front.accused is None
        process.accuse(0xABC)
        assert front.accused == 0xABC

    @pytest.mark.parametrize("code", ["import os; os.abort()", "import ctypes; ctypes.string_at(0)"])
    def test_a_crash_is_written_where_the_front_reads_it(self, code: str) -> None:
        """The report says which of many threads crashed."""
        descriptor = Board.descriptor()
        board = Board(descriptor)
        script = f"""
import faulthandler, sys, threading
from airflow_mlops.serving.embedded.frames import Board
faulthandler.enable(Board.report_to({descriptor}))
board = Board({descriptor})
for _ in range(20):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
def crash():
    board.work(1, threading.get_ident())
    {code}
threading.Thread(target=crash).start()
"""
        done = subprocess.run([sys.executable, "-c", script], pass_fds=[descriptor], stderr=subprocess.DEVNULL)
        os.close(descriptor)
        assert done.returncode < 0
        assert board.accused == board.worker(1) != 0

    def test_one_that_is_closed_holds_nothing_and_tells_nobody(self, boards: tuple[Board, Board]) -> None:
        front, process = boards
        before = psutil.Process().num_fds()
        front.close()
        front.leave(5)
        assert 5 not in process
        assert psutil.Process().num_fds() == before - 1
