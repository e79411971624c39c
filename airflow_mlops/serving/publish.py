"""Placing a SavedModel under the server's base path so that the server never sees half of one.

The server checks nothing: a version directory seen before it is whole fails to load. So a version is copied beside its place, under a name
that is no number and thus invisible to the server, compared with its digest, flushed to disk and only then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import time
from pathlib import Path

from airflow_mlops.artifacts import path_digest
from airflow_mlops.exceptions import PublishError, SpecError
from airflow_mlops.serving import config

ABANDONED_SECONDS = 3600.0  # a staging directory untouched for an hour belongs to nobody: one copy takes minutes at most


def publish_saved_model(source: Path, base_path: Path, version: int, digest: str) -> Path:
    """Copy the SavedModel directory `source` to ``base_path/<version>``, whole or not at all, and return that path.

    `digest` is what `artifacts.path_digest` must say of the copy. A version that is already there with this digest is left as it is.
    Raises `PublishError` if another content is there, the copy differs, or the disk refuses.
    """
    if version < 0 or not base_path.is_absolute():
        raise SpecError(f"Can not publish version {version} under {base_path}: expected a version >= 0 and an absolute path.")
    target = base_path / str(version)
    try:
        base_path.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(base_path, version)
        if not target.exists():
            _copy_and_rename(source, target, digest)
    except (OSError, shutil.Error) as error:
        raise PublishError(
            f"Version {version} could not be published under {base_path}: {error}. Nothing of it is visible; correct and retry."
        ) from error
    _check(target, digest)
    return target


def remove_version(base_path: Path, version: int, config_file: Path) -> None:
    """Delete ``base_path/<version>``; raise `PublishError` while `config_file` names the version, or leaves the choice to the server."""
    with config.exclusive(config_file) as served:
        for model in served.models:
            if Path(model.base_path) == base_path and (not model.versions or version in {*model.versions, *model.labels.values()}):
                raise PublishError(
                    f"Version {version} of model {model.name!r} is in use by {config_file} (versions {list(model.versions) or 'by policy'}). "
                    "Take it out of the configuration first."
                )
        doomed = _staging(base_path, version)
        try:
            if (base_path / str(version)).exists():
                (base_path / str(version)).rename(doomed)  # invisible in one step; a crash after it leaves only rubbish
                shutil.rmtree(doomed)
        except OSError as error:
            raise PublishError(f"Version {version} under {base_path} could not be removed: {error}. Correct that and retry.") from error


def _staging(base_path: Path, version: int) -> Path:
    return base_path / f".staging-{version}-{secrets.token_hex(4)}"


def _remove_leftovers(base_path: Path, version: int) -> None:
    """Delete what crashed copies left: of this version at once (publishing one version twice at a time is not done), of others when old."""
    for left in base_path.glob(".staging-*"):
        with contextlib.suppress(FileNotFoundError):  # its owner renamed or removed it first
            own = left.name.startswith(f".staging-{version}-")
            if own or time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left)


def _copy_and_rename(source: Path, target: Path, digest: str) -> None:
    staging = _staging(target.parent, int(target.name))
    copy = staging / "copy"  # gets the source's time, which may be old; that of the directory around it says when this copy began
    try:
        staging.mkdir()
        shutil.copytree(source, copy)
        _check(copy, digest)
        for path in sorted(copy.rglob("*"), reverse=True):
            _flush(path)
        _flush(copy)
        _rename(copy, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # after an error, whose words count; what stays is removed by the next publish
    _flush(target.parent)


def _rename(copy: Path, target: Path) -> None:
    try:
        copy.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise  # otherwise another process published it first, and the caller compares digests


def _check(path: Path, digest: str) -> None:
    found, size = path_digest(path)
    if found != digest:
        raise PublishError(
            f"{path} is not the SavedModel that was asked for: expected {digest}, found {found} ({size} bytes). "
            "A published version is never overwritten: publish under a new version number, or train again if the source was altered."
        )


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
