"""Stage ``validate``: does the dataset version keep what its expectation suite promises?"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from airflow_mlops.results import DatasetVersion, ValidationResult


class Spec(NamedTuple):
    """`suite` is the path of a Great Expectations suite in JSON; `run_url` is where the Data Docs lead back to, empty for nowhere."""

    dataset: DatasetVersion
    suite: str
    run_url: str = ""


Result = ValidationResult


def run(spec: Spec, out_dir: Path) -> ValidationResult:
    """Verify the version's files, run the suite on its rows, write Data Docs to ``data_docs``."""
    from airflow_mlops.data.readers import read_frame
    from airflow_mlops.data.suites import load_suite
    from airflow_mlops.data.validation import validate

    return validate(
        read_frame(spec.dataset), load_suite(Path(spec.suite)), dataset=spec.dataset, docs_dir=out_dir / "data_docs", run_url=spec.run_url
    )
