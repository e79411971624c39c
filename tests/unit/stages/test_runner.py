"""The body of ``airflow-mlops stage``: a spec file in, a record out."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from airflow_mlops.cli import main
from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.exceptions import SpecError
from airflow_mlops.records import ResultRef, read_record
from airflow_mlops.stages import STAGES, evaluate, repeat, robustness, robustness_shard, stage, train, validate
from airflow_mlops.stages.runner import parse_spec, run_stage, spec_data, spec_digest
from tests.fakes import dataset_version

REF = ResultRef("train", "/runs/1/result.json", "sha256:abc")
LAYOUT = ArrayLayout((8, 8, 1), 10)
SPECS = {
    "validate": validate.Spec(dataset_version(), "/dags/suite.json"),
    "train": train.Spec(REF, LAYOUT, "m:train", "/dags", "digits", "http://mlflow:5000", {"epochs": 3, "rate": 0.1, "warm": True, "decay": None}),
    "evaluate": evaluate.Spec(REF, "digits", "http://mlflow:5000"),
    "robustness": robustness.Spec(REF, 100, 1, options={"kind": {"name": "images", "value_range": [-1.0, 1.0]}}, extensions=("own",), shards=(REF,)),
    "robustness_shard": robustness_shard.Spec(robustness.Spec(REF, 100, 1), 2, 4),
}
SPECS["repeat"] = repeat.Spec(SPECS["train"], dataset_version(), champion=3, every=10)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", STAGES)
def test_a_spec_is_the_same_after_json_and_so_is_its_digest(name: str) -> None:
    parsed = parse_spec(name, json.loads(json.dumps(spec_data(SPECS[name]))))
    assert parsed == SPECS[name]
    assert spec_digest(parsed) == spec_digest(SPECS[name])


def test_another_spec_has_another_digest() -> None:
    assert spec_digest(SPECS["train"]) != spec_digest(SPECS["train"]._replace(seed=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "one"}, "seed: "),
        ({"sede": 1}, "sede: "),
        ({"layout": {"input_shape": [8, 8, 1]}}, r"layout\.num_classes: "),
        ({"validation": "http://somewhere"}, "validation: "),
        ({"params": {"rate": float("nan")}}, "spec of stage 'train' is no JSON"),
        ({"params": {"path": Path("/x")}}, r"params\.path"),
        ({"params": {"layers": [64, 32]}}, r"params\.layers"),
        ({"params": {"class_weight": {2: 1.0, 10: 2.0}}}, r"params\.class_weight"),
    ],
    ids=str,
)
def test_a_spec_that_does_not_fit_is_refused_by_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec("train", {**spec_data(SPECS["train"]), **changes})


def test_an_unknown_stage_suggests_the_nearest() -> None:
    with pytest.raises(SpecError, match="Did you mean 'robustness'"):
        stage("robustnes")


@pytest.mark.parametrize(("action", "code"), [("leave_file", 0), ("fail_for_now", 1), ("raise_something", 1), ("answer_nan", 1)])
def test_every_end_of_a_stage_leaves_a_record_that_answers_its_spec(scripted: ModuleType, tmp_path: Path, action: str, code: int) -> None:
    spec, result = tmp_path / "spec.json", tmp_path / "new" / "result.json"
    spec.write_text(json.dumps({"action": action}))
    assert run_stage("scripted", spec, result) == code
    record = read_record(result, stage="scripted", spec_digest=spec_digest(scripted.Spec(action)))
    assert (record.error is None) == (code == 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scripted", None, "spec.json cannot be read"),
        ("scripted", "{", "is not JSON"),
        ("scripted", '{"acton": "talk"}', "acton: "),
        ("scribbled", "{}", "airflow-mlops: Unknown stage 'scribbled'. Did you mean 'scripted'"),
    ],
)
def test_the_command_says_what_is_wrong_with_a_request_and_leaves_no_record(
    scripted: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, message: str
) -> None:
    spec, result = tmp_path / "spec.json", tmp_path / "result.json"
    if content is not None:
        spec.write_text(content)
    assert main(["stage", name, "--spec", str(spec), "--result", str(result)]) == 1
    assert message in capsys.readouterr().err
    assert not result.exists()


def test_a_record_that_cannot_be_written_ends_with_advice(scripted: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, result = tmp_path / "spec.json", tmp_path / "result.json"
    spec.write_text(json.dumps({"action": "leave_file"}))
    (result / "in the way").mkdir(parents=True)
    assert main(["stage", "scripted", "--spec", str(spec), "--result", str(result)]) == 1
    assert "cannot be written to" in (said := capsys.readouterr().err)
    assert "make room, and run the stage again" in said


def test_the_record_says_how_many_gpus_were_asked_for(scripted: ModuleType, tmp_path: Path) -> None:
    spec, result = tmp_path / "spec.json", tmp_path / "result.json"
    spec.write_text(json.dumps({"action": "leave_file"}))
    assert main(["stage", "scripted", "--spec", str(spec), "--result", str(result), "--gpus", "2"]) == 0
    usage = read_record(result, stage="scripted", spec_digest=spec_digest(scripted.Spec("leave_file"))).usage
    assert usage is not None and usage.sentence().endswith("0 of 2 GPUs that were asked for")
