"""What was published: ``BASE/.manifests/VERSION.json``, written last, names every file of a version with its size and digest.

The server looks below a base path for numbers only, so it never sees this folder. A version without a manifest is not published, whatever lies
under its number, and whoever has laid it there must take it away. While a version is removed, its manifest has another name: a removal that is
interrupted goes on later, and nothing of it is taken for published meanwhile.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from airflow_mlops.artifacts import canonical_json
from airflow_mlops.exceptions import PublishError
from airflow_mlops.results import STRICT, problems
from airflow_mlops.serving.content import MANIFESTS, FileEntry, covers
from airflow_mlops.serving.stores import Store, versions

SCHEMA_VERSION = 1
_PUBLISHED, _DOOMED = ".json", ".removing"


@STRICT
@dataclass(frozen=True)
class Manifest:
    """The files of a published `version` by relative path; `digest` is that of the SavedModel as it was registered."""

    schema_version: int
    version: Annotated[int, Field(ge=0)]
    digest: str
    files: dict[str, FileEntry]


def read(store: Store, version: int) -> Manifest | None:
    """Return the manifest of a published version, None if it is not published; raise `PublishError` if nobody can read it."""
    data = store.read(_path(version, _PUBLISHED))
    if data is None:
        return None
    where = f"{store.uri}/{_path(version, _PUBLISHED)}"
    try:
        manifest = _type().validate_json(data, strict=True)
    except ValidationError as error:
        raise PublishError(f"{where} is no manifest: {problems(error)}. If nobody needs the version, delete it and its manifest.") from error
    if manifest.schema_version != SCHEMA_VERSION or manifest.version != version or not covers(manifest.files, manifest.digest):
        raise PublishError(
            f"{where} is the manifest of something else (schema {manifest.schema_version}, version {manifest.version}, {manifest.digest}): "
            f"expected schema {SCHEMA_VERSION}, version {version} and files of that digest. If nobody needs the version, delete it and its manifest."
        )
    return manifest


def write(store: Store, manifest: Manifest) -> None:
    """Make a version published."""
    store.remove(_path(manifest.version, _DOOMED))  # a removal that was begun is off
    store.write(_path(manifest.version, _PUBLISHED), canonical_json(asdict(manifest)))


def published(store: Store) -> set[int]:
    """Return the versions that were published and lie there still."""
    return _numbers(store, _PUBLISHED) & versions(store).keys()


def doomed(store: Store) -> set[int]:
    """Return the versions whose removal was begun."""
    return _numbers(store, _DOOMED) - _numbers(store, _PUBLISHED)


def doom(store: Store, version: int) -> None:
    """Make a version unpublished, before its files are deleted."""
    store.write(_path(version, _DOOMED), b"")
    store.remove(_path(version, _PUBLISHED))


def forget(store: Store, version: int) -> None:
    """End a removal, after the files were deleted."""
    store.remove(_path(version, _DOOMED))


def _path(version: int, kind: str) -> str:
    return f"{MANIFESTS}/{version}{kind}"


def _numbers(store: Store, kind: str) -> set[int]:
    numbers = (name.removesuffix(kind) for name in store.names(MANIFESTS) if name.endswith(kind))
    return {int(number) for number in numbers if number.isascii() and number.isdigit()}


@functools.cache
def _type() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)
