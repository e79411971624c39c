"""A dataset version: a directory whose ``manifest.json``, written last, names every file with its size and SHA-256.

The version's digest is that of the file list and nothing else: a rewrite under the same directory name is a new version, the same content
under another name is the same version. Files that the manifest does not name are no part of the version: they are never read and never
counted, so a stray ``_SUCCESS`` or editor file neither breaks a version nor smuggles rows into it.
"""

from __future__ import annotations

import functools
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from airflow_mlops.artifacts import bytes_digest, canonical_json, file_digest, write_atomically
from airflow_mlops.exceptions import DatasetError, DatasetNotFound, ManifestInvalid, ManifestMismatch, SpecError
from airflow_mlops.results import STRICT, DatasetVersion, problems

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Digester = Callable[[Path], str]


@STRICT
@dataclass(frozen=True)
class FileEntry:
    """One data file: `path` relative to the version's directory with forward slashes, `size` in bytes, `sha256` as 64 hex digits."""

    path: str
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@STRICT
@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``: the dataset's name and its files."""

    schema_version: int
    dataset: Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]
    files: tuple[FileEntry, ...]

    @property
    def digest(self) -> str:
        """``sha256:...`` of the canonical JSON of the file list, sorted by path."""
        return bytes_digest(canonical_json([asdict(entry) for entry in sorted(self.files, key=lambda entry: entry.path)]))


def write_manifest(directory: Path, dataset: str) -> Manifest:
    """Write ``manifest.json`` over every file below `directory` (hidden ones excepted), atomically; call it last.

    Raises `ManifestInvalid` for a directory without data or with symbolic links, `SpecError` for an unusable dataset name.
    """
    _check_name("dataset name", dataset)
    manifest = Manifest(SCHEMA_VERSION, dataset, tuple(_entry(directory, path) for path in _listed(directory)))
    _check(directory / MANIFEST_NAME, manifest)
    write_atomically(directory / MANIFEST_NAME, canonical_json(asdict(manifest)))
    return manifest


def publish_version(source: Path | Mapping[str, bytes | Path], inbox: Path, *, name: str, dataset: str) -> DatasetVersion:
    """Place `source` (a directory, or relative path -> content or file) as ``inbox/name``: staged under a hidden name, renamed when whole.

    Publishing the same content again returns the version that is there; other content under a taken name raises `DatasetError`.
    """
    _check_name("version name", name)
    inbox.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=inbox))
    try:
        staging.chmod(0o755)
        _fill(staging, source)
        manifest = write_manifest(staging, dataset)
        try:
            staging.rename(inbox / name)
        except OSError:
            if not (inbox / name).exists():  # else somebody was first, and below it shows with which content
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # after a successful rename there is nothing left to remove
    version = open_version(inbox / name)
    if version.digest != manifest.digest or version.dataset != dataset:
        raise DatasetError(
            f"{inbox / name} already holds {version.dataset} {version.digest}, not {dataset} {manifest.digest}: "
            "a published version never changes. Publish under another name."
        )
    return version


def read_manifest(directory: Path) -> Manifest:
    """Return the checked manifest of `directory`, its files not yet verified.

    Raises `DatasetNotFound` if there is none (yet) and `ManifestInvalid` if it is unreadable, unsafe or names no data.
    """
    path = directory / MANIFEST_NAME
    _refuse_links(directory, MANIFEST_NAME)
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ManifestInvalid(f"{path} is no regular file: expected a JSON document. Publish the version again.")
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetNotFound(f"{path} does not exist: the version is not published yet. Publishers write the manifest last.") from error
    try:
        manifest = _manifest_type().validate_json(data, strict=True)
    except ValidationError as error:
        raise ManifestInvalid(
            f"{path} is not a dataset manifest: {problems(error)}. Write it with airflow_mlops.data.snapshot.write_manifest."
        ) from error
    _check(path, manifest)
    return manifest


def open_version(directory: Path, *, digest_of: Digester = file_digest) -> DatasetVersion:
    """Return the version in `directory` after checking the size and SHA-256 of every file.

    `digest_of` hashes one file (a cache may stand in for it). Raises what `read_manifest` raises, and `ManifestMismatch` naming the file.
    """
    manifest = read_manifest(directory)
    for entry in manifest.files:
        _check_size(directory, entry)
    for entry in manifest.files:  # only after all sizes agree: a version that is still being copied costs no hashing
        _check_digest(directory, entry, digest_of(directory / entry.path))
    return DatasetVersion(dataset=manifest.dataset, name=directory.absolute().name, digest=manifest.digest, uri=str(directory.absolute()))


def verify(version: DatasetVersion) -> Path:
    """Return the version's directory if it still holds exactly this content; raise `ManifestMismatch` or `DatasetNotFound` otherwise."""
    _same_digest(version, open_version(Path(version.uri)).digest)
    return Path(version.uri)


def contents(version: DatasetVersion) -> Iterator[tuple[str, bytes]]:
    """Yield (relative path, bytes) of every file in sorted order; the bytes yielded are the bytes hashed, so nothing can change in between."""
    directory = Path(version.uri)
    manifest = read_manifest(directory)
    _same_digest(version, manifest.digest)
    for entry in sorted(manifest.files, key=lambda entry: entry.path):
        _check_size(directory, entry)
        data = (directory / entry.path).read_bytes()
        _check_digest(directory, entry, bytes_digest(data))
        yield entry.path, data


def _entry(directory: Path, relative: str) -> FileEntry:
    _refuse_links(directory, relative)
    path = directory / relative
    _require_file(path)
    return FileEntry(relative, path.stat().st_size, file_digest(path).removeprefix("sha256:"))


def _require_file(path: Path) -> None:
    if not path.is_file():  # a named pipe would be waited for
        raise ManifestInvalid(f"{path} is no regular file: expected one with data. Copy into its place what belongs there, or remove it.")


def _listed(directory: Path) -> list[str]:
    """Return the relative paths of all in `directory` that is not hidden, sorted; links are among them, so that none is left out unseen."""
    found = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return [relative for relative in found if relative != MANIFEST_NAME and "/." not in f"/{relative}"]


def _fill(staging: Path, source: Path | Mapping[str, bytes | Path]) -> None:
    if isinstance(source, Path):
        source = {relative: source / relative for relative in _listed(source)}
    for relative, content in source.items():
        _check_path(staging, relative)
        if "/." in f"/{relative}":
            raise ManifestInvalid(f"{relative!r} is a hidden file: expected a visible name, because manifests leave hidden files out. Rename it.")
        target = staging / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            _require_file(content)
            shutil.copyfile(content, target)
        else:
            target.write_bytes(content)


def _check(path: Path, manifest: Manifest) -> None:
    if manifest.schema_version != SCHEMA_VERSION:
        raise ManifestInvalid(f"{path} has schema version {manifest.schema_version}, this package reads {SCHEMA_VERSION}: use one version for both.")
    if sum(entry.size for entry in manifest.files) == 0:
        raise ManifestInvalid(f"{path} names {len(manifest.files)} files with 0 bytes in all: expected data. Publish at least one file with rows.")
    seen: set[str] = set()
    for entry in manifest.files:
        _check_path(path, entry.path)
        if entry.path in seen:
            raise ManifestInvalid(f"{path} names {entry.path!r} more than once: expected every file once. Write the manifest again.")
        seen.add(entry.path)
        _refuse_links(path.parent, entry.path)


def _check_path(manifest: Path, path: str) -> None:
    pure = PurePosixPath(path)
    plain = path and not pure.is_absolute() and pure.as_posix() == path and ".." not in pure.parts and path != MANIFEST_NAME
    if not plain or "\\" in path or "\0" in path or path == "." or PureWindowsPath(path).drive:
        raise ManifestInvalid(
            f"{manifest} names the unsafe path {path!r}: expected a plain relative path inside the version's directory, with forward slashes."
        )


def _refuse_links(directory: Path, relative: str) -> None:
    for path in (directory, *(directory / parent for parent in reversed(PurePosixPath(relative).parents)), directory / relative):
        if path.is_symlink():
            raise ManifestInvalid(f"{path} is a symbolic link: expected a real file or directory. Publish a copy of what it points to.")


def _check_size(directory: Path, entry: FileEntry) -> None:
    path = directory / entry.path
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ManifestMismatch(f"{path} is missing: expected {entry.size} bytes, found no file. Wait for the upload, or publish again.") from error
    if not stat.S_ISREG(found.st_mode):
        raise ManifestMismatch(f"{path} is no regular file: expected one of {entry.size} bytes. Publish the version again.")
    if found.st_size != entry.size:
        raise ManifestMismatch(
            f"{path} has the wrong size: expected {entry.size} bytes, found {found.st_size}. Wait for the upload, or publish again."
        )


def _check_digest(directory: Path, entry: FileEntry, found: str) -> None:
    if found != f"sha256:{entry.sha256}":
        raise ManifestMismatch(f"{directory / entry.path} was altered: expected sha256:{entry.sha256}, found {found}. Publish the version again.")


def _same_digest(version: DatasetVersion, found: str) -> None:
    if found != version.digest:
        raise ManifestMismatch(
            f"{version.uri} holds another version of {version.dataset!r} now: expected {version.digest}, found {found}. "
            "It was rewritten under the same name; run the pipeline for the new version."
        )


def _check_name(kind: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise SpecError(f"The {kind} {name!r} is unusable: expected 1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit.")


@functools.cache
def _manifest_type() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)
