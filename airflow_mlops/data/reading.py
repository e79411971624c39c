"""Files that are looked at again and again: what was read of one is remembered until it changes, and a long one is read in pieces.

Times of files are compared with each other and never with a clock but to see that a file is old: whoever owns a file sets its times.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
RACY_SECONDS = 2.0  # a second write within one tick of a file system's clock leaves a file's times as they are
_CHUNK = 2**20

Signature = tuple[int, ...]


class NotRead(Exception):
    """There was no time left to continue reading in this look."""


@dataclass
class Known(Generic[T]):
    """What is known of a file that has looked like `signature` since `noticed` (monotonic seconds): `value`, if it was read."""

    signature: Signature
    noticed: float
    value: T | None = None
    settled: bool = False  # whether the reading began when the signature was no longer new
    hasher: Any = None
    offset: int = 0


class Memory(Generic[T]):
    """What was read of files, by path; `racy_seconds` is how long a file that has just changed is not trusted to look different after a change."""

    def __init__(self, *, racy_seconds: float = RACY_SECONDS) -> None:
        self._racy_seconds = racy_seconds
        self._known: dict[Path, Known[T]] = {}

    def of(self, path: Path, status: os.stat_result) -> Known[T]:
        """Return what is known of `path`, which looks like `status` now."""
        known = self._known.get(path)
        if known is None or known.signature != _signature(status):
            known = self._known[path] = Known(_signature(status), time.monotonic())
        return known

    def old(self, known: Known[T], status: os.stat_result) -> bool:
        """Return whether a file that changes now will look different: its signature is not new, by our clock or by its own."""
        return time.monotonic() - known.noticed >= self._racy_seconds or time.time() - status.st_ctime >= self._racy_seconds

    def keep(self, directories: Set[Path]) -> None:
        """Forget all files but those below `directories`."""
        self._known = {path: known for path, known in self._known.items() if path in directories or not directories.isdisjoint(path.parents)}


class Headings(Memory[T]):
    """What `read` says of small files; an unchanged file is read once, or twice if it had changed just before."""

    def __init__(self, read: Callable[[Path], T], *, racy_seconds: float = RACY_SECONDS) -> None:
        super().__init__(racy_seconds=racy_seconds)
        self._read = read

    def __call__(self, path: Path, status: os.stat_result, deadline: float) -> T:
        """Return what the file at `path` says; raise `NotRead` if it would have to be read after `deadline` (monotonic seconds)."""
        known = self.of(path, status)
        if known.value is None or not known.settled:
            if time.monotonic() > deadline:
                raise NotRead
            settled = self.old(known, status)
            known.value, known.settled = self._read(path), settled
        return known.value


class Digests(Memory[str]):
    """Digests of files, of which a poll over unchanged ones reads nothing, and one with a deadline continues where the last one stopped."""

    def __call__(self, path: Path, deadline: float) -> str:
        """Return ``sha256:<64 hex digits>`` of a regular file's content; raise `NotRead` if it is not read to its end at `deadline`."""
        status = path.lstat()
        known = self.of(path, status)
        if known.value is not None and known.settled:
            return known.value
        if known.hasher is None:
            known.hasher, known.offset, known.settled = hashlib.sha256(), 0, self.old(known, status)
        with open(path, "rb", opener=_opened) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise NotRead  # something was put in the file's place since it was looked at
            stream.seek(known.offset)
            while chunk := stream.read(_CHUNK):
                known.hasher.update(chunk)
                known.offset += len(chunk)
                if time.monotonic() > deadline and known.offset < status.st_size:
                    raise NotRead
        if signature(path) != known.signature:
            raise NotRead  # it changed while it was read
        known.value, known.hasher = f"sha256:{known.hasher.hexdigest()}", None
        return known.value


def signature(path: Path) -> Signature | None:
    """Return what changes when the file at `path` does, or None if there is none to look at."""
    try:
        return _signature(path.lstat())
    except OSError:
        return None


def status_of(path: Path) -> os.stat_result | OSError | None:
    """Return how the file at `path` looks, why that cannot be seen, or None if there is none."""
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return error.with_traceback(None)


def _signature(status: os.stat_result) -> Signature:
    return status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
