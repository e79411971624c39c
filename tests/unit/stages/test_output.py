"""Lines of a pipe: whole, in time, and never waited for once the process has ended."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from airflow_mlops.stages.output import lines


@pytest.fixture
def pipes() -> Iterator[tuple[int, int, int, int]]:
    """Reading and writing end of the output, and of the sign that the process has ended."""
    descriptors = (*os.pipe(), *os.pipe())
    yield descriptors
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:
            continue  # the test closed it


def test_lines_come_whole_however_they_are_written(pipes: tuple[int, int, int, int]) -> None:
    output, writer, ended, _ = pipes
    heard = lines(output, ended)
    os.write(writer, b"eins\nzw" + "ö".encode()[:1])
    assert next(heard) == "eins"
    os.write(writer, "ö".encode()[1:] + b"lf\r\n\rprogress\xff\nlast")
    os.close(writer)
    assert list(heard) == ["zwölf", "", "progress\ufffd", "last"]


def test_what_was_written_before_the_end_is_heard_though_somebody_holds_the_output_open(pipes: tuple[int, int, int, int]) -> None:
    output, writer, ended, end = pipes
    os.write(writer, b"a\n" * 30_000)
    os.close(end)
    assert list(lines(output, ended)) == ["a"] * 30_000


def test_an_output_without_line_ends_is_given_in_pieces(pipes: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_mlops.stages.output.MAX_LINE", 10)
    output, writer, ended, _ = pipes
    heard = lines(output, ended)
    os.write(writer, b"." * 25)
    assert next(heard) == "." * 25
    os.write(writer, b"....\n..")
    os.close(writer)
    assert list(heard) == ["....", ".."]


def test_somebody_who_never_stops_writing_is_not_listened_to_after_the_end(pipes: tuple[int, int, int, int]) -> None:
    output, writer, ended, end = pipes
    os.write(writer, b"last words\n")
    os.close(end)
    heard = []
    for line in lines(output, ended):
        heard.append(line)
        os.write(writer, b"and more\n" * 2)
        assert len(heard) < 10
    assert heard == ["last words"]
