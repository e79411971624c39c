"""Versions in a directory, of this machine or of a network file system.

A version is copied beside its place, under a name that is no number and thus invisible to the server, read back and compared with its digest,
flushed to disk and only then renamed. What is read back comes from the kernel's cache: it shows what any process of this machine will read,
and finds a copy that broke off or went wrong; whether the disk keeps it is what `fsync` answers for. Copying, reading back and flushing are
done side by side, because hashing needs a processor and flushing a disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from airflow_mlops.artifacts import abandoned, clear_abandoned, write_atomically, writer
from airflow_mlops.exceptions import PublishError
from airflow_mlops.serving.content import MANIFESTS, Content, FileEntry, Files, covers, read_back

_NUM_THREADS = 4  # two files at a time, each hashed and flushed


class DirectoryStore:
    """The `Store` of an absolute directory."""

    atomic = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uri = str(path)

    @contextlib.contextmanager
    def locked(self, version: int) -> Iterator[None]:
        """Let two publishers of one version, a task and the retry of one that was lost, do one after the other."""
        with _disk_errors(f"Version {version} under {self.path} could not be locked"):
            (self.path / MANIFESTS).mkdir(parents=True, exist_ok=True)
            stream = _locked(self._lock(version))
        with stream:
            yield

    def place(self, version: int, content: Content) -> Files:
        """Copy and rename, unless a directory is there already; raise `PublishError` if it is another one."""
        target = self.path / str(version)
        with _disk_errors(f"Version {version} could not be published under {self.path}"):
            self._remove_leftovers()
            if not target.exists() and (files := self._copy_and_rename(content, target)):
                return files
            files = read_back(target)
        if not covers(files, content.digest):
            raise PublishError(
                f"{target} is there already and is not the SavedModel of digest {content.digest}. A published version is never overwritten: "
                "publish under a new version number, or take the directory away if nobody knows it."
            )
        return files

    def intact(self, version: int, files: Files) -> bool:
        """Read everything again and compare."""
        with _disk_errors(f"Version {version} under {self.path} cannot be read"):
            target = self.path / str(version)
            return target.is_dir() and read_back(target) == files

    def discard(self, version: int) -> None:
        """Rename, so that the version vanishes in one step, then delete; a crash between leaves only rubbish."""
        target, doomed = self.path / str(version), self.path / f".removed-{version}-{secrets.token_hex(4)}"
        with _disk_errors(f"Version {version} under {self.path} could not be removed"):
            if target.exists():
                target.rename(doomed)
            self._remove_leftovers()
            self._lock(version).unlink(missing_ok=True)

    def names(self, folder: str = "") -> set[str]:
        """Return the names in a folder of the base path, none if there is no such folder."""
        with _disk_errors(f"{self.path / folder} cannot be listed"):
            with contextlib.suppress(FileNotFoundError):  # nothing was published yet
                return {child.name for child in (self.path / folder).iterdir()}
            return set()

    def read(self, path: str) -> bytes | None:
        """Return a file's content, None if there is no such file."""
        with _disk_errors(f"{self.path / path} cannot be read"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return (self.path / path).read_bytes()
            return None

    def write(self, path: str, data: bytes) -> None:
        """Write a small file, all of it or nothing."""
        with _disk_errors(f"{self.path / path} could not be written"):
            clear_abandoned(self.path / path)
            write_atomically(self.path / path, data)

    def remove(self, path: str) -> None:
        """Delete a file; no error if there is none."""
        with _disk_errors(f"{self.path / path} could not be removed"):
            (self.path / path).unlink(missing_ok=True)

    def _lock(self, version: int) -> Path:
        return self.path / MANIFESTS / f"{version}.lock"

    def _remove_leftovers(self) -> None:
        """Delete versions that were removed, and what crashed copies left.

        That a version's lock is held says nothing of its copies: not every file system locks between hosts.
        """
        for left in (*self.path.glob(".removed-*"), *self.path.glob(".staging-*")):
            with contextlib.suppress(FileNotFoundError):  # its owner, or another publisher, renamed or removed it first
                if left.name.startswith(".removed-") or abandoned(left):
                    shutil.rmtree(left)

    def _copy_and_rename(self, content: Content, target: Path) -> Files | None:
        """Return what the version holds, None if another process published it first."""
        staging = self.path / f".staging-{target.name}-{writer()}-{secrets.token_hex(4)}"
        copy = staging / "copy"
        try:
            copy.mkdir(parents=True)
            files = _copy(content, copy)
            content.verify(files, f"version {target.name} under {self.path}")
            renamed = _rename(copy, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)  # after an error, whose words count; what stays is removed by the next publish
        _flush(self.path)
        return files if renamed else None


def _copy(content: Content, directory: Path) -> Files:
    """Copy all files into an empty directory, flush them to disk, and return what is read back of them meanwhile."""
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        entries, flushes = {}, []
        for relative, source in content.paths.items():
            target = directory / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            entries[relative] = pool.submit(FileEntry.of, target)
            flushes.append(pool.submit(_flush, target))
        files = {relative: entry.result() for relative, entry in entries.items()}
        for flush in flushes:
            flush.result()
    for folder in sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True):
        _flush(folder)
    _flush(directory)
    return files


def _rename(copy: Path, target: Path) -> bool:
    try:
        copy.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _locked(path: Path) -> IO[str]:
    """Return the open lock file; the kernel frees the lock when it is closed, however this process ends."""
    while True:
        stream = path.open("w")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            return stream  # a file system without locks: the rename alone decides
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(stream.fileno()).st_ino:
                return stream
        stream.close()  # whoever held it has removed the version, and the lock with it


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, shutil.Error) as error:
        raise PublishError(f"{what}: {error}. Correct that and publish again; no version is visible that is not whole.") from error
