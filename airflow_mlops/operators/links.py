"""The links by which a person reaches what a task left behind."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperatorLink

REPORT_KEY = "report_url"


class ReportLink(BaseOperatorLink):
    """Button on a task: its HTML report (Data Docs, robustness report)."""

    name = "Report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        from airflow.providers.common.compat.sdk import XCom

        return XCom.get_value(ti_key=ti_key, key=REPORT_KEY) or ""
