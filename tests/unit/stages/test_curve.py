"""A curve with axes: round numbers beside it, whatever the values are."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlops.stages.curve import HEIGHT, WIDTH, curve, decades, ticks


def labels(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


@pytest.mark.parametrize(
    ("low", "high", "least", "expected"),
    [
        (0.0, 1.0, 0.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.13, 2.4, 0.0, [0.5, 1, 1.5, 2]),
        (69, 4140, 1, [1000, 2000, 3000, 4000]),
        (1, 3, 1, [1, 2, 3]),
        (5, 5, 0, [5]),
    ],
)
def test_ticks_are_round_numbers_between_the_ends(low: float, high: float, least: float, expected: list[float]) -> None:
    assert ticks(low, high, least) == pytest.approx(expected)


def test_what_falls_over_decades_is_drawn_so_that_they_are_seen() -> None:
    svg = curve([(step, 10.0 ** (1 - step)) for step in range(5)], "steps", "loss")
    assert labels(svg) == ["0", "1", "2", "3", "4", "0.001", "0.01", "0.1", "1", "10", "steps", "loss (logarithmic)"]
    (points,) = re.findall(r'<polyline points="(.*?)"', svg)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert [round(after - before) for before, after in pairwise(heights)] == [64] * 4


def test_decades_are_not_more_than_fit() -> None:
    assert decades(0.02, 30.0) == [0.1, 1.0, 10.0]
    assert len(decades(1e-90, 1e90)) < 15


def test_a_curve_of_one_look_is_a_point_between_its_axes() -> None:
    svg = curve([(69, 0.5)], "steps", "loss")
    assert labels(svg) == ["69", "0.5", "steps", "loss"] and '<circle cx="398.0" cy="142.0"' in svg


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**12), st.floats(-1e100, 1e100)), min_size=1, max_size=20))
def test_whatever_the_values_are_the_curve_stays_in_its_frame(points: list[tuple[int, float]]) -> None:
    svg = curve(points, "steps", "loss")
    assert len(labels(svg)) < 40
    numbers = [tuple(map(float, point.split(","))) for point in re.findall(r'<polyline points="(.*?)"', svg)[0].split()]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in numbers) and len(numbers) == len(points)
