"""``airflow-mlops twin-run`` and ``rebuild`` say what is wrong with what they are given, and leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_mlops.cli import main


def test_the_spec_of_another_stage_is_no_training_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({"dataset": {}, "suite": "suite.json"}))
    assert main(["twin-run", "--spec", str(tmp_path / "spec.json"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "spec.json is no spec of a training. Give the spec.json that one has beside its result." in said
    assert "suite: Extra inputs are not permitted" in said


def test_a_registry_that_is_not_there_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "misspelt" / "mlflow.db"
    assert main(["rebuild", "digits@1", "--tracking-uri", f"sqlite:///{database}", "--out", str(tmp_path / "out")]) == 1
    assert "misspelt/mlflow.db does not exist; expected MLflow's SQLite file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
