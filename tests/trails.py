"""Attacks on an exported audit trail: each call does one random thing to it that changes it."""

from __future__ import annotations

import hashlib
import random

from airflow_mlops.ledger import chain


def attacked(trail: list[bytes], draw: random.Random) -> list[bytes]:
    """Return a copy of `trail` to which something was done: bytes, lines, its end, or everything from some event on."""
    attack = draw.choice([_bytes, _bytes, _line_gone, _line_twice, _lines_swapped, _cut, _cut_bytes, _rewritten, _rewritten])
    while (changed := attack(list(trail), draw)) == trail or b"".join(changed) == b"".join(trail):
        pass
    return changed


def _bytes(lines: list[bytes], draw: random.Random) -> list[bytes]:
    where = draw.randrange(len(lines))
    line = bytearray(lines[where])
    at = draw.randrange(len(line))
    what = draw.choice(["flip", "insert", "delete"])
    if what == "flip":
        line[at] ^= 1 << draw.randrange(8)
    elif what == "insert":
        line.insert(at, draw.randrange(256))
    else:
        del line[at]
    return b"".join([*lines[:where], bytes(line), *lines[where + 1 :]]).splitlines(keepends=True)


def _line_gone(lines: list[bytes], draw: random.Random) -> list[bytes]:
    del lines[draw.randrange(len(lines))]
    return lines


def _line_twice(lines: list[bytes], draw: random.Random) -> list[bytes]:
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
    return lines


def _lines_swapped(lines: list[bytes], draw: random.Random) -> list[bytes]:
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return lines


def _cut(lines: list[bytes], draw: random.Random) -> list[bytes]:
    return lines[: draw.randrange(len(lines))]


def _cut_bytes(lines: list[bytes], draw: random.Random) -> list[bytes]:
    text = b"".join(lines)
    return text[: draw.randrange(len(text))].splitlines(keepends=True)


def _rewritten(lines: list[bytes], draw: random.Random) -> list[bytes]:
    """Say something else in one event and chain all that follow anew."""
    where = draw.randrange(len(lines))
    lines[where] = lines[where].replace(b'"actor":"', b'"actor":"not ', 1)
    previous = hashlib.sha256(lines[where]).hexdigest().encode()
    for number in range(where + 1, len(lines)):
        lines[number] = chain._BEGIN + previous + lines[number][len(chain._BEGIN) + 64 :]
        previous = hashlib.sha256(lines[number]).hexdigest().encode()
    return lines
