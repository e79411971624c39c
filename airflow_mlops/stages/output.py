"""What a process writes, line by line while it writes it, whoever else may hold its output open."""

from __future__ import annotations

import codecs
import io
import os
import select
from collections.abc import Iterator

CAPACITY = 1 << 20  # bytes; the largest that Linux lets a user make a pipe, so that one read empties it
MAX_LINE = 1 << 16  # characters; binary output without any line end must not fill the memory


def lines(output: int, ended: int) -> Iterator[str]:
    """Yield the lines that come out of the pipe `output`, bytes that are no UTF-8 replaced, until it is closed or the pipe `ended` is.

    When `ended` closes, what is still in `output` is yielded and no more is waited for: a daemon that a process left behind may hold its
    output open for ever.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), translate=True)
    poll = select.poll()
    poll.register(output, select.POLLIN)
    poll.register(ended, select.POLLIN)
    rest, more = "", True
    while more:
        ready = {descriptor for descriptor, _ in poll.poll()}
        data = os.read(output, CAPACITY) if output in ready else b""
        more = bool(data) and ended not in ready
        *whole, rest = (rest + decoder.decode(data, final=not more)).split("\n")
        yield from whole
        if len(rest) > MAX_LINE:
            yield rest
            rest = ""
    if rest:
        yield rest
