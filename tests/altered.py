"""Every way to alter JSON data so that it is still JSON data."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

OTHERS = (None, True, 0, 2.5, "x", "{{ 7 }}", [], {}, {"x": None}, {"__classname__": "builtins.object"})


def altered(value: Any, *others: Any) -> Iterator[Any]:
    """Yield `value` altered once: another type in its place or in any part of it, a part dropped, added, repeated or taken from `others`."""
    seen = [value]
    for one in _altered(value, others):
        if not any(type(one) is type(known) and one == known for known in seen):
            seen.append(one)
            yield copy.deepcopy(one)


def _altered(value: Any, others: tuple[Any, ...]) -> Iterator[Any]:
    yield from others
    yield from OTHERS
    yield [value]
    yield [value, value]
    if isinstance(value, dict):
        yield from _altered_object(value, others)
    elif isinstance(value, list):
        yield value[:-1]
        yield [*value, *value]
        yield value[::-1]
        for number, part in enumerate(value):
            yield from ([*value[:number], one, *value[number + 1 :]] for one in _altered(part, _parts(others, number)))
    elif isinstance(value, str):
        yield from ("", value[:-1], f"/elsewhere{value}")
    elif isinstance(value, int | float):
        yield from (value + 1, -value, 1e300, str(value))


def _altered_object(value: dict[str, Any], others: tuple[Any, ...]) -> Iterator[Any]:
    yield {**value, "headline": "accuracy 0.9999"}
    for name, part in value.items():
        yield {key: each for key, each in value.items() if key != name}
        yield from ({**value, name: one} for one in _altered(part, _parts(others, name)))


def _parts(others: tuple[Any, ...], place: Any) -> tuple[Any, ...]:
    """Return what is in the same place in others of the same shape."""
    if isinstance(place, str):
        return tuple(other[place] for other in others if isinstance(other, dict) and place in other)
    return tuple(other[place] for other in others if isinstance(other, list) and len(other) > place)
