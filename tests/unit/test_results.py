"""Every result survives JSON, and nothing that is not one passes for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.artifacts import artifacts
from airflow_mlops.exceptions import DatasetRejected, ResultInvalid
from airflow_mlops.results import EvaluationResult, Finding, from_data, to_data
from tests import fakes


@pytest.fixture(params=["validation", "training", "evaluation", "robustness"])
def result(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return {
        "validation": lambda: fakes.validation(tmp_path),
        "training": lambda: fakes.training(tmp_path),
        "evaluation": fakes.evaluation,
        "robustness": lambda: fakes.robustness(tmp_path),
    }[request.param]()


def test_a_result_is_the_same_after_json(result: Any) -> None:
    assert from_data(type(result), json.loads(json.dumps(to_data(result), allow_nan=False))) == result


def test_an_unknown_field_is_refused_by_its_name(result: Any) -> None:
    with pytest.raises(ResultInvalid, match=f"is not a {type(result).__name__}: sorcery: "):
        from_data(type(result), {**to_data(result), "sorcery": 1})


def test_every_missing_field_is_named(result: Any) -> None:
    data = to_data(result)
    first, second, *_ = list(data)
    with pytest.raises(ResultInvalid, match=rf"{first}: Field required; {second}: Field required"):
        from_data(type(result), {name: value for name, value in data.items() if name not in (first, second)})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused(number: float) -> None:
    with pytest.raises(ResultInvalid, match=r"metrics\.accuracy: Input should be a finite number"):
        from_data(EvaluationResult, to_data(fakes.evaluation(metrics={"accuracy": number})))


def test_a_wrong_type_deep_inside_is_named_by_its_path(tmp_path: Path) -> None:
    data = to_data(fakes.robustness(tmp_path))
    data["defect_rates"]["noise"]["rate"] = "many"
    with pytest.raises(ResultInvalid, match=r"defect_rates\.noise\.rate: "):
        from_data(type(fakes.robustness(tmp_path)), data)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_what_is_no_object_is_refused(data: Any) -> None:
    with pytest.raises(ResultInvalid, match="top: "):
        from_data(EvaluationResult, data)


def test_a_headline_is_one_line_of_figures(result: Any) -> None:
    line = result.headline()
    assert "\n" not in line
    assert any(character.isdigit() for character in line)


def test_every_artefact_of_a_result_is_found(tmp_path: Path) -> None:
    training = fakes.training(tmp_path)
    assert list(artifacts(training)) == [training.model, training.saved_model, training.golden]
    assert list(artifacts({"a": [training.model], "b": (training.golden, 3)})) == [training.model, training.golden]


def test_a_critical_finding_stops_the_run_and_a_warning_does_not(tmp_path: Path) -> None:
    assert fakes.validation(tmp_path).refusal() is None
    refusal = fakes.validation(tmp_path, critical=(Finding("e", "label", "label holds 12, expected 0 to 9."),)).refusal()
    assert isinstance(refusal, DatasetRejected)
    assert "label holds 12, expected 0 to 9." in str(refusal)
    assert not refusal.retryable


def test_a_refusal_names_three_reasons_and_counts_the_rest(tmp_path: Path) -> None:
    findings = tuple(Finding("e", None, f"Reason {number}.") for number in range(5))
    refusal = str(fakes.validation(tmp_path, critical=findings).refusal())
    assert "breaks 5 critical expectations. Reason 0. Reason 1. Reason 2. And 2 more, see the report." in refusal


def test_the_report_of_a_result_is_a_page_that_exists(tmp_path: Path) -> None:
    for result in (fakes.validation(tmp_path), fakes.robustness(tmp_path)):
        page = result.report()
        assert page is not None
        assert page.read_bytes() == b"<html>"
