"""What validation says of a dataset version is remembered, and a ledger that fails hides none of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlops.artifacts import file_digest
from airflow_mlops.data.snapshot import publish_version
from airflow_mlops.ledger import datasets
from airflow_mlops.ledger.store import Store
from airflow_mlops.operators.stage import RunStageOperator
from airflow_mlops.records import SCHEMA_VERSION, Record
from airflow_mlops.results import DatasetVersion, Finding, ValidationResult, to_data
from airflow_mlops.stages import validate
from tests import fakes
from tests.fakes import context

BROKEN = Finding("expect_column_min_to_be_between", "x", "x goes down to -1.")


@pytest.fixture
def version(tmp_path: Path, workspace: Path, connect: Callable[..., None]) -> DatasetVersion:
    connect("mlflow_default", "mlflow", host="http://127.0.0.1:9")
    return publish_version({"a.csv": b"x,label\n-1,0\n2,1\n"}, tmp_path / "inbox", name="v1", dataset="digits")


@pytest.fixture
def ended(tmp_path: Path, workspace: Path, version: DatasetVersion, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunStageOperator]:
    """Make an operator whose stage has ended with the findings given."""

    def make(*critical: Finding) -> RunStageOperator:
        result: ValidationResult = dataclasses.replace(fakes.validation(workspace, dataset=version), critical=critical)
        record = Record(SCHEMA_VERSION, "validate", "sha256:spec", result=to_data(result))
        (tmp_path / "result.json").write_text("{}")
        process = SimpleNamespace(run=lambda log: record, out_dir=workspace, result_path=tmp_path / "result.json")
        monkeypatch.setattr(RunStageOperator, "_start", lambda self, context: process)
        return RunStageOperator(task_id="validate", stage="validate", spec={})

    return make


def test_a_rejected_version_and_its_findings_are_in_the_ledger(tmp_path: Path, version: DatasetVersion, ledger: Store) -> None:
    suite = tmp_path / "suite.json"
    expectation = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "x", "min_value": 0}}
    suite.write_text(json.dumps({"name": "digits", "expectations": [expectation]}))
    operator = RunStageOperator(task_id="validate", stage="validate", spec=validate.Spec(version, str(suite)))
    with pytest.raises(AirflowFailException, match="DatasetRejected") as caught:
        operator.execute(context())
    assert f"DatasetRejected: {datasets.rejected(ledger, 'digits')[version.digest]}" == str(caught.value)


def test_a_version_that_passes_after_all_is_no_longer_rejected(
    ended: Callable[..., RunStageOperator], version: DatasetVersion, ledger: Store, tmp_path: Path
) -> None:
    with pytest.raises(AirflowFailException):
        ended(BROKEN).execute(context())
    assert set(datasets.rejected(ledger, "digits")) == {version.digest}
    assert ended().execute(context())["digest"] == file_digest(tmp_path / "result.json")
    assert datasets.rejected(ledger, "digits") == {}


@pytest.mark.parametrize("schema", ["/nowhere/at/all/ledger.db", None], ids=["no answer", "no connection"])
def test_a_ledger_that_fails_does_not_hide_the_verdict(
    ended: Callable[..., RunStageOperator], connect: Callable[..., None], schema: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if schema:
        connect("mlops_ledger_default", "mlops_ledger", schema=schema)
    with pytest.raises(AirflowFailException, match="x goes down to -1"):
        ended(BROKEN).execute(context())
    assert ended().execute(context())["stage"] == "validate"
    assert capsys.readouterr().out.count("The verdict on digits v1 is not in the ledger") == 2
