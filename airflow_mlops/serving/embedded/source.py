"""Which versions lie under a base path, and which of them a model's version policy wants loaded."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from airflow_mlops.serving.config import ModelConfig

_NUMBER = re.compile(r"[0-9]{1,19}")


def local_path(base_path: str) -> Path | None:
    """Return the directory that a base path or its ``file:`` URI names, None if it is on no disk of this machine."""
    path = base_path.removeprefix("file://")
    return Path(path) if path.startswith("/") else None


def versions_on_disk(base_path: Path) -> dict[int, Path]:
    """Return what lies in `base_path` under a number; "00000123" is version 123. Raises `OSError`, `ValueError` on a null byte in the path."""
    return {int(child.name): child for child in sorted(base_path.iterdir()) if _NUMBER.fullmatch(child.name) and int(child.name) < 2**63}


def aspired(model: ModelConfig, on_disk: Mapping[int, Path], loaded: Collection[int]) -> set[int]:
    """Return the versions to serve: specific ones (also when loaded and meanwhile deleted), or what the model's policy chooses."""
    return set(model.versions) & {*on_disk, *loaded} if model.versions else model.by_policy(on_disk)
