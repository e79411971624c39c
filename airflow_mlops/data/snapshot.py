"""A dataset version: a directory whose ``manifest.json``, written last, names every file with its size and SHA-256.

The version's digest is that of the file list and nothing else: a rewrite under the same directory name is a new version, the same content
under another name is the same version. Files that the manifest does not name are no part of the version: they are never read and never
counted, so a stray ``_SUCCESS`` or editor file neither breaks a version nor smuggles rows into it.
"""

from __future__ import annotations

import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from airflow_mlops.artifacts import bytes_digest, canonical_json, file_digest, write_atomically
from airflow_mlops.data.manifest import (
    MANIFEST_NAME,
    MAX_BYTES,
    NAME_PATTERN,
    SCHEMA_VERSION,
    FileEntry,
    Manifest,
    check,
    check_path,
    parse,
    read_regular,
)
from airflow_mlops.exceptions import DatasetError, DatasetNotFound, ManifestInvalid, ManifestMismatch, SpecError
from airflow_mlops.results import DatasetVersion

NAME = re.compile(NAME_PATTERN)

Digester = Callable[[Path], str]


def write_manifest(directory: Path, dataset: str) -> Manifest:
    """Write ``manifest.json`` over every file below `directory` (hidden ones excepted), atomically; call it last.

    Raises `ManifestInvalid` for a directory without data, with symbolic links, or with names or more files than a manifest may have, and
    `SpecError` for an unusable dataset name.
    """
    _check_name("dataset name", dataset)
    manifest = Manifest(SCHEMA_VERSION, dataset, tuple(_entry(directory, path) for path in _listed(directory)))
    check(directory / MANIFEST_NAME, manifest)
    write_atomically(directory / MANIFEST_NAME, canonical_json(asdict(manifest)))
    return manifest


def publish_version(source: Path | Mapping[str, bytes | Path], inbox: Path, *, name: str, dataset: str) -> DatasetVersion:
    """Place `source` (a directory, or relative path -> content or file) as ``inbox/name``: staged under a hidden name, renamed when whole.

    Publishing the same content again returns the version that is there; other content under a taken name raises `DatasetError`.
    """
    _check_name("version name", name)
    inbox.mkdir(parents=True, exist_ok=True)
    staging = inbox / f".staging-{secrets.token_hex(8)}"
    staging.mkdir()
    try:
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
    _refuse_links(directory, [MANIFEST_NAME])
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ManifestInvalid(f"{path} is not a regular file: expected a JSON document. Publish the version again.")
        data = read_regular(path, MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetNotFound(f"{path} does not exist: the version is not published yet. Publishers write the manifest last.") from error
    manifest = parse(path, data)
    _refuse_links(directory, [entry.path for entry in manifest.files])
    return manifest


def open_version(directory: Path, *, digest_of: Digester = file_digest) -> DatasetVersion:
    """Return the version in `directory` after checking the size and SHA-256 of every file.

    `digest_of` hashes one file (a cache may stand in for it). Raises what `read_manifest` raises, and `ManifestMismatch` naming the file.
    """
    manifest = read_manifest(directory)
    for entry in manifest.files:
        check_size(directory, entry)
    for entry in manifest.files:  # only after all sizes agree: a version that is still being copied costs no hashing
        check_digest(directory, entry, digest_of(directory / entry.path))
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
        check_size(directory, entry)
        data = read_regular(directory / entry.path, entry.size)
        check_digest(directory, entry, bytes_digest(data))
        yield entry.path, data


def _entry(directory: Path, relative: str) -> FileEntry:
    _refuse_links(directory, [relative])
    path = directory / relative
    _require_file(path)
    return FileEntry(relative, path.stat().st_size, file_digest(path).removeprefix("sha256:"))


def _require_file(path: Path) -> None:
    if not path.is_file():  # a named pipe would be waited for
        raise ManifestInvalid(f"{path} is not a regular file: expected one with data. Copy into its place what belongs there, or remove it.")


def _listed(directory: Path) -> list[str]:
    """Return the relative paths of all in `directory` that is not hidden, sorted; links are among them, so that none is left out unseen."""
    found = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return [relative for relative in found if relative != MANIFEST_NAME and "/." not in f"/{relative}"]


def _fill(staging: Path, source: Path | Mapping[str, bytes | Path]) -> None:
    if isinstance(source, Path):
        source = {relative: source / relative for relative in _listed(source)}
    for relative, content in source.items():
        check_path(staging, relative)
        if "/." in f"/{relative}":
            raise ManifestInvalid(f"{relative!r} is a hidden file: expected a visible name, because manifests leave hidden files out. Rename it.")
        target = staging / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            _require_file(content)
            shutil.copyfile(content, target)
        else:
            target.write_bytes(content)


def _refuse_links(directory: Path, relative: Iterable[str]) -> None:
    """Raise `ManifestInvalid` if `directory`, or anything on the way from it to the `relative` paths in it, is a symbolic link."""
    places = {parent for path in relative for parent in (path, *map(str, PurePosixPath(path).parents))}
    for place in sorted(places, key=len):
        if (directory / place).is_symlink():
            raise ManifestInvalid(f"{directory / place} is a symbolic link: expected a real file or directory. Publish a copy of what it points to.")


def check_size(directory: Path, entry: FileEntry) -> None:
    """Raise `ManifestMismatch` unless `entry` is a file of the right size in `directory`."""
    path = directory / entry.path
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ManifestMismatch(f"{path} is missing: expected {entry.size} bytes, found no file. Wait for the upload, or publish again.") from error
    if not stat.S_ISREG(found.st_mode):
        raise ManifestMismatch(f"{path} is not a regular file: expected one of {entry.size} bytes. Publish the version again.")
    if found.st_size != entry.size:
        raise ManifestMismatch(
            f"{path} has the wrong size: expected {entry.size} bytes, found {found.st_size}. Wait for the upload, or publish again."
        )


def check_digest(directory: Path, entry: FileEntry, found: str) -> None:
    """Raise `ManifestMismatch` unless `found` is the digest that `entry` has."""
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
