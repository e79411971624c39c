"""What of a pod's log was told, by whoever tells it: handed from one triggerer to the next, and to the worker."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_mlops.exceptions import ResultInvalid
from airflow_mlops.results import STRICT, from_data
from airflow_mlops.stages.pod_log import Position
from airflow_mlops.training.progress import Progress


@STRICT
@dataclass(frozen=True)
class Told:
    """Every line up to `position`, and the looks at its training that were among them, as many as a page shows."""

    position: Position = field(default_factory=Position)
    history: tuple[Progress, ...] = ()


def told(data: Any) -> Told:
    """Return what `data`, JSON of another process, says that was told: nothing where it makes no sense, for twice is better than never."""
    try:
        return from_data(Told, data)
    except ResultInvalid:
        return Told()


def noted(path: Path) -> Told:
    """Return what a file says that was told: nothing where there is none, or it can not be understood."""
    try:
        return told(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return Told()
