"""The log of a container, followed over broken connections: every line once, in bounded memory, without Kubernetes.

A log with timestamps is one sequence of lines; asked for from a time on, it gives the same lines again that were at or after that time. So it is
enough to remember the second of the newest line and how many lines since then have been seen.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_LINE = 1 << 16  # characters; what is longer is cut, for output without any line end must not fill the memory


@dataclass
class Position:
    """How far a log was read: `num_seen` lines not older than `since`, the second of the newest one (RFC 3339), which was at `newest`."""

    since: str = ""
    num_seen: int = 0
    newest: str = ""

    def note(self, stamp: str) -> None:
        """Count a line."""
        self.newest = max(self.newest, stamp)
        second = self.newest[:19] + (self.newest[-6:] if self.newest[-6:-5] in ("+", "-") else "Z")  # some nodes write their own time zone
        if second != self.since:
            self.since, self.num_seen = second, 0
        self.num_seen += stamp >= self.since[:19]


def new_lines(chunks: Iterable[bytes], position: Position, *, ended: bool) -> Iterator[str]:
    """Yield the lines of a log, read from ``position.since`` on, that were not seen before, without their timestamps; `position` moves along.

    :param chunks: of the log, UTF-8 as a rule; each line is a timestamp with nanoseconds in UTC, a space and the text.
    :param ended: the container has ended, so that a last line without an end is whole; else it is what a broken connection left of it.
    """
    old, newest, passed = position.num_seen, position.newest, 0
    for line in _lines(chunks, ended=ended):
        stamp, _, text = line.partition(" ")
        if passed < old and stamp <= newest:  # a node that rotated the log away in between gives fewer of the old lines
            passed += 1
            continue
        old = 0
        position.note(stamp)
        yield text


def _lines(chunks: Iterable[bytes], *, ended: bool) -> Iterator[str]:
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    for chunk in chunks:
        *whole, rest = (rest + decoder.decode(chunk)).split("\n")
        yield from (line[:MAX_LINE] for line in whole)
        rest = rest[:MAX_LINE]
    if rest and ended:
        yield rest
