"""Data Docs: what an expectation suite found in a dataset version, as one HTML file that needs no other file, no script and no network.

Great Expectations' own pages load their styles and scripts from six hosts, and show next to nothing where those do not answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from airflow_mlops.artifacts import write_atomically
from airflow_mlops.results import DatasetVersion

HOLDS, FAILS, UNKNOWN = "holds", "fails", "unknown"
PAGE = "index.html"


class Check(NamedTuple):
    """One expectation: what it is about, what it expects, what was found, how severe a failure is, and the `outcome`."""

    subject: str
    expected: str
    found: str
    severity: str
    outcome: str


class About(NamedTuple):
    """What was checked: the version with `num_rows` rows, by the suite of that name, with the sentence that sums it up.

    `critical` is whether the version is rejected; `run_url` leads to the task in Airflow, empty for no link.
    """

    dataset: DatasetVersion
    num_rows: int
    suite: str
    headline: str
    critical: bool
    run_url: str = ""


def write(directory: Path, about: About, checks: Sequence[Check]) -> None:
    """Write ``index.html`` to `directory`, for `checks` in the suite's order."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("airflow_mlops.data"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found = {outcome: [check for check in checks if check.outcome == outcome] for outcome in (HOLDS, FAILS, UNKNOWN)}
    fields = about._asdict() | {"run_url": about.run_url if about.run_url.startswith(("http://", "https://")) else ""}
    page = environment.get_template("data_docs.html").render(held=found[HOLDS], failed=found[FAILS], unknown=found[UNKNOWN], **fields)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / PAGE, page.encode())
