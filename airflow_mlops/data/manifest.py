"""What ``manifest.json`` may say: limits are checked before any work per byte, file or component of a path.

Who can write to the inbox can write any manifest. No manifest may take more than a moment, or more memory than it is long.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated

from pydantic import FailFast, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from airflow_mlops.artifacts import bytes_digest, canonical_json
from airflow_mlops.exceptions import ManifestInvalid
from airflow_mlops.names import shown
from airflow_mlops.results import STRICT, problems

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
MAX_BYTES = 16 * 2**20
MAX_FILES = 50_000
MAX_FILE_SIZE = 2**53  # bytes: beyond, JSON readers differ
MAX_PATH_BYTES = 1024
MAX_COMPONENTS = 32
MAX_NAME_BYTES = 255  # of one part, as file systems have it
MAX_PROBLEM = 1000  # characters of what is said of one manifest
_MAX_FIELDS = 8  # of one object, of which a right one has three
_MAX_MARKS = 16 * MAX_FILES  # a file's entry has seven of , : { [


@STRICT
@dataclass(frozen=True)
class FileEntry:
    """One data file: `path` relative to the version's directory with forward slashes, `size` in bytes, `sha256` as 64 hex digits."""

    path: str
    size: Annotated[int, Field(ge=0, le=MAX_FILE_SIZE)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@STRICT
@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``: the dataset's name and its files."""

    schema_version: int
    dataset: Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$")]
    files: Annotated[tuple[FileEntry, ...], FailFast()]

    @functools.cached_property
    def digest(self) -> str:
        """``sha256:...`` of the canonical JSON of the file list, sorted by path."""
        return bytes_digest(canonical_json([asdict(entry) for entry in sorted(self.files, key=lambda entry: entry.path)]))


def parse(path: Path, data: bytes) -> Manifest:
    """Return the checked manifest that the file `path` holds as `data`; raise `ManifestInvalid` if it is none, unsafe, too large or without data."""
    if sum(data.count(mark) for mark in (b",", b":", b"{", b"[")) > _MAX_MARKS:
        raise ManifestInvalid(f"{shown(str(path))} says more than {MAX_FILES} files need: {_FEWER}")
    _require_few_fields(path, data)
    try:
        manifest = _manifest_type().validate_json(data, strict=True)
    except ValidationError as error:
        raise ManifestInvalid(
            f"{shown(str(path))} is not a dataset manifest: {shown(problems(error), MAX_PROBLEM)}. "
            "Write it with airflow_mlops.data.snapshot.write_manifest."
        ) from error
    check(path, manifest)
    return manifest


def check(path: Path, manifest: Manifest) -> None:
    """Raise `ManifestInvalid` unless a version may have this `manifest` at `path`; no file is looked at."""
    place = shown(str(path))
    if manifest.schema_version != SCHEMA_VERSION:
        raise ManifestInvalid(f"{place} has schema version {manifest.schema_version}, this package reads {SCHEMA_VERSION}: use one version for both.")
    if len(manifest.files) > MAX_FILES:
        raise ManifestInvalid(f"{place} names {len(manifest.files)} files: {_FEWER}")
    if sum(entry.size for entry in manifest.files) == 0:
        raise ManifestInvalid(f"{place} names {len(manifest.files)} files with 0 bytes in all: expected data. Publish at least one file with rows.")
    seen: set[str] = set()
    for entry in manifest.files:
        check_path(path, entry.path)
        if entry.path in seen:
            raise ManifestInvalid(f"{place} names {entry.path!r} more than once: expected every file once. Write the manifest again.")
        seen.add(entry.path)


def check_path(manifest: Path, path: str) -> None:
    """Raise `ManifestInvalid` unless `path` is one that a manifest may name."""
    if not _plain(path):
        raise ManifestInvalid(
            f"{shown(str(manifest))} names the unsafe path {shown(repr(path))}: expected a plain relative path inside the version's directory, with "
            f"forward slashes, of printable characters, at most {MAX_COMPONENTS} parts and {MAX_PATH_BYTES} bytes. Rename the file."
        )


def is_version_name(name: object) -> bool:
    """Return whether a version's directory may have this `name`: a text that prints, and is no path."""
    return isinstance(name, str) and name.isprintable() and name == Path(name).name and not name.startswith(".")


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file of at most `max_bytes`; raise `ManifestInvalid` for a longer one and whatever is no file.

    Never blocks, whatever replaces the file while it is opened: not on a named pipe, not on a device.
    """
    with open(path, "rb", opener=_not_following) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ManifestInvalid(f"{shown(str(path))} is not a regular file: expected one with data. Publish the version again.")
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ManifestInvalid(f"{shown(str(path))} is longer than {max_bytes} bytes: {_FEWER}")
    return data


def _not_following(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _require_few_fields(path: Path, data: bytes) -> None:
    """Raise `ManifestInvalid` for very many fields, each of which would be reported as a mistake; the parser reports what is not JSON."""
    with contextlib.suppress(ValueError):
        parsed = from_json(data)
        files = parsed.get("files") if isinstance(parsed, dict) else None
        for fields in (parsed, *(files if isinstance(files, list) else ())):
            if isinstance(fields, dict) and len(fields) > _MAX_FIELDS:
                raise ManifestInvalid(f"{shown(str(path))} is not a dataset manifest: it has {len(fields)} fields in one object. Write it again.")


def _plain(path: str) -> bool:
    if len(path) > MAX_PATH_BYTES or path.count("/") >= MAX_COMPONENTS or not path.isprintable() or len(path.encode()) > MAX_PATH_BYTES:
        return False
    pure = PurePosixPath(path)
    if any(len(part.encode()) > MAX_NAME_BYTES for part in pure.parts):
        return False
    inside = bool(path) and not pure.is_absolute() and pure.as_posix() == path and ".." not in pure.parts
    return inside and path not in (MANIFEST_NAME, ".") and "\\" not in path and not PureWindowsPath(path).drive


_FEWER = f"expected at most {MAX_FILES} files, named in {MAX_BYTES} bytes. Publish the data as fewer, larger files."


@functools.cache
def _manifest_type() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)
