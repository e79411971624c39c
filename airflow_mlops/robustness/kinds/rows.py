"""Tabular rows: (N, columns) numbers, categories as codes."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness import constraints
from airflow_mlops.robustness.kinds.base import InputKind
from airflow_mlops.robustness.mutators import rows
from airflow_mlops.robustness.mutators.base import Floats, Ints, Mutator

FEW = 5  # one column in so many may be anything
MAX_SHOWN = 8


class Column(NamedTuple):
    """What mutators must know of one column.

    low, high: range of a ``number``; whole: it takes whole numbers only. categories: the codes of a ``category``.
    missing: code of a missing value, outside the range or the categories; None if the column is always filled.
    unit_factor: what the column's usual unit slip multiplies or divides by (10, 1000, 2.54 ...); None if it has no unit.
    """

    name: str
    kind: Literal["number", "category"] = "number"
    low: float = 0.0
    high: float = 1.0
    categories: tuple[float, ...] = ()
    missing: float | None = None
    unit_factor: float | None = None
    whole: bool = False


@dataclass(frozen=True)
class Rows(InputKind):
    """Rows of `columns`, in the order of the model's input; raises `SpecError` for impossible columns."""

    name: ClassVar[str] = "rows"
    mutators: ClassVar[dict[str, Mutator]] = rows.MUTATORS
    default: ClassVar[tuple[str, ...]] = tuple(mutators)
    legend: ClassVar[str] = "The columns that changed, in the seed and, marked, in its mutant; those that changed most, for their span, come first."
    shows_both: ClassVar[bool] = True

    columns: tuple[Column, ...] = ()

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if not names or len(set(names)) != len(names):
            raise SpecError(f"The columns are {names}; expected one Column for each value of a row, no name twice.")
        for column in self.columns:
            if problem := next(_problems(column), ""):
                raise SpecError(f"Column {column.name!r} {problem}.")

    def checked(self, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        numeric = np.issubdtype(inputs.dtype, np.floating) or np.issubdtype(inputs.dtype, np.integer)
        if inputs.ndim != 2 or 0 in inputs.shape or inputs.shape[1] != len(self.columns) or not numeric:
            raise RobustnessError(
                f"The inputs are {inputs.dtype} of shape {inputs.shape}; expected numbers of shape (N, {len(self.columns)}), N >= 1, one for each of "
                "the columns. Encode categories as codes, and name the columns in the order of the model's input."
            )
        values: Floats = inputs.astype(np.float32)
        for place, column in enumerate(self.columns):
            if (wrong := ~_legal(values[:, place], column)).any():
                row = int(np.flatnonzero(wrong)[0])
                raise RobustnessError(
                    f"Column {column.name!r} of row {row} is {inputs[row, place]}; expected {_expected(column)}. "
                    "Repair the row, or widen what the Column allows."
                )
        return values

    def legal(self, inputs: tf.Tensor) -> tf.Tensor:
        return rows.settled(inputs, self)

    def distances(self, reference: npt.NDArray[Any], mutants: npt.NDArray[Any]) -> tuple[Ints, Floats]:
        """Return per row (columns that differ, largest difference in spans of its column); a category or a missing code differs by 1.0."""
        return np.count_nonzero(reference != mutants, axis=1), self._change(reference, mutants).max(axis=1)

    def _change(self, reference: npt.NDArray[Any], mutants: npt.NDArray[Any]) -> Floats:
        """Return (N, columns) the differences in spans of their columns."""
        span = np.array([column.high - column.low if column.kind == "number" else 0.0 for column in self.columns], np.float32)
        codes = np.array([np.nan if column.missing is None else column.missing for column in self.columns], np.float32)
        measured = (span > 0) & (reference != codes) & (mutants != codes)
        share = np.divide(np.abs(mutants - reference), span, out=np.ones_like(reference), where=measured)
        return np.where(reference != mutants, share, 0.0).astype(np.float32)

    def size(self, inputs: npt.NDArray[Any]) -> Any:
        return inputs.shape[1]

    def satisfied(self, l0: Ints, linf: Floats, size: Any) -> npt.NDArray[np.bool_]:
        """Return (N,): at most one column in five changed (always one), or every change under 0.2 of its column's span."""
        return np.asarray((l0 <= np.maximum(1, size // FEW)) | (linf < constraints.BETA))

    def show(self, original: Any, shown: Any) -> str:
        """Return a <table> of the columns that changed, before and after, those that changed most first; of an unchanged row, its first columns."""
        change = self._change(original[None], shown[None])[0]
        places = np.argsort(-change, kind="stable")[: np.count_nonzero(change) or None]
        lines = [self._line(place, original[place], shown[place]) for place in places[:MAX_SHOWN]]
        most = f", none by more than {change[places[MAX_SHOWN]]:.1%} of its span" if change.any() and len(places) > MAX_SHOWN else ""
        rest = f'<tr><td colspan="3">and {len(places) - MAX_SHOWN} more{most}</td></tr>' if len(places) > MAX_SHOWN else ""
        return f"<table>{''.join(lines)}{rest}</table>"

    def _line(self, place: int, before: Any, after: Any) -> str:
        column = self.columns[place]
        old, new = (_text(value, column) for value in (before, after))
        values = f"<td>{new}</td>" if old == new else f"<td>{old}</td><td><mark>{new}</mark></td>"
        return f"<tr><th>{html.escape(column.name)}</th>{values}</tr>"


def _problems(column: Column) -> Iterator[str]:
    """Yield what is wrong with a column."""
    if column.kind not in ("number", "category"):
        yield f"is of kind {column.kind!r}; expected 'number' or 'category'"
    numbers = [column.low, column.high, *column.categories, *(value for value in (column.missing, column.unit_factor) if value is not None)]
    if not np.isfinite(np.array(numbers, np.float32)).all():
        yield "has bounds or codes that are not finite float32 numbers; replace NaN by a code"
    if column.kind == "number" and not column.low < column.high:
        yield f"spans {column.low} to {column.high}; expected low < high"
    if column.whole and (column.low % 1 or column.high % 1):
        yield f"holds whole numbers and spans {column.low} to {column.high}; expected whole bounds"
    if column.kind == "category" and len({np.float32(code) for code in column.categories}) != max(2, len(column.categories)):
        yield f"has categories {column.categories}; expected at least two codes, each once"
    if column.missing is not None and _is_value(np.array([column.missing], np.float32), column)[0]:
        yield f"has the missing code {column.missing}, which is also a value; choose another, or None"
    if column.unit_factor is not None and (column.unit_factor <= 0 or column.unit_factor == 1):
        yield f"has the unit factor {column.unit_factor}; expected a number above 0 other than 1"


def _is_value(values: Floats, column: Column) -> npt.NDArray[np.bool_]:
    """Return (N,) whether float32 values are legal and not missing; NaN is not."""
    if column.kind == "category":
        return np.isin(values, np.array(column.categories, np.float32))
    inside = (values >= np.float32(column.low)) & (values <= np.float32(column.high))
    return inside & (values == np.rint(values)) if column.whole else inside


def _legal(values: Floats, column: Column) -> npt.NDArray[np.bool_]:
    missing = np.zeros(len(values), np.bool_) if column.missing is None else values == np.float32(column.missing)
    return _is_value(values, column) | missing


def _expected(column: Column) -> str:
    what = f"{'a whole number' if column.whole else 'a number'} from {column.low:g} to {column.high:g}"
    what = f"one of the codes {', '.join(f'{code:g}' for code in column.categories)}" if column.kind == "category" else what
    return what if column.missing is None else f"{what}, or {column.missing:g} for a missing value"


def _text(value: Any, column: Column) -> str:
    return "missing" if column.missing is not None and value == np.float32(column.missing) else f"{value:g}"
