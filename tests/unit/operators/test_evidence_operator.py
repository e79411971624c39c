"""The last task of a release: one pack per run, whatever is retried, with its digest and score in the trail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlops.exceptions import LedgerUnavailable
from airflow_mlops.ledger import journal, questions
from airflow_mlops.ledger.evidence.pack import verify
from airflow_mlops.ledger.store import Store
from airflow_mlops.operators.evidence import WriteEvidencePackOperator
from airflow_mlops.registry import registrations
from tests import fakes
from tests.fakes import FakeTaskInstance, context
from tests.released import MODEL, VERSION, Released

RUN_ID = "manual__2026-01-01T00:00:00+00:00"
DIRECTORY = "7/manual__2026-01-01T00~3a00~3a00+00~3a00"


class Desk:
    """The task, run again and again for one release."""

    def __init__(self, released: Released, workspace: Path) -> None:
        self.released, self.workspace = released, workspace
        self.path = workspace / "evidence" / "digits_release" / MODEL / DIRECTORY

    def write(self, run_id: str = RUN_ID, statements: str = "", **ti: Any) -> dict[str, Any]:
        model = {"name": MODEL, "version": VERSION, "expected_champion": 6, "previous": 6}
        self.ti = FakeTaskInstance(**{"dag_id": "digits_release", "run_id": run_id, "task_id": "evidence", **ti})
        return WriteEvidencePackOperator(task_id="evidence", model=model, statements=statements).execute(self.after(model))

    def after(self, model: dict[str, Any]) -> Any:
        return context(self.ti, task=fakes.handed_over(self.released.store, model, ti=self.ti))

    def events(self) -> list[Any]:
        return [event for event in questions.why(self.released.store, MODEL, VERSION) if event.kind == "evidence"]


@pytest.fixture
def desk(tmp_path: Path, workspace: Path, ledger: Store) -> Desk:
    released = Released(tmp_path, ledger)
    registrations.note(ledger, MODEL, VERSION, "digits_on_dataset/run 1", released.tags)
    return Desk(released.promoted(), workspace)


def test_a_release_leaves_one_pack_that_the_trail_vouches_for(desk: Desk) -> None:
    answer = desk.write()
    assert json.loads(json.dumps(answer)) == answer
    assert (answer["path"], answer["previous"]) == (str(desk.path), 6)
    assert answer["headline"] == (
        "ML Test Score 0 (data 1, model 0, infrastructure 1, monitoring 1); missing: differential report, model-test report; "
        f"evidence of digits version 7 is at {desk.path}"
    )
    assert desk.ti.pushed == {"report_url": f"/mlops/reports/evidence/digits_release/digits/{quote(DIRECTORY)}/index.html"}
    [event] = desk.events()
    assert (event.actor, event.details["digest"], event.details["score"]) == (f"digits_release/{RUN_ID}", verify(desk.path), 0)
    assert verify(desk.path, event.details["digest"]) == answer["digest"]


def test_a_repetition_finds_its_pack_and_tells_nothing_twice(desk: Desk) -> None:
    first = desk.write()
    desk.released.happened("served", label="stable", previous=7)  # the trail goes on; what was written before it does not change
    assert desk.write(try_number=2) == first
    assert len(desk.events()) == 1


def test_a_try_that_ended_between_the_pack_and_its_event_is_made_good(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: Any, **__: Any) -> None:
        raise LedgerUnavailable("The ledger did not answer.")

    with monkeypatch.context() as patch, pytest.raises(LedgerUnavailable):
        patch.setattr(journal, "once", unavailable)
        desk.write()
    left = verify(desk.path)
    assert desk.events() == []
    assert desk.write(try_number=2)["digest"] == left
    assert [event.details["digest"] for event in desk.events()] == [left]


def test_another_run_writes_another_pack(desk: Desk) -> None:
    assert desk.write()["digest"] != desk.write(run_id="manual__2")["digest"]
    assert {path.name for path in desk.path.parent.iterdir()} == {DIRECTORY.removeprefix("7/"), "manual__2"}
    assert len(desk.events()) == 2


def test_a_pack_that_changed_since_is_not_taken_for_done(desk: Desk) -> None:
    desk.write()
    (desk.path / "score.json").write_text("{}")
    with pytest.raises(AirflowFailException, match=r"EvidenceInvalid: .*score\.json changed"):
        desk.write(try_number=2)
    shutil.rmtree(desk.path)
    with pytest.raises(AirflowFailException, match=r"EvidenceInvalid: .*is no evidence pack"):
        desk.write(try_number=3)


def test_missing_evidence_is_told_and_fails_nothing(desk: Desk) -> None:
    Path(desk.released.refs["train"].uri).unlink()
    answer = desk.write()
    assert "missing: differential report, model-test report, train" in answer["headline"]
    assert "No such file" in desk.events()[0].details["missing"]["train"]
    assert answer["sections"]["monitoring"] == 0


def test_statements_of_people_count_half_and_a_wrong_one_fails_before_anything_is_written(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text('[privacy_control]\ntext = "Done."\nlink = "https://wiki.example.org"\n')
    with pytest.raises(AirflowFailException, match=r"Did you mean 'privacy_controls'\?"):
        desk.write(statements=str(tmp_path / "wrong.toml"))
    assert not desk.path.exists()
    (tmp_path / "right.toml").write_text('[privacy_controls]\ntext = "Done."\nlink = "https://wiki.example.org"\n')
    assert desk.write(statements=str(tmp_path / "right.toml"))["sections"]["data"] == 1.5


def test_the_constructor_only_assigns_and_the_model_is_a_template_in_depth() -> None:
    operator = WriteEvidencePackOperator(task_id="t", model={"name": "{{ params.model }}", "version": 3}, ledger_conn_id="a")
    operator.render_template_fields({"params": {"model": "digits"}})
    assert (operator.model, operator.statements, operator.ledger_conn_id) == ({"name": "digits", "version": 3}, "", "a")
