"""The links by which a person reaches what a task left behind."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from airflow.sdk import BaseOperatorLink

from airflow_mlops.hooks.workspace import reports_url

REPORT_KEY = "report_url"


class ReportLink(BaseOperatorLink):
    """Button on a task: its HTML report (Data Docs, robustness report)."""

    name = "Report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the report's address; nothing where the XCom, which people can edit, leads anywhere but to a report."""
        from airflow.providers.common.compat.sdk import XCom

        link = XCom.get_value(ti_key=ti_key, key=REPORT_KEY)
        is_report = isinstance(link, str) and link.startswith(reports_url()) and ".." not in unquote(link)
        return link if is_report else ""
