"""A small real pipeline: digits, an expectation suite, and an MLflow store in a SQLite file."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.local.digits import publish_digits
from airflow_mlops.records import ResultRef
from airflow_mlops.results import DatasetVersion
from airflow_mlops.stages import STAGES, train, validate
from tests.fakes import leave_record

LAYOUT = ArrayLayout((8, 8, 1), 10, scale=1 / 16)
EXPECTATIONS = [
    {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 200}},
    {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "label", "value_set": list(range(10))}},
    {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "pixel_3", "max_value": 0}, "severity": "warning"},
]


@dataclass(frozen=True)
class Workshop:
    """Everything stages need, below one directory."""

    home: Path
    v1: DatasetVersion
    v2: DatasetVersion

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.home}/mlflow/mlflow.db"

    @property
    def suite(self) -> Path:
        return self.home / "suite.json"

    def run(self, name: str, spec: Any, out_dir: str) -> tuple[ResultRef, Any]:
        """Run a stage in this process; return the reference to its record, and its result."""
        path = self.home / "runs" / out_dir / name
        path.mkdir(parents=True)
        result = STAGES[name].run(spec, path)
        return leave_record(path.parent, name, result), result

    def validate(self, version: DatasetVersion) -> tuple[ResultRef, Any]:
        """Validate in a directory of its own each time: the files of tests share the workshop."""
        return self.run("validate", validate.Spec(version, str(self.suite)), tempfile.mkdtemp(prefix=f"{version.name}-", dir=self.home))

    def training_spec(self, validation: ResultRef, *, function: str = "train", start: str = "scratch", **changes: Any) -> train.Spec:
        code = str(Path(__file__).parent)
        spec = train.Spec(validation, LAYOUT, f"user_code:{function}", code, "digits", self.tracking_uri, {"epochs": 4}, start)
        return spec._replace(**changes)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Workshop:
    home = tmp_path_factory.mktemp("workshop")
    (home / "mlflow").mkdir()
    shutil.copy(empty_mlflow, home / "mlflow")
    (home / "suite.json").write_text(json.dumps({"name": "digits", "expectations": EXPECTATIONS}))
    v1 = publish_digits(home / "inbox", "v1", num_rows=300, seed=1)
    return Workshop(home, v1, publish_digits(home / "inbox", "v2", num_rows=900, seed=2))
