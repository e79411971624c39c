"""How a training goes: sentences in the log, and a page that grows while it runs and is bounded however long that is."""

from __future__ import annotations

import re
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
    assert '<polyline points="76.0,14.0 398.0,270.0 720.0,184.7"' in shown and ">steps</text>" in shown and ">0.6</text>" in shown
    seen.log.end()
    assert "refresh" not in (tmp_path / "progress.html").read_text()


def test_a_stage_that_tells_of_no_progress_has_no_page(seen: Seen, tmp_path: Path) -> None:
    seen.log.line("only words")
    seen.log.end()
    assert seen.announced == 0 and not (tmp_path / "progress.html").exists()


def test_a_page_that_cannot_be_written_stops_no_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    seen = Seen(tmp_path / "file" / "progress.html")
    seen.log.line(Progress(1, 3, 10).line())
    seen.log.line(Progress(2, 3, 20).line())
    seen.log.end()
    assert ["is not written" in line for line in seen.lines] == [False, True, False] and seen.announced == 0


def test_the_history_of_a_long_training_is_thinned_out_between_its_ends(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_page, "_PAUSE_SECONDS", 1e9)
    for step in range(1001):
        seen.log.line(Progress(1, 3, step).line())
    steps = [one.step for one in seen.log.history]
    assert (steps[0], steps[-1]) == (0, 1000) and 200 <= len(steps) <= 400


def test_looks_that_follow_each_other_faster_than_pages_are_written_are_all_on_the_last_one(tmp_path: Path) -> None:
    seen = Seen(tmp_path / "progress.html")
    for step in range(50):
        seen.log.line(Progress(step, 50, step, loss=1.0).line())
    shown = (tmp_path / "progress.html").read_text
    assert num_points(shown()) == 1, "the next page is due in a second"
    seen.log.show()
    assert num_points(shown()) == 50 and "refresh" in shown()
    seen.log.line(Progress(50, 50, 50, loss=1.0).line())
    seen.log.end()
    assert num_points(shown()) == 51 and "It has ended." in shown()


def num_points(shown: str) -> int:
    return len(re.findall(r'<polyline points="(.*?)"', shown)[0].split())


def test_a_page_is_there_before_the_first_look_and_only_once(seen: Seen, tmp_path: Path) -> None:
    seen.log.begin()
    shown = (tmp_path / "progress.html").read_text
    assert "Nothing was told of its progress" in shown() and "refresh" in shown() and seen.announced == 1
    seen.log.line(Progress(1, 3, 10, loss=0.5).line())
    assert seen.announced == 1
    another = Seen(tmp_path / "progress.html")
    another.log.begin()
    assert "step 10" in shown() and another.announced == 1


def test_a_stage_that_told_of_nothing_has_an_end_on_its_page_too(seen: Seen, tmp_path: Path) -> None:
    seen.log.begin()
    seen.log.end()
    shown = (tmp_path / "progress.html").read_text()
    assert "Nothing was told of its progress. It has ended." in shown and "refresh" not in shown


def test_who_goes_on_shows_what_was_seen_before(tmp_path: Path) -> None:
    log = ProgressLog("t", tmp_path / "progress.html", lambda _: None, history=[Progress(1, 3, 10, loss=4.0)])
    log.line(Progress(2, 3, 20, loss=1.0).line())
    assert "From 1 to 4." in (tmp_path / "progress.html").read_text()


def test_a_loss_that_no_axis_holds_is_left_out() -> None:
    shown = page("t", [Progress(0, 2, 1, loss=1e308), Progress(0, 2, 2, loss=0.5), Progress(0, 2, 3, loss=0.25)], ended=False)
    assert "From 0.25 to 0.5." in shown


def test_a_training_without_a_loss_has_a_page_too() -> None:
    assert "No loss was told yet." in page("t", [Progress(0, 2, 1)], ended=False)
