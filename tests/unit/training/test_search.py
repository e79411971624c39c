"""Which trials a search makes, and which training it chooses."""

from __future__ import annotations

import math
from typing import Any

import pytest

from airflow_mlops.exceptions import SpecError, TrainingError
from airflow_mlops.training.search import Grid, RandomSearch, Range, best


def test_a_grid_is_every_combination() -> None:
    trials = Grid({"rate": [0.1, 0.01], "units": [8, 16, 32]}, "accuracy").trials()
    assert len(trials) == 6
    assert trials[:2] == [{"rate": 0.1, "units": 8}, {"rate": 0.1, "units": 16}]
    assert len({tuple(trial.items()) for trial in trials}) == 6


def test_a_random_search_is_the_same_for_its_seed_and_another_for_another() -> None:
    values: dict[str, Any] = {"rate": Range(1e-4, 1e-1, log=True), "units": Range(8, 64), "optimizer": ["adam", "sgd"]}
    first = RandomSearch(values, 20, "loss", "min", seed=3).trials()
    assert first == RandomSearch(values, 20, "loss", "min", seed=3).trials()
    assert first != RandomSearch(values, 20, "loss", "min", seed=4).trials()
    assert first[:5] == RandomSearch(values, 5, "loss", "min", seed=3).trials()
    assert all(1e-4 <= trial["rate"] <= 1e-1 and 8 <= trial["units"] <= 64 for trial in first)  # type: ignore[operator]
    assert {type(trial["units"]) for trial in first} == {int}
    assert {trial["optimizer"] for trial in first} == {"adam", "sgd"}


def test_a_logarithmic_range_draws_every_order_of_magnitude() -> None:
    trials = RandomSearch({"rate": Range(1e-4, 1.0, log=True), "units": Range(1, 1000, log=True)}, 200, "loss").trials()
    for name, orders in (("rate", range(-4, 0)), ("units", range(3))):
        drawn = [math.floor(math.log10(trial[name])) for trial in trials]  # type: ignore[arg-type]
        assert all(drawn.count(order) > 20 for order in orders)
    assert {type(trial["units"]) for trial in trials} == {int}


@pytest.mark.parametrize(("direction", "chosen"), [("max", 1), ("min", 2)])
def test_the_best_training_is_chosen_and_of_equal_ones_the_first(direction: str, chosen: int) -> None:
    assert best([{"other": 99.0}, {"loss": 0.5}, {"loss": 0.2}, {"loss": 0.2}, {"loss": 0.5}], "loss", direction) == chosen


def test_a_metric_that_nobody_logged_is_an_error_that_names_what_was_logged() -> None:
    with pytest.raises(TrainingError, match=r"None of 2 trainings logged the metric 'acc'; logged were: accuracy, loss\."):
        best([{"accuracy": 1.0}, {"loss": 1.0}], "acc", "max")


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (lambda: Grid({"rate": [0.1]}, "loss", "down"), "direction is 'down'; expected 'max'"),
        (lambda: Grid({}, "loss"), "names no parameter"),
        (lambda: Grid({"rate": []}, "loss"), "for 'rate'; expected a list of at least one value"),
        (lambda: Grid({"rate": "fast"}, "loss"), "expected a list of at least one value"),
        (lambda: RandomSearch({"rate": [0.1]}, 0, "loss"), "needs at least 1"),
        (lambda: RandomSearch({"rate": Range(1.0, 0.1)}, 3, "loss"), "expected low < high"),
        (lambda: RandomSearch({"rate": Range(0.0, 0.1, log=True)}, 3, "loss"), "0 < low where log is set"),
    ],
)
def test_an_impossible_search_is_refused(search: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        search()
