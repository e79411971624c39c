"""JSON as TensorFlow Serving's parser reads it, and as its errors show it (util/json_tensor.cc on RapidJSON)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import orjson

from airflow_mlops.serving.embedded.refusal import Refusal, invalid

Document = dict[str, Any]  # a request's JSON object
_SHOWN = 256  # bytes of a value in an error: what is begun before that is written to its end
_LOOKED_THROUGH = 1 << 16
_TYPES = {type(None): "Null", dict: "Object", list: "Array", str: "String"}
# What Python's parser says, and what the original's says of the same place.
_REASONS = {
    "Expecting value": "Invalid value.",
    "Expecting property name": "Missing a name for object member.",
    "Expecting ':'": "Missing a colon after a name of object member.",
    "Unterminated string": "Missing a closing quotation mark in string.",
    "Invalid control character": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX": "Incorrect hex digit after \\u escape in string.",
}


def parse(body: bytes) -> Document:
    """Return the JSON object at the start of `body`; what follows it is ignored, as the original does. Raises `Refusal`."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:  # NaN, or something behind the object, or really no JSON
        document = _parse_leniently(body)
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {show(document)} Is not object")
    return document


def _parse_leniently(body: bytes) -> Any:
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    text = body.decode("utf-8-sig", "surrogateescape").lstrip(" \t\r\n")  # bytes that are not text stay for tensors of bytes
    try:
        return json.JSONDecoder(parse_float=_double, parse_int=_integer).raw_decode(text)[0]
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {_reason(text, error)} at offset: {error.pos}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number that nothing holds
        raise invalid(f"JSON Parse error: {error}") from error


def listed(text: bytes) -> list[Any]:
    """Return the list that `text` is from its first byte to its last; raise `ValueError`."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:  # NaN, or really no list
        found = json.JSONDecoder(parse_float=_double, parse_int=_integer).decode(text.decode())
    if not isinstance(found, list):
        raise ValueError("not a list")
    return found


def _reason(text: str, error: json.JSONDecodeError) -> str:
    if not text:
        return "The document is empty."
    if error.msg.startswith("Expecting ','"):
        return f"Missing a comma or {'} after an object member' if _in_object(text[: error.pos]) else '] after an array element'}."
    return next((reason for words, reason in _REASONS.items() if error.msg.startswith(words)), f"{error.msg}.")


def _in_object(text: str) -> bool:
    """Return whether what ends here is in an object, and not in an array, which a long text is taken to be in unseen."""
    if len(text) > _LOOKED_THROUGH:
        return False
    opened: list[str] = []
    quoted = escaped = False
    for char in text:
        if quoted:
            quoted, escaped = char != '"' or escaped, char == "\\" and not escaped
        elif char == '"':
            quoted = True
        elif char in "{[":
            opened.append(char)
        elif char in "}]" and opened:
            opened.pop()
    return opened[-1:] == ["{"]


def _double(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # "Infinity" itself is no number to the parser and does not come here
        raise ValueError(f"Number too big to be stored in double. {text[:40]}")
    return number


def _integer(text: str) -> int | float:
    """Return an integer of 64 bits, and of any larger number the nearest double."""
    number = int(text) if len(text) < 25 else 2**64
    return number if -(2**63) <= number < 2**64 else _double(text)


def encoded(text: str) -> bytes:
    """Return a JSON string's bytes; raise `Refusal` if it holds half a surrogate pair."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise invalid(f"JSON Parse error: The surrogate pair in string is invalid. At character {error.start} of the string") from error


def type_of(value: Any) -> str:
    """Return what the original calls the type of a JSON value."""
    return str(value) if isinstance(value, bool) else _TYPES.get(type(value), "Number")


def show(value: Any) -> str:
    """Return a JSON value for an error's words, as the original shows it: objects on lines of their own, cut when there is enough."""
    text = ""
    for part in _parts(value, 0):
        if len(text) >= _SHOWN:
            break
        text += part
    return text[: 4 * _SHOWN].encode(errors="replace").decode()


def _parts(value: Any, level: int) -> Iterator[str]:
    if isinstance(value, dict):
        yield "{"
        for number, (name, item) in enumerate(value.items()):
            yield f"{',' if number else ''}\n{'    ' * (level + 1)}{json.dumps(name, ensure_ascii=False)}: "
            yield from _parts(item, level + 1)
        yield f"\n{'    ' * level}}}" if value else "}"
    elif isinstance(value, list):
        yield "["
        for number, item in enumerate(value):
            if number:
                yield ", "
            yield from _parts(item, level)
        yield "]"
    else:
        yield json.dumps(value, ensure_ascii=False) if not isinstance(value, float) else json.dumps(value).replace("e+", "e")


def wrapped(error: Refusal, where: str) -> Refusal:
    """Return the refusal of a row, which says in the original's words where in the request the `error` is."""
    return invalid(f"Failed to process element: {where} of 'instances' list. Error: {error.code.name}: {error}")
