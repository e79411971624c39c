"""A stage in a place of its own: its request comes from an exchange, its result goes there, and so do its checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from airflow_mlops.artifacts import canonical_json, file_digest
from airflow_mlops.exceptions import ExchangeUnavailable, SpecError, StageError
from airflow_mlops.records import read_record, result_of
from airflow_mlops.stages.checkpoint_sync import CheckpointSync
from airflow_mlops.stages.exchange import Exchange
from airflow_mlops.stages.objects import Objects
from airflow_mlops.stages.remote import open_exchange, run_requested
from airflow_mlops.stages.runner import spec_digest


@pytest.fixture
def exchange(tmp_path: Path) -> Exchange:
    return Exchange(f"file://{tmp_path}/exchange", pauses=())


def command(exchange: Exchange, result: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["stage", "scripted", "--exchange", exchange.objects.url, "--request", "mlops-scripted-1", "--result", str(result), *more]
    return subprocess.run([sys.executable, "-m", "airflow_mlops", *words], capture_output=True, text=True, check=False, env=dict(os.environ))


def test_the_command_takes_its_request_from_the_exchange_and_leaves_its_result_there(
    exchange: Exchange, scripted: ModuleType, tmp_path: Path
) -> None:
    result, spec = tmp_path / "run" / "result.json", scripted.Spec("leave_file")
    exchange.send_request("mlops-scripted-1", "scripted", spec)
    done = command(exchange, result)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(result.parent)
    assert exchange.take_result("mlops-scripted-1", result)
    found = result_of(read_record(result, stage="scripted", spec_digest=spec_digest(spec)), scripted.Result)
    assert found.file is not None and found.file.path.is_file()


def test_of_several_workers_that_were_asked_for_the_same_the_first_alone_answers(exchange: Exchange, scripted: ModuleType, tmp_path: Path) -> None:
    exchange.send_request("mlops-scripted-1", "scripted", scripted.Spec("leave_file"))
    others = tmp_path / "run-worker-1" / "result.json"
    done = command(exchange, others, "--worker", "1")
    assert done.returncode == 0 and others.exists(), done.stdout + done.stderr
    assert not exchange.take_result("mlops-scripted-1", tmp_path / "run-worker-0" / "result.json")


def test_a_stage_that_fails_sends_its_error_and_its_exit_code_stays(exchange: Exchange, scripted: ModuleType, tmp_path: Path) -> None:
    result, spec = tmp_path / "run" / "result.json", scripted.Spec("raise", "no such thing")
    exchange.send_request("mlops-scripted-1", "scripted", spec)
    assert run_requested("scripted", "mlops-scripted-1", exchange, result) == 1
    shutil.rmtree(result.parent)
    assert exchange.take_result("mlops-scripted-1", result)
    assert read_record(result, stage="scripted", spec_digest=spec_digest(spec)).error is not None


def test_a_request_of_another_stage_is_refused(exchange: Exchange, scripted: ModuleType, tmp_path: Path) -> None:
    exchange.send_request("mlops-scripted-1", "scripted", scripted.Spec("leave_file"))
    with pytest.raises(SpecError, match="is of stage 'scripted', this is 'train'"):
        run_requested("train", "mlops-scripted-1", exchange, tmp_path / "run" / "result.json")


def test_a_result_that_cannot_be_sent_is_a_failure(exchange: Exchange, scripted: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange.send_request("mlops-scripted-1", "scripted", scripted.Spec("leave_file"))
    whole = Objects.write_file

    def down(self: Objects, name: str, path: Path) -> None:
        if name.startswith("results/"):
            raise ExchangeUnavailable("the store is down")
        whole(self, name, path)

    monkeypatch.setattr(Objects, "write_file", down)
    with pytest.raises(StageError, match="its result cannot be sent") as caught:
        run_requested("scripted", "mlops-scripted-1", exchange, tmp_path / "run" / "result.json")
    assert caught.value.retryable and exchange.objects.read("results/mlops-scripted-1.json") is None


def test_the_two_ways_to_ask_are_not_mixed(exchange: Exchange, scripted: ModuleType, tmp_path: Path) -> None:
    assert command(exchange, tmp_path / "result.json", "--spec", "spec.json").returncode == 2


@pytest.mark.parametrize("text", ["", "[1]", None])
def test_options_that_are_none_are_refused(tmp_path: Path, text: str | None) -> None:
    options = tmp_path / "options.json"
    if text is not None:
        options.write_text(text)
    with pytest.raises(SpecError, match=r"options\.json"):
        open_exchange("file:///x", options)


def save(directory: Path, step: int, content: bytes) -> None:
    """Leave a checkpoint as a `CheckpointManager` does: the file, then its marker."""
    path = directory / f"step-{step:012d}.safetensors"
    directory.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    marker = {"digest": file_digest(path), "size": len(content), "step": step, "identity": "i"}
    path.with_name(f"{path.name}.json").write_bytes(canonical_json(marker))


def steps(directory: Path) -> dict[int, bytes]:
    return {json.loads(marker.read_bytes())["step"]: marker.with_suffix("").read_bytes() for marker in directory.rglob("step-*.json")}


def test_the_next_attempt_finds_the_newest_checkpoint(exchange: Exchange, tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    with CheckpointSync(exchange.objects, place) as sync:
        for step in (1, 2, 3):
            save(place / "abc", step, b"%d" % step)
            sync.send()
    shutil.rmtree(place)
    assert CheckpointSync(exchange.objects, place).bring() == 1
    assert steps(place / "abc") == {3: b"3"}
    kept = [name for name in exchange.objects.ages("checkpoints") if name.endswith(".safetensors")]
    assert sorted(name[-13:] for name in kept) == ["2.safetensors", "3.safetensors"]


def test_a_checkpoint_that_was_cut_off_is_passed_over_for_the_one_before(exchange: Exchange, tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    with CheckpointSync(exchange.objects, place) as sync:
        for step in (1, 2):
            save(place, step, b"%d" % step)
            sync.send()
    newest = next(name for name in exchange.objects.ages("checkpoints") if name.endswith("2.safetensors"))
    exchange.objects.write(newest, b"")
    shutil.rmtree(place)
    CheckpointSync(exchange.objects, place).bring()
    assert steps(place) == {1: b"1"}


def test_a_checkpoint_whose_upload_did_not_end_is_none(exchange: Exchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "checkpoints"
    save(place, 1, b"1")
    monkeypatch.setattr(Objects, "write", lambda *_: (_ for _ in ()).throw(ExchangeUnavailable("the store is down")))
    with pytest.raises(ExchangeUnavailable):
        CheckpointSync(exchange.objects, place).send()
    monkeypatch.undo()
    shutil.rmtree(place)
    assert CheckpointSync(exchange.objects, place).bring() == 0 and not place.exists()


def test_a_store_that_is_down_does_not_end_the_training_but_is_said(
    exchange: Exchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "checkpoints"
    save(place, 1, b"1")
    monkeypatch.setattr(Objects, "write", lambda *_: (_ for _ in ()).throw(ExchangeUnavailable("the store is down")))
    with CheckpointSync(exchange.objects, place):
        pass
    assert "The newest checkpoint is not in the exchange" in caplog.text


def test_what_a_training_that_is_done_has_cleared_is_deleted_there_too(exchange: Exchange, tmp_path: Path) -> None:
    place = tmp_path / "checkpoints"
    with CheckpointSync(exchange.objects, place) as sync:
        save(place, 1, b"1")
        sync.send()
        sync.drop_if_cleared()
        assert exchange.objects.ages("checkpoints")
        shutil.rmtree(place)
        sync.drop_if_cleared()
    assert not exchange.objects.ages("checkpoints")


def test_a_training_that_is_done_leaves_the_checkpoints_of_another_in_the_same_directory(exchange: Exchange, tmp_path: Path) -> None:
    place, other = tmp_path / "checkpoints", CheckpointSync(exchange.objects, tmp_path / "checkpoints")
    save(place / "first", 1, b"1")
    sync = CheckpointSync(exchange.objects, place)
    sync.send()
    shutil.rmtree(place)
    save(place / "second", 1, b"2")
    other.send()
    shutil.rmtree(place)
    sync.drop_if_cleared()
    assert CheckpointSync(exchange.objects, place).bring() == 1 and [path.name for path in place.iterdir()] == ["second"]
