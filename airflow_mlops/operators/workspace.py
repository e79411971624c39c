"""Where a task keeps its files, and the links by which a person reaches them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink, conf

if TYPE_CHECKING:
    from airflow.sdk import Context

REPORT_KEY = "report_url"


def workspace() -> Path:
    """Return the directory of all runs: configuration ``[mlops] workspace``, shared by the workers and the API server."""
    return Path(conf.get("mlops", "workspace")).expanduser().absolute()


def try_directory(context: Context) -> Path:
    """Return the directory of this try of this task, so that what an earlier try left is never taken for this one's."""
    ti = context["ti"]
    mapped = f"-{ti.map_index}" if ti.map_index is not None and ti.map_index >= 0 else ""
    run = re.sub(r"[^A-Za-z0-9_.+-]", "_", ti.run_id)
    return workspace() / "runs" / ti.dag_id / run / f"{ti.task_id}{mapped}" / f"try-{ti.try_number}"


def report_url(page: Path) -> str:
    """Return the address under which the API server shows `page`, a file below the workspace."""
    return f"/mlops/reports/{quote(page.relative_to(workspace()).as_posix())}"


class ReportLink(BaseOperatorLink):
    """Button on a task: its HTML report (Data Docs, robustness report)."""

    name = "Report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        from airflow.providers.common.compat.sdk import XCom

        return XCom.get_value(ti_key=ti_key, key=REPORT_KEY) or ""
