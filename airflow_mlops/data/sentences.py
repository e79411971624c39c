"""What Great Expectations found, as sentences with figures, and as plain JSON values."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MAX_TEXT = 200
MAX_EXAMPLES = 5
MAX_ITEMS = 12


def does_not_hold(expectation: str, kwargs: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Return the sentence for an expectation that failed; `result` is Great Expectations', made plain."""
    return f"{subject(expectation, kwargs)}: {found(result) or 'it is not there'}; expected {expected(expectation, kwargs)}."


def could_not_be_evaluated(expectation: str, kwargs: Mapping[str, Any], problems: Sequence[str]) -> str:
    """Return the sentence for an expectation whose metrics raised, which says nothing about the data."""
    raised = cut("; ".join(problems).rstrip("."))
    return f"{subject(expectation, kwargs)}: could not be evaluated ({raised}); expected {expected(expectation, kwargs)}."


def found(result: Mapping[str, Any]) -> str:
    """Return what was found in the data, empty where Great Expectations says nothing; `result` is its own, made plain."""
    facts = []
    if "unexpected_count" in result:
        facts.append(_unexpected(result))
    if result.get("observed_value") is not None:
        facts.append(f"observed {_short(result['observed_value'])}")
    details = result.get("details")
    if isinstance(details, Mapping) and details.get("mismatched"):
        facts.append(f"mismatched {_short(details['mismatched'])}")
    return "; ".join(facts)


def subject(expectation: str, kwargs: Mapping[str, Any]) -> str:
    """Return which column or columns an expectation is about, or that it is the table."""
    if expectation.startswith("expect_table_"):
        return "Table"
    if "column" in kwargs:
        return f"Column {kwargs['column']!r}"
    columns = kwargs.get("column_list") or [kwargs[key] for key in ("column_A", "column_B") if key in kwargs]
    return f"Columns {', '.join(map(repr, columns))}" if columns else "Table"


def expected(expectation: str, kwargs: Mapping[str, Any]) -> str:
    """Return what an expectation asks for, in its own terms."""
    arguments = ", ".join(f"{name}={_short(value)}" for name, value in kwargs.items() if name != "column")
    return expectation.removeprefix("expect_") + (f" with {arguments}" if arguments else "")


def cut(text: str) -> str:
    """Return `text` in one line of at most `MAX_TEXT` characters."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."


def plain(value: Any) -> Any:
    """Return `value` with NumPy scalars, arrays, sets and dates as JSON types; NaN becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, datetime.date):  # and datetime, and pandas' Timestamp
        return value.isoformat()
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _unexpected(result: Mapping[str, Any]) -> str:
    text = f"{result['unexpected_count']} of {result['element_count']} values are unexpected"
    texts = list(dict.fromkeys(_short(value) for value in result.get("partial_unexpected_list", ()) if value is not None))
    return f"{text}, for example {', '.join(texts[:MAX_EXAMPLES])}" if texts else text


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and len(value) > MAX_ITEMS:
        return f"[{', '.join(map(_short, value[:3]))}, ..., {_short(value[-1])}] ({len(value)} in all)"
    return cut(json.dumps(value, ensure_ascii=False, default=str))
