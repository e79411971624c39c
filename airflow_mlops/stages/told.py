"""What of a pod's log was told, by whoever tells it: handed from one triggerer to the next, and to the worker; and for how long a triggerer tells."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from airflow_mlops.exceptions import ResultInvalid
from airflow_mlops.results import STRICT, from_data
from airflow_mlops.stages.pod_log import Position
from airflow_mlops.training.progress import Progress

T = TypeVar("T")
LOOK_SECONDS = 10.0  # for which one look may tell a log, lest a trigger misses that the pod has ended or the task's time is over; the next goes on


class Enough(Exception):
    """Nobody wants more of this look."""


def for_one_look(tell: Callable[[str], object], is_over: Callable[[], bool]) -> Callable[[str], None]:
    """Return what takes lines as `tell` does, and raises `Enough` after `LOOK_SECONDS`, or when the trigger `is_over`: another one tells the rest."""
    end = time.monotonic() + LOOK_SECONDS

    def take(line: str) -> None:
        tell(line)
        if is_over() or time.monotonic() > end:
            raise Enough

    return take


@STRICT
@dataclass(frozen=True)
class Told:
    """Every line up to `position`, and the looks at its training that were among them, as many as a page shows."""

    position: Position = field(default_factory=Position)
    history: tuple[Progress, ...] = ()


def told(data: Any) -> Told:
    """Return what `data`, JSON of another process, says that was told."""
    return understood(Told, data)


def noted(path: Path) -> Told:
    """Return what a file says that was told."""
    return read_note(Told, path)


def understood(kind: type[T], data: Any) -> T:
    """Return `data`, JSON of another process, as a record of what was told: an empty one where it makes no sense, for twice is better than never."""
    try:
        return from_data(kind, data)
    except ResultInvalid:
        return kind()


def read_note(kind: type[T], path: Path) -> T:
    """Return the record in a file, an empty one where there is none, or it cannot be understood."""
    try:
        return understood(kind, json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return kind()
