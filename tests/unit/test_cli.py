"""The command ``airflow-mlops``, as a process and as a function."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_mlops import cli
from airflow_mlops.records import read_record
from airflow_mlops.stages.runner import parse_spec, spec_digest


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "airflow_mlops", *arguments], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def write_spec(directory: Path, *, suite: str = "no-suite.json") -> Path:
    """Write the spec of a validation of data that are not there and return its file."""
    dataset = {"dataset": "digits", "name": "v1", "digest": "sha256:0", "uri": str(directory / "v1")}
    path = directory / "spec.json"
    path.write_text(json.dumps({"dataset": dataset, "suite": suite}))
    return path


def test_the_installed_command_is_this_one() -> None:
    installed = Path(sys.executable).with_name("airflow-mlops")
    done = subprocess.run([installed, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert all(f"\n    {name} " in done.stdout for name in ("stage", "serve", "demo", "stop"))


@pytest.mark.parametrize("arguments", [[], ["fly"], ["stage"], ["stage", "validate", "--spec", "s.json"]])
def test_what_is_not_understood_ends_with_2_and_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: airflow-mlops" in capsys.readouterr().err


def test_an_unknown_stage_is_refused_with_the_nearest_name_and_leaves_no_record(tmp_path: Path) -> None:
    done = command("stage", "validat", "--spec", str(write_spec(tmp_path)), "--result", str(tmp_path / "result.json"))
    assert done.returncode == 1
    known = "evaluate, repeat, robustness, robustness_shard, train, validate"
    assert done.stderr.strip() == f"airflow-mlops: Unknown stage 'validat'. Did you mean 'validate'? Known: {known}."
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(("text", "complaint"), [("{", "is not JSON"), ('{"dataset": 1}', "suite: Field required"), (None, "cannot be read")])
def test_an_impossible_spec_is_refused_with_the_reason(tmp_path: Path, text: str | None, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        (tmp_path / "spec.json").write_text(text)
    assert cli.main(["stage", "validate", "--spec", str(tmp_path / "spec.json"), "--result", str(tmp_path / "result.json")]) == 1
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "result.json").exists()


def test_a_stage_that_fails_ends_with_1_and_a_record_that_says_why(tmp_path: Path) -> None:
    spec, result = write_spec(tmp_path), tmp_path / "out" / "result.json"
    done = command("stage", "validate", "--spec", str(spec), "--result", str(result))
    assert done.returncode == 1
    digest = spec_digest(parse_spec("validate", json.loads(spec.read_bytes())))
    record = read_record(result, stage="validate", spec_digest=digest)
    assert record.result is None
    assert record.error is not None
    assert (record.error.type, record.error.retryable) == ("DatasetNotFound", True)
    assert record.error.message in done.stdout


def test_a_stage_dies_when_whoever_started_it_does(tmp_path: Path) -> None:
    """Its spec is a pipe that nobody writes to, so by itself it would wait for ever."""
    os.mkfifo(tmp_path / "spec.json")
    lifeline, holder = os.pipe()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "airflow_mlops",
            "stage",
            "validate",
            "--spec",
            tmp_path / "spec.json",
            "--result",
            tmp_path / "r",
            "--lifeline",
            f"{lifeline}",
        ],
        pass_fds=(lifeline,),
        start_new_session=True,
    )
    os.close(lifeline)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    os.close(holder)
    assert process.wait(20.0) == -9


def test_stopping_what_does_not_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["stop", "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"Nothing of {tmp_path} runs any more.\n"


def test_the_model_servers_flags_are_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--help"]) == 0
    assert "--model_config_file" in capsys.readouterr().out
    assert cli.main(["serve", "--port", "many"]) == 2
