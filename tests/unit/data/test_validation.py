"""Real Great Expectations on real digits: good ones pass, broken ones are refused with reasons a person can read."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from airflow_mlops.data.suites import Expectation, Suite, load_suite
from airflow_mlops.data.validation import validate
from airflow_mlops.exceptions import SpecError
from airflow_mlops.results import DatasetVersion, Finding, ValidationResult, from_data, to_data

DIGITS_SUITE = Path(__file__).parents[3] / "dags" / "digits_suite.json"
DATASET = DatasetVersion("digits", "v1", "sha256:" + "a" * 64, "/inbox/v1")
SMALL = pd.DataFrame({"x": [1.0, 2.0, None, 99.0], "label": [0, 1, 2, 12]})


def expectation(name: str, severity: str = "critical", **kwargs: Any) -> Expectation:
    return Expectation(f"expect_{name}", kwargs, severity, "suite.json:7")


def run(tmp_path: Path, frame: pd.DataFrame, *expectations: Expectation) -> ValidationResult:
    return validate(frame, Suite("s", expectations), dataset=DATASET, docs_dir=tmp_path / "docs")


def only(result: ValidationResult) -> Finding:
    (finding,) = result.critical + result.warnings
    return finding


@pytest.fixture(scope="module")
def digits() -> pd.DataFrame:
    bunch = load_digits()
    frame = pd.DataFrame(bunch.data.astype(int), columns=[f"pixel_{index}" for index in range(64)])
    return frame.assign(label=bunch.target)


def test_real_digits_pass_the_digits_suite_and_leave_data_docs(tmp_path: Path, digits: pd.DataFrame) -> None:
    before = set(Path(tempfile.gettempdir()).iterdir())
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        result = validate(digits, load_suite(DIGITS_SUITE), dataset=DATASET, docs_dir=tmp_path / "docs")
    assert (result.critical, result.warnings) == ((), ())
    assert (result.num_rows, result.num_expectations) == (1797, len(json.loads(DIGITS_SUITE.read_text())["expectations"]))
    assert (result.data_docs.verify() / "index.html").is_file()
    assert "Calculating Metrics" not in stderr.getvalue(), "no progress bars in a task's log"
    left = {path.name for path in set(Path(tempfile.gettempdir()).iterdir()) - before}
    assert not [name for name in left if (Path(tempfile.gettempdir()) / name / "index.html").exists()], "no second site elsewhere"
    assert from_data(ValidationResult, json.loads(json.dumps(to_data(result)))) == result


def test_broken_digits_fail_with_a_sentence_for_each_reason(tmp_path: Path, digits: pd.DataFrame) -> None:
    broken = digits.astype({"pixel_3": float}).assign(label=digits["label"].replace({0: 12, 1: 11}))
    broken.loc[5, "pixel_3"] = np.nan
    broken.loc[6:8, "pixel_4"] = 99
    result = validate(broken, load_suite(DIGITS_SUITE), dataset=DATASET, docs_dir=tmp_path / "docs")
    assert [finding.message for finding in result.critical] == [
        "Column 'label': 360 of 1797 values are unexpected, for example 12, 11; "
        "expected column_values_to_be_in_set with value_set=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9].",
        "Column 'pixel_3': 1 of 1797 values are unexpected; expected column_values_to_not_be_null.",
        "Column 'pixel_4': 3 of 1797 values are unexpected, for example 99; expected column_values_to_be_between with min_value=0, max_value=16.",
    ]
    assert {finding.column for finding in result.warnings} == {"label"}


def test_digits_with_a_column_missing_or_columns_permuted_are_refused(tmp_path: Path, digits: pd.DataFrame) -> None:
    suite = load_suite(DIGITS_SUITE)
    (finding,) = run(tmp_path, digits[sorted(digits.columns)], *suite.expectations[:4]).critical
    assert "(65 in all)" in finding.message and finding.message.startswith("Table: ")
    missing = validate(digits.drop(columns="pixel_9"), suite, dataset=DATASET, docs_dir=tmp_path / "docs")
    assert [finding.column for finding in missing.critical] == [None, "pixel_9", "pixel_9"]


def test_severity_decides_between_critical_and_warning(tmp_path: Path) -> None:
    check = {"column": "label", "value_set": [0, 1, 2]}
    severities = ("info", "critical", "warning")
    result = run(tmp_path, SMALL, *(expectation("column_values_to_be_in_set", severity, **check) for severity in severities))
    assert (len(result.critical), len(result.warnings)) == (1, 2)


def test_what_could_not_be_evaluated_is_told_apart_from_what_failed_and_counts_the_same(tmp_path: Path) -> None:
    result = run(
        tmp_path,
        SMALL,
        expectation("column_mean_to_be_between", column="missing", min_value=0),
        expectation("column_values_to_be_between", "warning", column="missing", min_value=0),
        expectation("column_mean_to_be_between", column="x", max_value=5),
    )
    evaluated = ["could not be evaluated" not in finding.message for finding in result.critical]
    assert evaluated == [False, True]
    assert result.critical[0].message.startswith("Column 'missing': could not be evaluated (")
    assert "does not exist" in result.critical[0].message
    assert result.critical[1].message == "Column 'x': observed 34; expected column_mean_to_be_between with max_value=5."
    assert "could not be evaluated" in only(run(tmp_path, SMALL, expectation("column_values_to_be_unique", column="missing"))).message
    assert len(result.warnings) == 1


@pytest.mark.parametrize(("bound", "num_findings"), [(2, 0), (1, 1)])
def test_quantiles_are_stored_whether_they_hold_or_not(tmp_path: Path, bound: int, num_findings: int) -> None:
    ranges = {"quantiles": [0.5], "value_ranges": [[0, bound]]}
    result = run(tmp_path, SMALL[1:], expectation("column_quantile_values_to_be_between", column="label", quantile_ranges=ranges))
    assert len(result.critical) == num_findings
    assert all("observed" in finding.message for finding in result.critical)


def test_findings_come_in_the_suites_order_and_twice_the_same(tmp_path: Path) -> None:
    expectations = (
        expectation("table_row_count_to_be_between", min_value=10),
        expectation("column_values_to_be_between", column="x", max_value=16),
        expectation("column_to_exist", column="zz"),
        expectation("column_mean_to_be_between", column="missing", max_value=1),
        expectation("column_values_to_be_between", column="x", max_value=16),
        expectation("multicolumn_sum_to_equal", column_list=["x", "label"], sum_total=3),
        expectation("table_columns_to_match_set", column_set=["x", "y"]),
    )
    results = [run(tmp_path / name, SMALL, *expectations) for name in ("one", "two")]
    assert results[0].critical == results[1].critical
    assert [finding.expectation for finding in results[0].critical] == [one.type for one in expectations]


def test_a_second_try_in_the_same_directory_leaves_one_page(tmp_path: Path) -> None:
    for _ in range(2):
        result = run(tmp_path, SMALL, expectation("column_to_exist", column="x"))
    assert [path.name for path in (tmp_path / "docs").rglob("*")] == ["index.html"]
    result.data_docs.verify()


def test_data_docs_are_the_result_itself_and_need_nothing_from_elsewhere(tmp_path: Path) -> None:
    expectations = (
        expectation("column_to_exist", column="x"),
        expectation("column_values_to_be_between", column="x", max_value=16),
        expectation("column_mean_to_be_between", "warning", column="missing", max_value=1),
        expectation("column_values_to_be_in_set", column="text", value_set=["<b>bold</b>"]),
    )
    frame = SMALL.assign(text=["<script>alert(1)</script>", "<b>bold</b>", "", ""])
    task = "https://airflow.example.org/team/dags/d/runs/a%2Bb/tasks/validate?try_number=1"
    result = validate(frame, Suite("the suite", expectations), dataset=DATASET, docs_dir=tmp_path / "docs", run_url=task)
    page = (result.data_docs.path / "index.html").read_text()
    assert f'<a href="{task}" rel="noreferrer">' in page and page.count("http") == 1
    assert not re.search(r"<(script|link|img|iframe)|@import|url\(|src=", page)
    assert result.headline().replace("'", "&#39;") in page and "the suite" in page and DATASET.digest in page
    words = ("<h2>Does not hold", "values are unexpected", "<h2>Could not", "&#39;missing&#39;", "<h2>Holds", "column_to_exist")
    places = [page.index(word) for word in words]
    assert places == sorted(places)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.mark.parametrize("address", ["", "javascript:alert(1)", "//evil", "data:text/html,x"])
def test_data_docs_lead_nowhere_but_to_a_page(tmp_path: Path, address: str) -> None:
    result = validate(SMALL, Suite("s", (expectation("column_to_exist", column="x"),)), dataset=DATASET, docs_dir=tmp_path, run_url=address)
    assert "href" not in (result.data_docs.path / "index.html").read_text()


def test_strings_dates_and_infinities_in_the_data_are_told_and_stored(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "day": pd.to_datetime(["2026-01-01", "2026-02-01"]), "x": [1.0, np.inf]})
    result = run(
        tmp_path,
        frame,
        expectation("column_values_to_be_in_set", column="text", value_set=["a"]),
        expectation("column_max_to_be_between", column="day", max_value="2026-01-15T00:00:00"),
        expectation("column_values_to_be_between", column="x", max_value=5),
    )
    for said, finding in zip(('example "b"', "2026-02-01", 'example "inf"'), result.critical, strict=True):
        assert said in finding.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            expectation("column_values_to_be_in_sett", column="x"),
            r"suite\.json:7: unknown expectation type .*Did you mean 'expect_column_values_to_be_in_set'",
        ),
        (expectation("column_values_to_be_in_set", column="x", value_sett=[1]), r"has no argument 'value_sett'.*Did you mean 'value_set'"),
        (expectation("column_values_to_be_in_set", column="x"), r"does not accept these kwargs: .*value_set field required"),
        (expectation("column_values_to_be_between", column="x"), r"does not accept these kwargs"),
        (expectation("column_values_to_be_in_set", column="x", value_set=[1], severity_="x"), r"has no argument 'severity_'"),
    ],
)
def test_an_impossible_expectation_is_refused_with_its_line_before_any_page_is_written(tmp_path: Path, wrong: Expectation, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        run(tmp_path, SMALL, wrong)
    assert not (tmp_path / "docs").exists()
