"""A suite is a file people edit: every mistake is answered with its line and the nearest right name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_mlops.data.suites import Expectation, load_suite
from airflow_mlops.exceptions import SpecError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "suite.json"
    path.write_text(text)
    return path


def test_a_suite_is_read_in_its_order_and_severity_is_critical_unless_said(tmp_path: Path) -> None:
    text = """{"name": "s", "expectations": [
      {"type": "b", "kwargs": {"column": "x"}},
      {"type": "a", "kwargs": {}, "severity": "warning"}
    ]}"""
    suite = load_suite(written(tmp_path, text))
    assert suite.name == "s"
    assert suite.expectations == (Expectation("b", {"column": "x"}, "critical"), Expectation("a", {}, "warning"))
    assert [expectation.where.rpartition(":")[2] for expectation in suite.expectations] == ["2", "3"]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ('{"type": "a", "kwrags": {}}', r"suite\.json:3: unknown key 'kwrags'.*Did you mean 'kwargs'"),
        ('{"type": "a", "kwargs": {}, "severity": "criticl"}', r":3: unknown severity 'criticl'.*Did you mean 'critical'"),
        ('{"type": "a"}', r":3: the key 'kwargs' is missing"),
        ('{"type": 1, "kwargs": {}}', r":3: 'type' is 1: expected a JSON value of type str"),
        ('{"type": "a", "kwargs": []}', r":3: 'kwargs' is \[\]"),
        ('"a"', r'found "a": expected an object'),
    ],
)
def test_a_wrong_expectation_is_told_with_its_line(tmp_path: Path, item: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        load_suite(written(tmp_path, '{"name": "s", "expectations": [\n  {"type": "a", "kwargs": {"type": 1}},\n  ' + item + "]}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no JSON document"),
        ("[]", "expected an object"),
        ('{"name": "s", "expectations": []}', "no expectation"),
        ('{"expectations": [1]}', "'name' is missing"),
        ('{"name": "s", "expectation": []}', "Did you mean 'expectations'"),
    ],
)
def test_a_file_that_is_no_suite_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        load_suite(written(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="does not exist"):
        load_suite(tmp_path / "suite.json")


def test_kwargs_are_read_as_any_json_reader_reads_them(tmp_path: Path) -> None:
    kwargs = {"a": [1, 2.5, None, True, {"b": "ü\n"}], "c": {}}
    path = written(tmp_path, json.dumps({"name": "s", "expectations": [{"type": "t", "kwargs": kwargs}]}))
    assert load_suite(path).expectations[0].kwargs == kwargs
