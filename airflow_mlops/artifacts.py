"""Files and directories that are believed by their digest, and writing them so that nobody ever reads half of one."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, with_config

from airflow_mlops.exceptions import ResultInvalid

# Hosts need not agree on the time, and a large file that is read back or flushed gets no newer meanwhile.
ABANDONED_SECONDS = 6 * 3600.0
_MARK = re.compile(r"[.-]([0-9a-f]{8})-([1-9][0-9]{0,8})[.-]")


def bytes_digest(data: bytes) -> str:
    """Return ``sha256:<64 hex digits>`` of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """Return ``sha256:<64 hex digits>`` of a file's content; raise `OSError` for a named pipe or a device, which may never end."""
    with open(path, "rb", opener=_without_waiting) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


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
    return bytes_digest(tree_listing(digests))


def tree_listing(digests: Mapping[str, str]) -> bytes:
    """Return the text whose digest is that of a directory: ``<digest>  <relative path>`` lines by path."""
    paths = sorted(digests, key=lambda path: path.split("/"))
    return "".join(f"{digests[path]}  {path}\n" for path in paths).encode()


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
    """Write a file so that a reader sees all of it or none: temporary file in the same directory, fsync, rename.

    :param mode: its permissions, less those that the umask of this process takes away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(f".{path.name}.{writer()}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        name.replace(path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise


def clear_abandoned(path: Path) -> None:
    """Remove what writers of `path` that were killed have left beside it, as `abandoned` says; what cannot be removed stays."""
    for left in path.parent.glob(f".{path.name}.*"):
        with contextlib.suppress(OSError):
            if abandoned(left):
                left.unlink()


def writer() -> str:
    """Return the mark, ``<where>-<process id>``, of this process in the name of what it has not finished, for `abandoned`.

    A process id says something only on its host, and there in its container; ``<where>`` is a digest of both.
    """
    return f"{_where()}-{os.getpid()}"


def abandoned(left: Path) -> bool:
    """Return whether nobody goes on with an unfinished file or directory whose name holds a `writer`: its process ended, or it lies still.

    Of a process that cannot be seen from here, on a shared file system, only the time since its newest file was written can tell.
    Raises `OSError` if it is gone.
    """
    marked = _MARK.search(left.name)
    if marked and marked[1] == _where() and not _alive(int(marked[2])):
        return True
    newest = max(path.lstat().st_mtime for path in (left, *left.rglob("*")))
    return time.time() - newest > ABANDONED_SECONDS


def _where() -> str:
    try:
        container = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # a system without containers
        container = 0
    return hashlib.sha256(f"{socket.gethostname()} {container}".encode()).hexdigest()[:8]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def artifacts(record: Any) -> Iterator[Artifact]:
    """Yield every `Artifact` inside a record."""
    if isinstance(record, Artifact):
        yield record
    elif dataclasses.is_dataclass(record):
        for item in dataclasses.fields(record):
            yield from artifacts(getattr(record, item.name))
    elif isinstance(record, Mapping):
        for value in record.values():
            yield from artifacts(value)
    elif isinstance(record, tuple | list):
        for value in record:
            yield from artifacts(value)
