"""The button "Report": its address is in an XCom, which people can edit, so it leads to a report or nowhere."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import XCom

from airflow_mlops.hooks.workspace import report_url, workspace
from airflow_mlops.operators.links import ReportLink


@pytest.fixture(params=["", "http://airflow.example.org/team/airflow"])
def base_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", request.param)
    return str(request.param)


def linked(monkeypatch: pytest.MonkeyPatch, value: Any) -> str:
    monkeypatch.setattr(XCom, "get_value", lambda **_: value)
    return ReportLink().get_link(None, ti_key=None)


def test_the_link_of_a_task_is_that_of_its_report(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = report_url(workspace() / "runs" / "digits" / "a b" / "index.html")
    assert right.endswith("/mlops/reports/runs/digits/a%20b/index.html")
    assert linked(monkeypatch, right) == right


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        ["/mlops/reports/x"],
        "",
        "javascript:alert(1)",
        "//evil.example.org/mlops/reports/x",
        "https://evil.example.org/",
        "/mlops/reports/../../logout",
        "/mlops/reports/%2e%2e/%2E%2E/logout",
        "/team/airflow/mlops/reports/%2e%2e/logout",
        "/elsewhere",
    ],
)
def test_a_forged_link_leads_nowhere(base_url: str, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    assert linked(monkeypatch, value) == ""
