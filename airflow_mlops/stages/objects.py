"""Files by their digest in an object storage: nothing is uploaded twice, and whatever comes down is what its name says.

A file is ``objects/<sha256>``; a directory is the text that lists its files with their digests, kept the same way, whose digest is that of
the directory. Small texts with names of their own say what was sent; each is written when everything that it names is there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec.core  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from airflow_mlops.artifacts import file_digest, tree_listing, writer
from airflow_mlops.exceptions import ExchangeUnavailable, MlopsError, ResultInvalid, SpecError, StageError
from airflow_mlops.serving.store_errors import masked, passes, secrets_of
from airflow_mlops.serving.stores import refuse_credentials

log = logging.getLogger(__name__)
T = TypeVar("T")
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds; longer troubles are the retry's of who asked
FRESH_SECONDS = 24 * 3600.0  # an object that is older is uploaded again, so that no clean-up takes what somebody relies on
_THREADS = 8
FOLDER = "objects"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")  # of S3, Azure, Google, files, memory


class Objects:
    """What lies below `url`, of any kind that fsspec knows; `storage_options` are fsspec's, and no secret in them is ever printed.

    Calls that fail for what passes are repeated after each of `pauses`, in seconds; then `ExchangeUnavailable` is raised, and `StageError` for
    everything else that the store says.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any], pauses: Sequence[float] = PAUSES) -> None:
        refuse_credentials(url)
        if "://" not in url:
            raise SpecError(f"The exchange {url!r} is no URL; give one such as s3://bucket/exchange or file:///srv/exchange.")
        self.url, self._secrets, self._pauses = url, secrets_of(storage_options), pauses
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url, **storage_options)
        except Exception as error:  # a package that is missing, a protocol or an option that nobody knows
            raise SpecError(f"The exchange {url} cannot be opened: {self._words(error)}. Correct the URL, or install its package.") from None
        self._local = isinstance(self._fs, LocalFileSystem)

    def put(self, path: Path) -> str:
        """Upload a file unless it is there; return its digest."""
        digest, size = file_digest(path), path.stat().st_size
        name = _name(digest)
        there = self._info(name)
        if there and there["size"] == size and age(there) < FRESH_SECONDS:
            return digest
        self.write_file(name, path)
        if (found := (self._info(name) or {}).get("size")) != size:
            self.remove(name)
            raise ExchangeUnavailable(f"{self.url}/{name} has {found} bytes after an upload of {size}: it was cut off, and removed. Retry.")
        return digest

    def put_tree(self, directory: Path, paths: Iterable[str] | None = None) -> str:
        """Upload the files of a directory, or those of its relative `paths`, then their listing; return its digest, that of the tree."""
        chosen = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()] if paths is None else [*paths]
        if unlisted := next((name for name in chosen if "\n" in name), None):
            raise SpecError(f"{directory} holds a file called {unlisted!r}; a line end in a name cannot be listed. Rename it.")
        with ThreadPoolExecutor(_THREADS) as pool:
            digests = list(pool.map(lambda name: self.put(directory / name), chosen))
        with _holding(tree_listing(dict(zip(chosen, digests, strict=True)))) as listing:
            return self.put(listing)

    def get(self, digest: str, path: Path) -> None:
        """Make `path` a file of this digest, all of it or nothing; raise `ResultInvalid` if the object is missing or another one.

        An object that is not what its name says is removed, so that whoever sends it again repairs it.
        """
        self.fetch(_name(digest), digest, path)

    def fetch(self, name: str, digest: str, path: Path) -> None:
        """Make `path` what has this name, as `get` does."""
        if path.is_file() and file_digest(path) == digest:
            return
        with _beside(path) as part:
            try:
                self._ask("read", lambda: self._fs.get_file(f"{self._root}/{name}", str(part)))
            except FileNotFoundError:
                raise ResultInvalid(f"{self.url}/{name}, for {path}, is missing. Somebody removed it: run the stage again.") from None
            if (found := file_digest(part)) != digest:
                self.remove(name)
                raise ResultInvalid(
                    f"{self.url}/{name}, for {path}, has the digest {found}: it was cut off or altered, and is removed. Run the stage again."
                )

    def get_tree(self, digest: str, directory: Path) -> None:
        """Make `directory` hold the files of a tree; others in it stay. Raises `ResultInvalid` as `get` does, and for paths that lead out."""
        with tempfile.TemporaryDirectory() as home:
            self.get(digest, Path(home, "listing"))
            files = dict(_entry(line) for line in Path(home, "listing").read_text().split("\n")[:-1])
        directory.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda name: self.get(files[name], directory / name), files))

    def read(self, name: str) -> bytes | None:
        """Return a small text, None if there is none of this name."""
        self._fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            return bytes(self._ask("read", lambda: self._fs.cat_file(f"{self._root}/{name}")))
        return None

    def write(self, name: str, data: bytes) -> None:
        """Write a small text, all of it or nothing."""
        with _holding(data) as path:
            self.write_file(name, path)

    def write_file(self, name: str, path: Path) -> None:
        """Write what a file holds under a name, all of it or nothing; stores of objects do so by themselves."""
        try:
            if self._local:
                self._ask("written", lambda: _copy(path, Path(self._root, name)))
            else:
                self._ask("written", lambda: self._fs.put_file(str(path), f"{self._root}/{name}"))
        except FileNotFoundError as error:
            raise StageError(f"{self.url} cannot be written: {self._words(error)}. Make the bucket, or correct the URL.") from None

    def remove(self, name: str) -> None:
        """Delete what has this name; no error if there is nothing."""
        with contextlib.suppress(FileNotFoundError):
            self._ask("removed", lambda: self._fs.rm_file(f"{self._root}/{name}"))

    def ages(self, folder: str = FOLDER) -> dict[str, float]:
        """Return how many seconds old everything in a folder is, by name."""
        self._fs.invalidate_cache()
        found = self._ask("listed", lambda: self._fs.find(f"{self._root}/{folder}", detail=True))
        return {path.removeprefix(f"{self._root}/"): age(info) for path, info in found.items()}

    def _info(self, name: str) -> dict[str, Any] | None:
        self._fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            return dict(self._ask("read", lambda: self._fs.info(f"{self._root}/{name}")))
        return None

    def _ask(self, done: str, call: Callable[[], T]) -> T:
        """Make a call, again while it fails for what passes; there is no common class of what these clients raise."""
        pauses = iter(self._pauses)
        while True:
            try:
                return call()
            except (MlopsError, FileNotFoundError):
                raise
            except Exception as error:
                problem = f"{self.url} cannot be {done}: {self._words(error)}."
                if not passes(error):
                    raise StageError(f"{problem} See to the store, its credentials and the room there.") from None
                if (pause := next(pauses, None)) is None:
                    raise ExchangeUnavailable(f"{problem} It was asked {len(self._pauses) + 1} times; try again later.") from None
                log.info("%s Asking again in %g s.", problem, pause)
                time.sleep(pause)

    def _words(self, error: Exception) -> str:
        return f"{type(error).__name__}: {masked(str(error), self._secrets)}"


def age(info: Mapping[str, Any]) -> float:
    """Return for how many seconds an object has been there, by what its store says of it; 0 where it does not say."""
    at = next((info[key] for key in _TIMES if info.get(key)), None)
    if at is None:
        return 0.0
    return time.time() - (at.timestamp() if isinstance(at, datetime) else datetime.fromisoformat(at).timestamp() if isinstance(at, str) else at)


def hex_of(digest: str) -> str:
    """Return the 64 hex digits of a digest; raise `ResultInvalid` if it is none."""
    if not _DIGEST.fullmatch(digest):
        raise ResultInvalid(f"{digest!r} is no digest; expected sha256: and 64 hex digits. Whoever wrote it used another version, or altered it.")
    return digest.removeprefix("sha256:")


def _name(digest: str) -> str:
    return f"{FOLDER}/{hex_of(digest)}"


def _entry(line: str) -> tuple[str, str]:
    """Return path and digest of a line of a listing; a path must not lead out of the directory."""
    digest, _, path = line.partition("  ")
    if not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ResultInvalid(f"A listing names the path {path!r}; expected relative ones that stay in their directory. Do not use what it lists.")
    return path, digest


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a path whose file takes the place of `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{writer()}.{uuid.uuid4().hex[:8]}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _holding(data: bytes) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def _copy(source: Path, target: Path) -> None:
    with _beside(target) as part:
        shutil.copyfile(source, part)
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
