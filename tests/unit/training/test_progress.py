"""Progress lines: found again among whatever else a process writes, and readable."""

from __future__ import annotations

import pytest

from airflow_mlops.training.progress import PREFIX, Progress, parse

WHOLE = Progress(3, 12, 69, 0.2141, 5120.4, 1_200_000_000, 125.0)


@pytest.mark.parametrize("progress", [WHOLE, Progress(0, 1, 1)])
def test_a_line_is_parsed_to_what_was_written_even_after_other_output(progress: Progress) -> None:
    assert parse(progress.line()) == progress
    assert parse(f"\r 3/10 [====>     ]{progress.line()}\r") == progress


@pytest.mark.parametrize(
    "line",
    [
        "epoch 3",
        PREFIX,
        WHOLE.line()[:-10],
        PREFIX + "[1, 2]",
        PREFIX + '{"epoch": "many", "num_epochs": 3, "step": 1}',
        PREFIX + '{"epoch": 1, "num_epochs": 3, "step": 1, "loss": NaN}',
        PREFIX + '{"epoch": 1, "num_epochs": 3, "step": 1, "colour": "red"}',
        PREFIX + "[" * 100_000,
    ],
)
def test_a_line_that_is_no_whole_progress_is_none(line: str) -> None:
    assert parse(line) is None


def test_a_person_reads_a_sentence_of_what_is_known() -> None:
    assert WHOLE.sentence() == "Epoch 3 of 12, step 69: loss 0.2141, 5120 examples/s, 1.2 GB on the GPU, 2 min 5 s left"
    assert Progress(0, 2, 5, seconds_left=3.2).sentence() == "Epoch 0 of 2, step 5: 3 s left"
    assert Progress(0, 2, 5, seconds_left=7260.0).sentence() == "Epoch 0 of 2, step 5: 2 h 1 min left"
    assert Progress(0, 2, 5).sentence() == "Epoch 0 of 2, step 5"
