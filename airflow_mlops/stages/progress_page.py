"""How a training goes, as a page that a person may keep open: its loss as a curve, how fast it is and what is left. No Airflow, no scripts."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from airflow_mlops.artifacts import write_atomically
from airflow_mlops.stages.curve import curve
from airflow_mlops.stages.noise import readable
from airflow_mlops.training.progress import Progress, parse

REFRESH_SECONDS = 5
_PAUSE_SECONDS = 1.0  # between two pages; a training may tell of every batch
_MAX_POINTS = 400
_NOTHING = "Nothing was told of its progress"
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">{refresh}<title>{title}</title>
<style>body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #1b2733 }} h1 {{ font-size: 1.4rem }}
h2 {{ font-size: 1.1rem }} progress {{ width: 760px; max-width: 100% }} svg {{ max-width: 100%; height: auto }}
text {{ font-size: 12px; fill: #51606e }} line {{ stroke: #e3e8ed }} path {{ fill: none; stroke: #8896a3 }} circle {{ fill: #2563c9 }}
polyline {{ fill: none; stroke: #2563c9; stroke-width: 2; stroke-linejoin: round }}</style></head>
<body><h1>{title}</h1><p>{sentence}</p><progress max="{num_epochs}" value="{epoch}"></progress>
<h2>Loss over steps</h2><p>{range}</p>{curve}</body></html>
"""


def page(title: str, history: Sequence[Progress], *, ended: bool) -> str:
    """Return the HTML of a training's `history`, from the first look to the newest; one that goes on loads itself again."""
    newest = history[-1] if history else Progress(0, 1, 0)
    losses = [(one.step, one.loss) for one in history if one.loss is not None and abs(one.loss) < 1e100]  # no axis holds more
    low, high = min((loss for _, loss in losses), default=0.0), max((loss for _, loss in losses), default=0.0)
    return _PAGE.format(
        title=html.escape(title),
        refresh="" if ended else f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">',
        sentence=html.escape(newest.sentence() if history else _NOTHING) + (". It has ended." if ended else ""),
        epoch=newest.epoch,
        num_epochs=newest.num_epochs,
        range=f"From {low:.4g} to {high:.4g}." if losses else "No loss was told yet.",
        curve=curve(losses, "steps", "loss") if losses else "",
    )


class ProgressLog:
    """Takes a stage's lines: progress becomes a sentence in the task's log and the page at `path`, everything else but noise passes.

    :param path: None for no page.
    :param tell: the log.
    :param began: called once, when the page is there for the first time.
    :param history: what somebody else was told before; `history` goes on from there.
    """

    def __init__(
        self,
        title: str,
        path: Path | None,
        tell: Callable[[str], object],
        began: Callable[[], object] = lambda: None,
        history: Sequence[Progress] = (),
    ) -> None:
        self.title, self.history = title, [*history]
        self._path, self._tell, self._began = path, tell, began
        self._written = 0.0  # monotonic seconds
        self._has_begun = self._has_failed = self._has_news = False

    def begin(self) -> None:
        """Write the page before there is anything to show, unless somebody did."""
        if self._path is not None and self._path.exists():
            self._began()
        else:
            self._write(ended=False)

    def line(self, text: str) -> None:
        """Take one line."""
        progress = parse(text)
        if progress is None:
            if (said := readable(text)) is not None:
                self._tell(said)
            return
        self._tell(progress.sentence())
        self.history = [*(self.history if len(self.history) < _MAX_POINTS else self.history[::2]), progress]
        self._has_news = True
        if time.monotonic() - self._written >= _PAUSE_SECONDS:
            self.show()

    def show(self) -> None:
        """Write the page, unless it shows everything."""
        if self._has_news:
            self._write(ended=False)

    def end(self) -> None:
        """Write the page a last time."""
        if self.history or (self._path is not None and self._path.exists()):
            self._write(ended=True)

    def _write(self, *, ended: bool) -> None:
        self._written, self._has_news = time.monotonic(), False
        if self._path is None:
            return
        try:
            write_atomically(self._path, page(self.title, self.history, ended=ended).encode())
        except OSError as error:  # a picture less is no reason to lose a training
            if not self._has_failed:
                self._tell(f"The page of the progress is not written: {error}.")
            self._has_failed = True
            return
        if not self._has_begun:
            self._began()
        self._has_begun = True
