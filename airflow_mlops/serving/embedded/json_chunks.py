"""Large lists of rows, read piece by piece: 100 MB of JSON as one Python object would take gigabytes, and the interpreter for as long.

A piece is cut behind a comma that looks like the end of a row, and is right if it can be read as a list of its own: no other cut could.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from airflow_mlops.serving.embedded import json_tensors, json_text
from airflow_mlops.serving.embedded.json_tensors import Types
from airflow_mlops.serving.embedded.refusal import Refusal, invalid
from airflow_mlops.serving.tensors import Array

LARGE = 1 << 20  # bytes from which a body is read like this
_PIECE = 1 << 18  # bytes, a few milliseconds
_TRIES = 12
_NAMED = rb'"signature_name"\s*:\s*"(?P<name>[^"\\]*)"\s*'
_HEAD = re.compile(rb"\s*\{\s*(?:" + _NAMED + rb',\s*)?"(?P<key>instances|inputs)"\s*:\s*\[\s*')
_TAIL = re.compile(rb"\]\s*(?:,\s*" + _NAMED + rb")?\}\s*")


class Rows(NamedTuple):
    """The one list of a large body: the signature it is for, the key it is under, and where in the body it is."""

    signature: str
    key: str
    body: bytes
    start: int
    end: int


def found(body: bytes) -> Rows | None:
    """Return where the list of a large body is; None if it is not one list, and perhaps a signature's name, which are read as a whole."""
    head = _HEAD.match(body)
    end = body.rfind(b"]")
    tail = _TAIL.fullmatch(body, end) if head and end >= head.end() else None
    if head is None or tail is None or (head["name"] is not None and tail["name"] is not None):
        return None
    try:
        return Rows((head["name"] or tail["name"] or b"").decode(), head["key"].decode(), body, head.end(), end)
    except UnicodeDecodeError:
        return None


def inputs_of(rows: Rows, types: Types) -> tuple[dict[str, Array], bool] | None:
    """Return what `json_tensors.inputs_of` does of the whole document, None if a piece cannot be cut; raise `Refusal`."""
    parts: dict[str, list[Array]] = {}
    number = 0
    only = next(iter(types)) if len(types) == 1 else None
    as_objects = rows.body[rows.start : rows.start + 1] == b"{"
    for text, piece in _pieces(rows):
        if not piece or isinstance(piece[0], dict) != as_objects:  # not a list, or a mixed one: reading it whole gives the error
            return None
        quick = json_tensors.plain_numbers(piece, text, types[only]) if only is not None else None
        arrays = {only or "": quick} if quick is not None else json_tensors.inputs_of({rows.key: piece}, types, first=number)[0]
        for name, array in arrays.items():
            known = parts.setdefault(name, [])
            if known and known[0].shape[1:] != array.shape[1:]:
                raise _unlike(rows.key, number, known[0], array)
            known.append(array)
        number += len(piece)
    if not parts:
        return None
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}, rows.key == "instances"


def _unlike(key: str, number: int, first: Array, array: Array) -> Refusal:
    words = json_tensors.difference(first.shape[1:], array.shape[1:])
    if key == "instances":
        return json_text.wrapped(invalid(words), str(number))
    return invalid(words)


def _pieces(rows: Rows) -> Iterator[tuple[bytes, list[Any] | None]]:
    """Yield the list in pieces of whole rows, each as text and as a list, which is None if it cannot be cut or read."""
    ending = _ending(rows.body, rows.start)
    start = rows.start
    while start < rows.end:
        text, piece = _piece(rows, start, ending)
        start += len(text) - 1  # without its brackets, and behind the comma
        yield text, piece
        if piece is None:
            return


def _piece(rows: Rows, start: int, ending: re.Pattern[bytes]) -> tuple[bytes, list[Any] | None]:
    place = start + _PIECE
    for _ in range(_TRIES):
        cut = ending.search(rows.body, place, rows.end) if place < rows.end else None
        stop = cut.end() - 1 if cut else rows.end
        text = b"[" + rows.body[start:stop] + b"]"
        try:
            return text, json_text.listed(text)
        except ValueError:
            if cut is None:
                break
            place = stop + 1
    return b"", None


def _ending(body: bytes, start: int) -> re.Pattern[bytes]:
    """Return what the end of a row looks like, by how the first one begins."""
    if body[start : start + 1] == b"{":
        return re.compile(rb"\}\s*,")
    opened = re.compile(rb"[\[\s]*").match(body, start)
    depth = min(opened[0].count(b"["), json_tensors.MAX_RANK) if opened else 0
    return re.compile(rb"\]\s*" * depth + b",")
