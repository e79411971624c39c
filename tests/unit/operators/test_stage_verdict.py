"""What validation says of a dataset version is remembered, and a ledger that fails hides none of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlops.artifacts import canonical_json, file_digest
from airflow_mlops.data.snapshot import publish_version
from airflow_mlops.exceptions import LedgerUnavailable
from airflow_mlops.ledger import datasets, handovers
from airflow_mlops.ledger.store import Store
from airflow_mlops.operators import stage
from airflow_mlops.operators.stage import RunStageOperator
from airflow_mlops.records import SCHEMA_VERSION, Record
from airflow_mlops.results import DatasetVersion, Finding, ValidationResult, to_data
from airflow_mlops.stages import validate
from tests import fakes
from tests.fakes import FakeTaskInstance, context

RUN = f"{FakeTaskInstance().dag_id}/{FakeTaskInstance().run_id}"
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
        (tmp_path / "result.json").write_bytes(canonical_json(to_data(record)))
        process = SimpleNamespace(run=lambda log: record, out_dir=workspace / "runs" / "d" / "validate", result_path=tmp_path / "result.json")
        monkeypatch.setattr(RunStageOperator, "_start", lambda self, context: process)
        return RunStageOperator(task_id="validate", stage="validate", spec={})

    return make


def test_a_rejected_version_and_its_findings_are_in_the_ledger(tmp_path: Path, version: DatasetVersion, ledger: Store) -> None:
    suite = tmp_path / "suite.json"
    expectation = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "x", "min_value": 0}}
    suite.write_text(json.dumps({"name": "digits", "expectations": [expectation]}))
    operator = RunStageOperator(task_id="validate", stage="validate", spec=validate.Spec(version, str(suite)))
    with pytest.raises(AirflowFailException, match="DatasetRejected") as caught:
        operator.execute(context(task=fakes.handed_over(ledger, to_data(version))))
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
    assert capsys.readouterr().out.count("The verdict on digits v1 is not in the ledger") == 1


def test_a_result_that_the_ledger_does_not_have_is_none_and_is_noted_as_soon_as_it_answers(
    ended: Callable[..., RunStageOperator], connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch, ledger: Store, tmp_path: Path
) -> None:
    asked: list[float] = []

    def wait(seconds: float) -> None:
        asked.append(seconds)
        if len(asked) == 2:
            connect("mlops_ledger_default", "mlops_ledger", schema=str(tmp_path / "ledger.db"))

    monkeypatch.setattr(stage, "time", SimpleNamespace(sleep=wait))  # the operator's alone: other threads sleep meanwhile
    connect("mlops_ledger_default", "mlops_ledger", schema="/nowhere/at/all/ledger.db")
    answer = ended().execute(context())
    assert asked == list(stage.LEDGER_PAUSES[:2])
    assert handovers.handed_over(ledger, RUN)["train"][-1].value == answer
    monkeypatch.setattr(stage, "time", SimpleNamespace(sleep=asked.append))
    connect("mlops_ledger_default", "mlops_ledger", schema="/nowhere/at/all/ledger.db")
    with pytest.raises(LedgerUnavailable):
        ended().execute(context())


def test_a_record_that_changes_while_it_is_verified_is_no_result(ended: Callable[..., RunStageOperator], ledger: Store, tmp_path: Path) -> None:
    operator = ended()
    better = dataclasses.replace(fakes.validation(tmp_path), num_rows=10**6)
    fakes.leave_record(tmp_path / "other", "validate", better)
    (tmp_path / "result.json").write_bytes((tmp_path / "other" / "validate" / "result.json").read_bytes())
    with pytest.raises(AirflowFailException, match=r"ResultInvalid: .*changed while it was verified"):
        operator.execute(context())
    assert handovers.handed_over(ledger, RUN) == {}
