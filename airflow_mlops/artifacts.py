"""Files and directories that are believed by their digest, and writing them so that nobody ever reads half of one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, with_config

from airflow_mlops.exceptions import ResultInvalid


def bytes_digest(data: bytes) -> str:
    """Return ``sha256:<64 hex digits>`` of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """Return ``sha256:<64 hex digits>`` of a file's content."""
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def path_digest(path: Path) -> tuple[str, int]:
    """Return (digest, size in bytes) of a file, or of a directory as the digest of its ``<digest>  <relative path>`` lines by path.

    Raises `ResultInvalid` if there is neither: what does not exist must not look like an empty directory.
    """
    if path.is_file():
        return file_digest(path), path.stat().st_size
    if not path.is_dir():
        raise ResultInvalid(f"{path} is neither a file nor a directory; expected one of them. Run the step that writes it again.")
    files = [p for p in path.rglob("*") if p.is_file()]
    return tree_digest({p.relative_to(path).as_posix(): file_digest(p) for p in files}), sum(p.stat().st_size for p in files)


def tree_digest(digests: Mapping[str, str]) -> str:
    """Return what `path_digest` says of a directory, from the digests of its files by relative path with forward slashes."""
    paths = sorted(digests, key=lambda path: path.split("/"))
    return bytes_digest("".join(f"{digests[path]}  {path}\n" for path in paths).encode())


@with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
@dataclass(frozen=True)
class Artifact:
    """A file or a directory with its digest: `uri` is an absolute path, `size` is in bytes."""

    uri: str
    digest: str
    size: int

    @classmethod
    def of(cls, path: Path) -> Artifact:
        """Return the artefact record of an existing file or directory."""
        digest, size = path_digest(path)
        return cls(str(path.absolute()), digest, size)

    @property
    def path(self) -> Path:
        return Path(self.uri)

    def verify(self) -> Path:
        """Return the path if its content still has this digest; raise `ResultInvalid` otherwise."""
        if not self.path.exists():
            raise ResultInvalid(f"{self.uri} is missing, though a result record names it. Run the stage that wrote it again.")
        digest, size = path_digest(self.path)
        if digest != self.digest:
            raise ResultInvalid(
                f"{self.uri} changed after it was recorded: expected {self.digest} ({self.size} bytes), found {digest} ({size} bytes). "
                "Do not use it; run the stage that wrote it again."
            )
        return self.path


def canonical_json(data: Any) -> bytes:
    """Return the one JSON text of `data` that digests are taken of: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that a reader sees all of it or none: temporary file in the same directory, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.{os.getpid()}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def clear_abandoned(path: Path) -> None:
    """Remove what processes that were killed while they wrote `path` have left beside it; what cannot be removed stays."""
    for left in path.parent.glob(f".{path.name}.*"):
        writer = left.name.removeprefix(f".{path.name}.").partition(".")[0]
        with contextlib.suppress(OSError):
            if not (writer.isdigit() and Path(f"/proc/{writer}").exists()):
                left.unlink()
