"""Just enough of the protocol buffers' wire format to see which model a request is for without parsing all of it.

A request may hold 100 MB of tensors; the front needs a dozen bytes of it, and the model's process parses the rest.
Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from airflow_mlops.serving.embedded.refusal import invalid

_MAX_FIELDS = 10_000  # inputs, filters and tasks of one request; walking more would hold up everybody
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def parsed(message: Any, payload: bytes) -> Any:
    """Return the instance of the `message` class that `payload` holds; raise `Refusal` if it holds none."""
    try:
        return message.FromString(payload)
    except DecodeError as error:
        raise invalid(f"The request is not a {message.DESCRIPTOR.full_name}: {error}") from error


def field(message: bytes, number: int) -> bytes | None:
    """Return the embedded message in field `number`, None if it is not there; raise `Refusal` if `message` is none.

    Where the field occurs more than once, the parts are put together, which is how protocol buffers merge messages.
    """
    found = fields(message, number)
    return b"".join(found) if found else None


def fields(message: bytes, number: int) -> list[bytes]:
    """Return every occurrence of the length-delimited field `number`; raise `Refusal` if `message` is no protocol buffer."""
    found: list[bytes] = []
    place, end, seen = 0, len(message), 0
    while place < end:
        seen += 1
        if seen > _MAX_FIELDS:
            raise invalid(f"The request has more than {_MAX_FIELDS} fields")
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == _VARINT:
            _, place = _varint(message, place)
            continue
        if kind == _BYTES:
            size, place = _varint(message, place)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise invalid(f"The request is not a protocol buffer: wire type {kind} at byte {place}")
        if place + size > end:
            raise invalid(f"The request is not a whole protocol buffer: {place + size - end} bytes are missing")
        if kind == _BYTES and tag >> 3 == number:
            found.append(message[place : place + size])
        place += size
    return found


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message) and shift < 70:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise invalid(f"The request is not a whole protocol buffer: no number ends at byte {place}")
