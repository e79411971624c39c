"""A checkpoint goes to the exchange once, whoever made it, and goes from there when its training is done."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from airflow_mlops.stages.checkpoint_sync import CheckpointSync
from airflow_mlops.stages.exchange import Exchange
from airflow_mlops.stages.objects import Objects

from .test_remote import exchange, save

__all__ = ["exchange"]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the checkpoints that were uploaded."""
    names, write = list[str](), Objects.write_file

    def noting(self: Objects, name: str, path: Path) -> None:
        write(self, name, path)
        names.extend([name] if name.endswith(".safetensors") else [])

    monkeypatch.setattr(Objects, "write_file", noting)
    return names


def test_a_checkpoint_that_is_there_is_not_uploaded_again(exchange: Exchange, tmp_path: Path, sent: list[str]) -> None:
    sync = CheckpointSync(exchange.objects, tmp_path / "checkpoints")
    save(tmp_path / "checkpoints", 1, b"1")
    for _ in range(3):
        sync.send()
    assert len(sent) == 1


def test_what_an_attempt_went_on_from_is_not_uploaded_again_and_is_deleted_when_it_is_done(
    exchange: Exchange, tmp_path: Path, sent: list[str]
) -> None:
    place = tmp_path / "checkpoints"
    save(place, 1, b"1")
    CheckpointSync(exchange.objects, place).send()
    shutil.rmtree(place)
    second = CheckpointSync(exchange.objects, place)
    assert second.bring() == 1
    second.send()
    assert len(sent) == 1
    shutil.rmtree(place)  # as a training that is done does
    second.drop_if_cleared()
    assert not exchange.objects.ages("checkpoints")
