"""The files of a run as MLflow lists them, and as a download left them: the two must be of the same sizes."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient


def listed_sizes(client: MlflowClient, run_id: str, path: str) -> dict[str, int]:
    """Return the size in bytes of every file at or below `path`, by path, as MLflow lists them."""
    parent = str(PurePosixPath(path).parent)
    listed = client.list_artifacts(run_id, None if parent == "." else parent)
    waiting = [info for info in listed if info.path == path]
    sizes: dict[str, int] = {}
    while waiting:
        info = waiting.pop()
        if info.is_dir:
            waiting += client.list_artifacts(run_id, info.path)
        else:
            sizes[info.path] = info.file_size or 0
    return sizes


def sizes_on_disk(local: Path, path: str) -> dict[str, int]:
    """Return the size in bytes of `local`, a file or a directory, by the path each file has below `path`."""
    if local.is_file():
        return {path: local.stat().st_size}
    return {f"{path}/{file.relative_to(local).as_posix()}": file.stat().st_size for file in local.rglob("*") if file.is_file()}
