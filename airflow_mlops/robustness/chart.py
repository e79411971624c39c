"""Both arms of a campaign as curves: distinct defects over mutants, as coordinates that the report's template draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

from airflow_mlops.robustness.findings import Curve

WIDTH, HEIGHT = 480, 250  # units of the drawing, the labels of the axes included
LEFT, RIGHT, TOP, BOTTOM = 44, 28, 10, 38  # half of the last label across needs the room
MAX_TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One arm: the `points` of a polyline, and its end (`x`, `y`)."""

    name: str
    points: str
    x: float
    y: float


@dataclass(frozen=True)
class Chart:
    """What the template draws."""

    lines: tuple[Line, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def chart(curves: dict[str, Curve]) -> Chart:
    """Return the drawing of `curves` by name, all on the same axes, which begin at zero."""
    most_mutants, most_found = (max(max(point[axis] for point in curve) for curve in curves.values()) for axis in (0, 1))
    steps, counts = _ticks(max(1, most_mutants)), _ticks(max(1, most_found))
    # Across, the drawing ends where the campaign did; upwards at a tick, so that no line touches the edge.
    scale_x, scale_y = (WIDTH - LEFT - RIGHT) / max(1, most_mutants), (HEIGHT - TOP - BOTTOM) / counts[-1]

    def x(mutants: float) -> float:
        return round(LEFT + mutants * scale_x, 1)

    def y(found: float) -> float:
        return round(HEIGHT - BOTTOM - found * scale_y, 1)

    lines = [Line(name, " ".join(f"{x(at)},{y(found)}" for at, found in curve), x(curve[-1][0]), y(curve[-1][1])) for name, curve in curves.items()]
    across = [Tick(x(step), f"{step:,}") for step in steps if step <= most_mutants]
    return Chart(tuple(lines), tuple(across), tuple(Tick(y(count), f"{count:,}") for count in counts))


def _ticks(most: int) -> list[int]:
    """Return 0 and up to five more round numbers, the last of them `most` or the next above."""
    magnitude = 10 ** math.floor(math.log10(most / MAX_TICKS)) if most >= MAX_TICKS else 1
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if math.ceil(most / (factor * magnitude)) <= MAX_TICKS)
    return [step * number for number in range(math.ceil(most / step) + 1)]
