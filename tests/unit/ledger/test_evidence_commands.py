"""``airflow-mlops evidence`` as a function: what a person sees, and the exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_mlops import cli
from airflow_mlops.ledger.evidence.pack import Pack
from airflow_mlops.ledger.evidence.rubric import RUBRIC
from airflow_mlops.ledger.store import Store
from tests.released import Released


@pytest.fixture
def pack(tmp_path: Path, database: Path) -> Pack:
    with Store(f"sqlite:///{database}") as store:
        return Released(tmp_path, store).promoted().pack()


def test_a_whole_pack_is_said_to_be_whole_with_its_digest(pack: Pack, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evidence", "verify", str(pack.path)]) == 0
    assert capsys.readouterr().out == f"Every file is as it was written; without --digest a pack that was forged whole looks whole.\n{pack.digest}\n"
    assert cli.main(["evidence", "verify", str(pack.path), "--digest", pack.digest]) == 0
    assert capsys.readouterr().out == f"Every file is as it was written.\n{pack.digest}\n"


def test_the_score_is_28_lines_in_the_order_of_the_rubric(pack: Pack, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evidence", "score", str(pack.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    tests = [line for line in lines if line.startswith("  ")]
    assert [line.split()[1].rstrip(":") for line in tests] == list(RUBRIC)
    assert tests[0].startswith("  1   data_schema: A suite was checked")
    assert " To do: " in tests[1]
    assert [line for line in lines if not line.startswith("  ")] == [
        "data: 1 of 7",
        "model: 0 of 7",
        "infrastructure: 1 of 7",
        "monitoring: 1 of 7",
        "ML Test Score 0, the smallest of the four: more of a research project than a productionized system.",
    ]


@pytest.mark.parametrize("question", ["verify", "score"])
def test_a_changed_pack_is_an_error_that_names_the_file(pack: Pack, question: str, capsys: pytest.CaptureFixture[str]) -> None:
    (pack.path / "model_card.md").write_text("# The best model")
    assert cli.main(["evidence", question, str(pack.path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "model_card.md changed" in captured.err
