"""How a training goes: sentences in the log, and a page that grows while it runs and is bounded however long that is."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_mlops.stages import progress_page
from airflow_mlops.stages.progress_page import ProgressLog, page
from airflow_mlops.training.progress import Progress


class Seen:
    """A log whose lines are kept, and how often the page was announced."""

    def __init__(self, path: Path) -> None:
        self.lines: list[str] = []
        self.announced = 0
        self.log = ProgressLog("train of <digits>", path, self.lines.append, self.announce)

    def announce(self) -> None:
        self.announced += 1


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seen:
    monkeypatch.setattr(progress_page, "_PAUSE_SECONDS", 0.0)
    return Seen(tmp_path / "progress.html")


def test_progress_is_a_sentence_in_the_log_and_everything_else_passes(seen: Seen) -> None:
    for line in ("before", Progress(1, 3, 10, loss=0.5, examples_per_second=100.0).line(), "mlops-progress: {torn"):
        seen.log.line(line)
    assert seen.lines == ["before", "Epoch 1 of 3, step 10: loss 0.5, 100 examples/s", "mlops-progress: {torn"]
    assert seen.announced == 1


def test_the_page_shows_the_loss_and_loads_itself_again_until_the_end(seen: Seen, tmp_path: Path) -> None:
    for step, loss in enumerate((0.8, 0.2, 0.4)):
        seen.log.line(Progress(step, 3, step, loss=loss).line())
    shown = (tmp_path / "progress.html").read_text()
    assert 'http-equiv="refresh"' in shown and "From 0.2 to 0.8." in shown and "train of &lt;digits&gt;" in shown
    assert 'points="0.0,2.0 360.0,238.0 720.0,159.3"' in shown
    seen.log.end()
    assert "refresh" not in (tmp_path / "progress.html").read_text()


def test_a_stage_that_tells_of_no_progress_has_no_page(seen: Seen, tmp_path: Path) -> None:
    seen.log.line("only words")
    seen.log.end()
    assert seen.announced == 0 and not (tmp_path / "progress.html").exists()


def test_a_page_that_can_not_be_written_stops_no_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    seen = Seen(tmp_path / "file" / "progress.html")
    seen.log.line(Progress(1, 3, 10).line())
    assert "is not written" in seen.lines[-1] and seen.announced == 0


def test_the_history_of_a_long_training_is_thinned_out_between_its_ends(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_page, "_PAUSE_SECONDS", 1e9)
    for step in range(1001):
        seen.log.line(Progress(1, 3, step).line())
    steps = [one.step for one in seen.log.history]
    assert (steps[0], steps[-1]) == (0, 1000) and 200 <= len(steps) <= 400


def test_a_training_without_a_loss_has_a_page_too() -> None:
    assert "No loss was told yet." in page("t", [Progress(0, 2, 1)], ended=False)
