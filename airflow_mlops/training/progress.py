"""How far a training is, as one line among everything else that a process writes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from airflow_mlops.artifacts import canonical_json
from airflow_mlops.exceptions import ResultInvalid
from airflow_mlops.results import STRICT, from_data

PREFIX = "mlops-progress: "


@STRICT
@dataclass(frozen=True)
class Progress:
    """One look at a training: `epoch` epochs of `num_epochs` are done, `step` batches in all.

    `loss` is the mean of the epoch so far; `gpu_memory_bytes` the most that was in use at a time, None without a GPU; `seconds_left` an estimate.
    """

    epoch: int
    num_epochs: int
    step: int
    loss: float | None = None
    examples_per_second: float | None = None
    gpu_memory_bytes: int | None = None
    seconds_left: float | None = None

    def line(self) -> str:
        """Return the structured line, which `parse` finds again."""
        return PREFIX + canonical_json(dataclasses.asdict(self)).decode()

    def sentence(self) -> str:
        """Return what a person wants to read: ``Epoch 3 of 12, step 69: loss 0.214, 5120 examples/s, 1.2 GB on the GPU, 2 min 5 s left``."""
        figures = [
            f"loss {self.loss:.4g}" if self.loss is not None else "",
            f"{self.examples_per_second:.0f} examples/s" if self.examples_per_second is not None else "",
            f"{self.gpu_memory_bytes / 1e9:.1f} GB on the GPU" if self.gpu_memory_bytes is not None else "",
            f"{_duration(self.seconds_left)} left" if self.seconds_left is not None else "",
        ]
        known = ", ".join(filter(None, figures))
        return f"Epoch {self.epoch} of {self.num_epochs}, step {self.step}" + (f": {known}" if known else "")


def parse(line: str) -> Progress | None:
    """Return the progress in a line of a process, which may hold other output before it; None where there is none, or only a part of it."""
    _, found, text = line.partition(PREFIX)
    if not found:
        return None
    try:
        return from_data(Progress, json.loads(text), what="progress line")
    except (ValueError, ResultInvalid, RecursionError):  # cut off, or something else that only begins like it: no news, never an error
        return None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
