"""A line of the table: a figure of ours, what it is held against, and the ratio that was promised."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import NamedTuple


class Row(NamedTuple):
    """`ours` and `limit` are in `unit`; the promise is a ratio of at most `allowed`, or of at least `wanted` with its 95 % `interval` above 1."""

    what: str
    ours: float
    limit_is: str
    limit: float
    allowed: float | None = None
    wanted: float | None = None
    unit: str = "s"
    interval: tuple[float, float] | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.limit

    @property
    def target(self) -> str:
        """Return what was promised, as text."""
        if self.allowed is not None:
            return f"<= {self.allowed:.2f}"
        return "-" if self.wanted is None else f">= {self.wanted:.2f}"

    @property
    def held(self) -> bool:
        if self.allowed is not None:
            return self.ratio <= self.allowed
        return self.wanted is None or (self.ratio >= self.wanted and (self.interval is None or self.interval[0] > 1.0))

    def cells(self) -> list[str]:
        """Return what, ours, the limit's name, the limit, the ratio and the target."""
        ratio = f"{self.ratio:.2f}" if self.interval is None else f"{self.ratio:.2f} ({self.interval[0]:.2f} to {self.interval[1]:.2f})"
        return [
            self.what,
            _figure(self.ours, self.unit),
            self.limit_is,
            _figure(self.limit, self.unit),
            ratio,
            self.target + ("" if self.held else " !"),
        ]


HEADER = ["what", "ours", "held against", "its figure", "ratio", "target"]


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes, without collecting the garbage of those before it."""
    gc.collect()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def line(cells: list[str]) -> str:
    """Return cells as a line of columns."""
    what, ours, limit_is, limit, ratio, target = cells
    return f"{what:<58}{ours:>12}  {limit_is:<44}{limit:>12}  {ratio:<20}{target}"


def markdown(rows: list[Row]) -> str:
    """Return the table for README."""
    lines = [HEADER, ["---", "--:", "---", "--:", "---", "---"], *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _figure(value: float, unit: str) -> str:
    digits = 0 if value >= 100 or float(value).is_integer() else 1 if value >= 10 else 3
    return f"{value:,.{digits}f} {unit}"
