"""What a training did not do is a sentence of its record."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from airflow_mlops.stages.notes import notes_of
from airflow_mlops.training.checkpoints import CheckpointManager
from tests import fakes

COLUMNS = ["a", "b", "label"]


def test_a_training_that_did_all_it_was_asked_for_has_nothing_to_say(tmp_path: Path) -> None:
    assert notes_of(COLUMNS, fakes.SPLIT, CheckpointManager(tmp_path, "i"), ("Ann <ann@example.org>",)) == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"columns": [*COLUMNS, "id", "at"]}, "The columns 'id', 'at' of the dataset are no inputs: the layout does not name them."),
        ({"authors": ()}, "Git knows no author of the code where the training ran: nothing keeps whoever wrote it from approving it."),
        ({"definition": dataclasses.replace(fakes.SPLIT, unknown="of v1")}, "Which rows it has learned from is not known: of v1."),
    ],
    ids=["columns", "authors", "split"],
)
def test_what_did_not_happen_is_said(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    asked = {"columns": COLUMNS, "definition": fakes.SPLIT, "checkpoints": CheckpointManager(tmp_path, "i"), "authors": ("Ann",), **changes}
    assert notes_of(**asked) == (said,)  # type: ignore[arg-type]


def test_a_checkpoint_that_was_put_aside_is_named(tmp_path: Path) -> None:
    (tmp_path / "step-000000000007.safetensors.json").write_text('{"digest": "sha256:0", "size": 3, "step": 7, "identity": "i"}')
    (tmp_path / "step-000000000007.safetensors").write_bytes(b"cut")
    checkpoints = CheckpointManager(tmp_path, "i")
    assert checkpoints.latest() is None
    (said,) = notes_of(COLUMNS, fakes.SPLIT, checkpoints, ("Ann",))
    assert said.startswith("The checkpoints 'step-000000000007.safetensors' were altered after they were written and were put aside")


def test_the_headline_has_every_sentence_the_lost_start_first(tmp_path: Path) -> None:
    result = fakes.training(tmp_path, start_problem="It was to start.", stopped_early=True, format_problems={"onnx": "No ONNX."}, notes=("A note.",))
    ended = "Its time was over before it was done: the model is as it was then."
    assert result.undone() == ("It was to start.", ended, "No ONNX.", "A note.")
    assert result.headline() == f"80 rows, from scratch: train_accuracy 0.9. It was to start. {ended} No ONNX. A note."
