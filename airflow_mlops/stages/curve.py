"""A curve with axes as SVG: what falls over decades is drawn on a logarithmic scale. No scripts, nothing to load."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 760, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 40, 14, 50  # margins around the curve, for the axes' labels
_NUM_TICKS = 6
_DECADES = 100.0  # from this ratio of the largest to the smallest value on, the scale is logarithmic


def curve(points: Sequence[tuple[int, float]], x_label: str, y_label: str) -> str:
    """Return the SVG of a curve through `points`, of one at least."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) >= _DECADES
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)

    def across(x: float) -> float:
        return _LEFT + _share(x, left, right) * (WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        share = _share(math.log(y), math.log(low), math.log(high)) if logarithmic else _share(y, low, high)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _BOTTOM - _TOP)

    marks = [f'<line x1="{across(x):.1f}" y1="{_TOP}" x2="{across(x):.1f}" y2="{HEIGHT - _BOTTOM}"/>' for x in ticks(left, right, 1)]
    marks += [f'<text x="{across(x):.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{_number(x)}</text>' for x in ticks(left, right, 1)]
    levels = decades(low, high) if logarithmic else ticks(low, high)
    marks += [f'<line x1="{_LEFT}" y1="{up(y):.1f}" x2="{WIDTH - _RIGHT}" y2="{up(y):.1f}"/>' for y in levels]
    marks += [f'<text x="{_LEFT - 8}" y="{up(y) + 4:.1f}" text-anchor="end">{_number(y)}</text>' for y in levels]
    marks.append(f'<text x="{(WIDTH + _LEFT - _RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{html.escape(x_label)}</text>')
    scale = f"{y_label} (logarithmic)" if logarithmic else y_label
    middle = (HEIGHT - _BOTTOM + _TOP) / 2
    marks.append(f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">{html.escape(scale)}</text>')
    marks.append(f'<path d="M{_LEFT} {_TOP}V{HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>')
    line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
    marks.append(f'<polyline points="{line}"/><circle cx="{across(xs[-1]):.1f}" cy="{up(ys[-1]):.1f}" r="3.5"/>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">{"".join(marks)}</svg>'


def ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """Return about half a dozen round numbers from `low` to `high`, at least `least` apart."""
    rough = max((high - low) / _NUM_TICKS, least)
    if rough < 1e-300:  # there is nothing between them
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Return the powers of ten from `low` to `high`, at most about a dozen."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**power for power in range(first, last + 1, max(1, (last - first) // 8))]


def _share(value: float, low: float, high: float) -> float:
    """Return how far `value` lies between the ends, in the middle where they are one."""
    return (value - low) / (high - low) if high > low else 0.5


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and abs(value) >= 1000 else f"{value:.6g}"
