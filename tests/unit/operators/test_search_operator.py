"""The operator that chooses among trainings, and only verified ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlops.ledger.store import Store
from airflow_mlops.operators.search import ChooseTrainingOperator
from airflow_mlops.results import to_data
from tests import fakes
from tests.fakes import context


def trainings(directory: Path, *losses: float) -> list[dict[str, Any]]:
    """Return what the mapped task's trainings pushed."""
    homes = [directory / str(number) for number in range(len(losses))]
    results = [fakes.training(home, metrics={"loss": loss}) for home, loss in zip(homes, losses, strict=True)]
    return [to_data(fakes.leave_record(home, "train", result)) for home, result in zip(homes, results, strict=True)]


def test_the_training_with_the_best_metric_is_chosen(tmp_path: Path, ledger: Store) -> None:
    found = trainings(tmp_path, 0.5, 0.2, 0.9)
    after = context(task=fakes.handed_over(ledger, found))
    for direction, number in (("min", 1), ("max", 2)):
        operator = ChooseTrainingOperator(task_id="choose", trainings=found, metric="loss", direction=direction)
        assert operator.execute(after) == found[number]


def test_what_is_missing_of_a_trial_that_failed_ends_nothing(tmp_path: Path, ledger: Store) -> None:
    found = trainings(tmp_path, 0.5, 0.2)
    operator = ChooseTrainingOperator(task_id="choose", trainings=[None, *found], metric="loss", direction="min", num_trials=3)
    given = context(task=fakes.handed_over(ledger, found))
    assert operator.execute(given) == found[1]
    assert given["search_outcome"].startswith("loss 0.2 of {")
    assert given["search_outcome"].endswith("was the best; 1 of 3 trials failed and are not among those compared")


def test_a_model_that_changed_after_its_training_is_not_chosen(tmp_path: Path, ledger: Store) -> None:
    found = trainings(tmp_path, 0.5, 0.2)
    (tmp_path / "1" / "model.keras").write_bytes(b"another")
    operator = ChooseTrainingOperator(task_id="choose", trainings=found, metric="loss", direction="min")
    with pytest.raises(AirflowFailException, match="changed after it was recorded"):
        operator.execute(context(task=fakes.handed_over(ledger, found)))


def test_a_metric_that_was_not_logged_fails_without_retries(tmp_path: Path, ledger: Store) -> None:
    found = trainings(tmp_path, 0.5)
    operator = ChooseTrainingOperator(task_id="choose", trainings=found, metric="accuracy")
    with pytest.raises(AirflowFailException, match="logged were: loss"):
        operator.execute(context(task=fakes.handed_over(ledger, found)))


@pytest.mark.parametrize("change", ["one is missing", "one twice", "of another run", "none", "no list"])
def test_a_choice_among_other_trainings_than_those_of_the_run_is_refused(tmp_path: Path, ledger: Store, change: str) -> None:
    found, other = trainings(tmp_path, 0.5, 0.2), trainings(tmp_path / "other", 0.1)
    after = fakes.handed_over(ledger, found)
    altered = {"one is missing": found[:1], "one twice": [found[1], found[1]], "of another run": [found[0], *other], "none": [], "no list": 7}
    operator = ChooseTrainingOperator(task_id="choose", trainings=altered[change], metric="loss", direction="min")
    with pytest.raises(AirflowFailException, match=r"NotHandedOver: .*Clear 'before'"):
        operator.execute(context(task=after))
