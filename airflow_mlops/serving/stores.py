"""Where versions are published: a directory of a file system, or an object store; publishing and retention know no difference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from airflow_mlops.exceptions import SpecError
from airflow_mlops.serving.content import Content, Files
from airflow_mlops.serving.directory_store import DirectoryStore

_NUMBER = re.compile(r"[0-9]{1,19}")
_URI = re.compile(r"[a-z][a-z0-9+.-]*://[^?#]+")
_CREDENTIALS = re.compile(r"[^/]*(@|:(?!\d+/).*@)")  # a password may hold a slash; digits after a colon are a port
_AZURE = re.compile(r"abfss?://[^/:@]+@[^/:@]+(:\d+)?(/.*)?")  # container@account: no user, and the only form that names the account


class Store(Protocol):
    """The versions of one model below its base path `uri`.

    `atomic` says that a version appears whole: where it is not, the server may see one that is still being written. Paths are relative, with
    forward slashes. Every call may raise `PublishError`, or `ServingUnavailable` where a retry may help.
    """

    uri: str
    atomic: bool

    def locked(self, version: int) -> AbstractContextManager[None]:
        """Keep others from publishing or removing this version meanwhile, where the store has locks."""
        ...

    def place(self, version: int, content: Content) -> Files:
        """Make the version hold `content`, verified by what is read back, and return its files; what holds it already stays as it is."""
        ...

    def intact(self, version: int, files: Files) -> bool:
        """Return whether the version's directory still holds these files and no others."""
        ...

    def discard(self, version: int) -> None:
        """Take the version's directory away, its lock held; no error if there is none."""
        ...

    def names(self, folder: str = "") -> set[str]:
        """Return the names in a folder of the base path, none if there is no such folder."""
        ...

    def read(self, path: str) -> bytes | None:
        """Return a file's content, None if there is no such file."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write a small file, all of it or nothing."""
        ...

    def remove(self, path: str) -> None:
        """Delete a file; no error if there is none."""
        ...


def open_store(base_path: str | Path, storage_options: Mapping[str, Any] | None = None) -> Store:
    """Return the store of a base path: an absolute path, ``file:///...``, or the URL of an object store such as ``s3://bucket/models/digits``.

    Azure's is ``abfs://container@account.dfs.core.windows.net/models/digits``. `storage_options` (endpoint, credentials) are fsspec's for such
    a store. Raises `SpecError` if no server could have this base path.
    """
    place = normalized(base_path)
    if place.startswith("/"):
        return DirectoryStore(Path(place))
    refuse_credentials(place)
    if not _URI.fullmatch(place) or place.startswith("file:"):
        raise SpecError(f"The base path {place!r} is neither an absolute path nor a URL such as s3://bucket/models. Correct it.")
    from airflow_mlops.serving.object_store import ObjectStore  # and fsspec, which nobody needs who has a directory

    return ObjectStore(place, storage_options or {})


def refuse_credentials(place: str) -> None:
    """Raise `SpecError` if a URL holds, or may hold, a user, a password or a key: URLs are logged."""
    if _CREDENTIALS.match(place.partition("://")[2]) and not _AZURE.fullmatch(place):
        raise SpecError("The base path holds a user name or password; leave them out and give them as storage_options of the connection.")
    if "://" in place and ("?" in place or "#" in place):  # what follows may be a key, as of a signed URL
        raise SpecError(
            f"The base path {re.split('[?#]', place)[0]!r} is followed by a '?' or '#', which no base path has; leave the rest out and give "
            "credentials as storage_options of the connection."
        )


def normalized(base_path: str | Path) -> str:
    """Return a base path in the one form in which two can be compared."""
    place = str(base_path)
    place = place.removeprefix("file://") if place.startswith("file:///") else place
    return re.sub("/+", "/", f"{place}/")[:-1] if place.startswith("/") else place.rstrip("/")


def versions(store: Store) -> dict[int, str]:
    """Return the names below the base path that the server takes for versions, by number."""
    return {int(name): name for name in sorted(store.names()) if _NUMBER.fullmatch(name) and int(name) < 2**63}
