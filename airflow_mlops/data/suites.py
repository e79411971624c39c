"""An expectation suite as a JSON file people edit, read with errors that name the line. Light: Great Expectations is not imported here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from json import decoder, scanner
from pathlib import Path
from typing import Any

from airflow_mlops.exceptions import SpecError, nearest

SEVERITIES = ("critical", "warning", "info")


@dataclass(frozen=True)
class Expectation:
    """One expectation: its Great Expectations `type` and `kwargs`; `where` is the file and line it stands in, for messages."""

    type: str
    kwargs: Mapping[str, Any]
    severity: str = "critical"
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Suite:
    """A named, ordered list of expectations."""

    name: str
    expectations: tuple[Expectation, ...]


def load_suite(path: Path) -> Suite:
    """Return the suite in a JSON file ``{"name", "expectations": [{"type", "kwargs", "severity"?}]}``; raise `SpecError` naming file and line.

    Types and kwargs are checked against Great Expectations by `airflow_mlops.data.validation.validate`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text, cls=_LineDecoder)
    except FileNotFoundError as error:
        raise SpecError(f"The suite {path} does not exist: expected a JSON file with expectations. Correct the path.") from error
    except ValueError as error:
        raise SpecError(f"The suite {path} is no JSON document: {error}. Correct it.") from error
    suite = _object(path, data, {"name": str, "expectations": list}, {})
    if not suite["expectations"]:
        raise SpecError(f"The suite {path} has no expectation: it would accept anything. Add at least one.")
    return Suite(suite["name"], tuple(_expectation(path, item) for item in suite["expectations"]))


def _expectation(path: Path, item: Any) -> Expectation:
    data = _object(path, item, {"type": str, "kwargs": dict}, {"severity": str})
    severity = data.get("severity", "critical")
    where = _where(path, item)
    if severity not in SEVERITIES:
        raise SpecError(f"{where}: unknown severity {severity!r}: expected one of {', '.join(SEVERITIES)}.{nearest(severity, SEVERITIES)}")
    return Expectation(data["type"], dict(data["kwargs"]), severity, where)


def _object(path: Path, data: Any, required: Mapping[str, type], optional: Mapping[str, type]) -> Mapping[str, Any]:
    allowed = {**required, **optional}
    where = _where(path, data)
    if not isinstance(data, dict):
        raise SpecError(f"{where}: found {json.dumps(data)[:80]}: expected an object with {', '.join(allowed)}.")
    for key in data:
        if key not in allowed:
            raise SpecError(f"{where}: unknown key {key!r}: expected {', '.join(allowed)}.{nearest(key, allowed)}")
    for key, kind in allowed.items():
        if key in required and key not in data:
            raise SpecError(f"{where}: the key {key!r} is missing: expected {', '.join(required)}.")
        if key in data and not isinstance(data[key], kind):
            raise SpecError(f"{where}: {key!r} is {json.dumps(data[key])[:80]}: expected a JSON value of type {kind.__name__}.")
    return data


def _where(path: Path, data: Any) -> str:
    return f"{path}:{data.line}" if isinstance(data, _LocatedDict) else str(path)


class _LocatedDict(dict[str, Any]):
    """A JSON object that knows the line it begins in."""

    line: int = 0


class _LineDecoder(json.JSONDecoder):
    """Decode objects to `_LocatedDict`; the pure Python scanner is the one that lets an object be told where it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.parse_object = self._parse
        self.scan_once = scanner.py_make_scanner(self)  # type: ignore[attr-defined]

    def _parse(self, text_and_end: tuple[str, int], *args: Any) -> tuple[_LocatedDict, int]:
        value, end = decoder.JSONObject(text_and_end, *args)  # type: ignore[attr-defined]
        text, begin = text_and_end
        located = _LocatedDict(value)
        located.line = text.count("\n", 0, begin) + 1
        return located, end
