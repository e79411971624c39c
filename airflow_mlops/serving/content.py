"""The files of a version: which they are, what is read back of them, and by which digest they are believed.

The digest of a version is that of the SavedModel as it was registered. What publishing adds, a warm-up file, is beside it: the same model
with and without it is the same version.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from airflow_mlops.artifacts import file_digest, tree_digest
from airflow_mlops.exceptions import PublishError
from airflow_mlops.results import STRICT
from airflow_mlops.serving.warmup import WARM_UP

GRAPH = "saved_model.pb"  # without it the server cannot load a version
MANIFESTS = ".manifests"  # the folder beside the versions that says what was published
_PLAIN = re.compile(r"[^\x00-\x1f\x7f\\\ud800-\udfff]+")  # what every file system and object store takes, and one line of a digest holds


@STRICT
@dataclass(frozen=True)
class FileEntry:
    """What was read of one file: `size` in bytes, `digest` as ``sha256:<64 hex digits>``."""

    size: Annotated[int, Field(ge=0)]
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Return the entry of an existing file."""
        return cls(path.stat().st_size, file_digest(path))


Files = Mapping[str, FileEntry]  # by relative path with forward slashes


@dataclass(frozen=True)
class Content:
    """What a version shall hold, as relative path -> file: `model`, whose files together have `digest`, and `added` to it."""

    model: Mapping[str, Path]
    digest: str
    added: Mapping[str, Path]

    @property
    def paths(self) -> dict[str, Path]:
        """All files in the order to write them: the one without which nothing can be loaded comes last."""
        everything = {**self.model, **self.added}
        return {relative: everything[relative] for relative in sorted(everything, key=lambda name: (name == GRAPH, name))}

    def verify(self, found: Files, what: str) -> None:
        """Raise `PublishError` about `what` unless the files that were read, by relative path, are this content."""
        same_added = all(found.get(relative) == FileEntry.of(path) for relative, path in self.added.items())
        if same_added and found.keys() == self.paths.keys() and _digest(found, self.model) == self.digest:
            return
        self.verify_source(what)
        raise PublishError(
            f"The copy for {what} differs from its source: expected {self.digest}, found {_digest(found, found)}. "
            "Nothing of it is visible; see to the disk that it was copied to and publish again."
        )

    def verify_source(self, what: str) -> None:
        """Raise `PublishError` about `what` unless the files of `model` have the digest that was asked for."""
        source = _digest({relative: FileEntry.of(path) for relative, path in self.model.items()}, self.model)
        if source != self.digest:
            raise PublishError(
                f"The source of {what} is not the SavedModel that was asked for: expected {self.digest}, found {source}. "
                "Nothing of it is visible; train again if it was altered."
            )


def covers(files: Files, digest: str) -> bool:
    """Return whether `files` are the SavedModel of this digest, with or without an added warm-up file."""
    return digest in (_digest(files, files), _digest(files, files.keys() - {WARM_UP}))


def listed(directory: Path) -> dict[str, Path]:
    """Return the files below a directory by relative path; raise `PublishError` if there are none, or others than plain ones."""
    found = {}
    for path in sorted(directory.rglob("*")) if directory.is_dir() else ():
        relative, mode = path.relative_to(directory).as_posix(), path.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode) or not _PLAIN.fullmatch(relative):
            raise PublishError(
                f"{str(path)!r} cannot be published: expected regular files with plain names, found "
                f"{'a symbolic link' if stat.S_ISLNK(mode) else 'something else'}. Take it out of the SavedModel and register it again."
            )
        found[relative] = path
    if not found:
        raise PublishError(f"There is no SavedModel in {directory}: expected a directory with files. Nothing was published; look for its download.")
    return found


def read_back(directory: Path) -> dict[str, FileEntry]:
    """Return the entries of all files below a directory."""
    return {relative: FileEntry.of(path) for relative, path in listed(directory).items()}


def _digest(files: Files, paths: Mapping[str, object] | set[str]) -> str:
    return tree_digest({path: files[path].digest for path in paths if path in files})
