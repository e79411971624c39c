"""``airflow-mlops exchange clean`` deletes what is old, and nothing that somebody may still want."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from airflow_mlops.cli import main

NEW, OLD = "aa", "bb"
CHECKPOINT = "checkpoints/0123/step-000000000006.safetensors"


def clean(url: str, days: str, *more: str) -> int:
    return main(["exchange", "clean", "--url", url, "--older-than", days, *more])


@pytest.fixture
def exchange(tmp_path: Path) -> Path:
    """An exchange of which all is ten days old but a request, and a checkpoint, which is not text."""
    home = tmp_path / "exchange"
    texts = {f"requests/{name}.json": json.dumps({"digest": f"sha256:{name * 32}"}).encode() for name in (NEW, OLD)}
    files = {**texts, **{f"objects/{name * 32}": name.encode() for name in (NEW, OLD)}, CHECKPOINT: b"\xff\x00\xfe", f"{CHECKPOINT}.json": b"{}"}
    for name, text in files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
        if name != f"requests/{NEW}.json" and not name.startswith("checkpoints"):
            os.utime(path, (time.time() - 10 * 86400,) * 2)
    return home


def left(home: Path) -> set[str]:
    return {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}


def test_what_is_old_goes_and_what_something_new_refers_to_stays(exchange: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean(f"file://{exchange}", "7") == 0
    assert left(exchange) == {f"requests/{NEW}.json", f"objects/{NEW * 32}", CHECKPOINT, f"{CHECKPOINT}.json"}
    assert f"2 files deleted from file://{exchange}, all of them older than 7 days." in capsys.readouterr().out


def test_what_is_younger_stays(exchange: Path) -> None:
    before = left(exchange)
    assert clean(f"file://{exchange}", "11") == 0
    assert left(exchange) == before


def test_an_age_that_running_tasks_rely_on_is_refused(exchange: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = left(exchange)
    assert clean(f"file://{exchange}", "1") == 1
    assert "The age is 1 days; give at least 2" in capsys.readouterr().err
    assert left(exchange) == before


def test_options_that_cannot_be_read_are_named(exchange: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean(f"file://{exchange}", "7", "--options", str(tmp_path / "none.json")) == 1
    assert "none.json: FileNotFoundError. Give a JSON file." in capsys.readouterr().err
