"""A log is told once, line by line, however often its connection breaks and wherever."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlops.stages.pod_log import MAX_LINE, Position, new_lines

LINES = [(f"2026-01-01T00:00:{number // 7:02}.{number // 3 % 3:09}Z", f"line {number} ä") for number in range(60)]  # thrice the same moment


def served(lines: list[tuple[str, str]], since: str) -> bytes:
    """Return what a node answers: it knows seconds, and looks at each line alone."""
    return "".join(f"{at} {text}\n" for at, text in lines if at[:19] >= since[:19]).encode()


@settings(max_examples=200)
@given(cuts=st.lists(st.integers(0, 2500), max_size=8), swapped=st.sets(st.integers(0, 58), max_size=5), size=st.integers(1, 40))
def test_nothing_is_lost_or_doubled(cuts: list[int], swapped: set[int], size: int) -> None:
    lines = list(LINES)
    for number in swapped:  # two streams of one container come out of order by moments
        if lines[number][0][:19] == lines[number + 1][0][:19]:
            lines[number], lines[number + 1] = lines[number + 1], lines[number]
    position, told = Position(), []
    for cut in cuts:
        answer = served(lines, position.since)[:cut]
        told += new_lines((answer[start : start + size] for start in range(0, len(answer), size)), position, ended=False)
    told += new_lines([served(lines, position.since)], position, ended=True)
    assert told == [text for _, text in lines]


def test_lines_that_a_node_rotated_away_take_no_new_ones_with_them() -> None:
    position, lines = Position(), [(f"2026-01-01T00:00:00.{number:09}Z", str(number)) for number in range(9)]
    assert list(new_lines([served(lines[:5], "")], position, ended=False)) == ["0", "1", "2", "3", "4"]
    assert list(new_lines([served(lines[4:], position.since)], position, ended=True)) == ["5", "6", "7", "8"]


def test_a_node_in_another_time_zone_is_asked_by_its_own_clock() -> None:
    position = Position()
    assert list(new_lines([b"2026-01-01T02:00:05.5+02:00 x\n"], position, ended=False)) == ["x"]
    assert position.since == "2026-01-01T02:00:05+02:00"


def test_the_last_line_without_an_end_is_logged_when_no_more_can_come() -> None:
    position = Position()
    assert list(new_lines([b"2026-01-01T00:00:00.1Z whole\n2026-01-01T00:00:00.2Z ha"], position, ended=False)) == ["whole"]
    assert list(new_lines([b"2026-01-01T00:00:00.1Z whole\n2026-01-01T00:00:00.2Z half"], position, ended=True)) == ["half"]


def test_a_line_without_an_end_does_not_fill_the_memory() -> None:
    largest = 0

    def endless() -> Iterator[bytes]:
        yield b"2026-01-01T00:00:00.1Z "
        for _ in range(100):
            yield b"x" * 65536

    for line in new_lines(endless(), Position(), ended=True):
        largest = max(largest, len(line))
    assert 0 < largest <= MAX_LINE
