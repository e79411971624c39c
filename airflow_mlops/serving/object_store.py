"""Versions in an object store, where nothing can be renamed and the server sees every object as soon as it is there.

So a version is written in an order that makes half of one useless: its files, each read back and compared; ``saved_model.pb`` last of them,
because without it the server cannot load a version; then the manifest. A version without a manifest is not published, and as the server's
configuration names its versions for such a base path, it looks at none that was not. What an interrupted upload has left is used where it is
right, and replaced where it is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec.core  # type: ignore[import-untyped]
from fsspec.registry import available_protocols, known_implementations  # type: ignore[import-untyped]

from airflow_mlops.exceptions import MlopsError, PublishError, ServingUnavailable, SpecError
from airflow_mlops.serving.content import GRAPH, Content, FileEntry, Files
from airflow_mlops.serving.store_errors import masked, passes, secrets_of


class ObjectStore:
    """The `Store` of a URL that fsspec knows; `options` are its storage options, none of whose secrets ever appears in a message."""

    atomic = False

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        self.uri = uri
        self._secrets = secrets_of(options)
        with self._calls("opened"):
            self._fs, self._root = fsspec.core.url_to_fs(uri, **options)

    @contextlib.contextmanager
    def locked(self, version: int) -> Iterator[None]:
        """Do nothing: object stores have no locks, and two publishers of the same content write the same."""
        yield

    def place(self, version: int, content: Content) -> Files:
        """Upload what is not there yet, read everything back; raise `PublishError` if the source is another one, or the store alters it."""
        wanted = {relative: FileEntry.of(path) for relative, path in content.paths.items()}
        content.verify(wanted, f"version {version} of {self.uri}")
        with self._calls("written"):
            there = self._right(version, wanted)
            for relative, path in content.paths.items():
                if relative not in there:
                    self._upload(path, f"{version}/{relative}", wanted[relative])
            if not self._sizes_are(version, wanted):
                raise PublishError(f"{self.uri}/{version} was altered while it was written. Nothing was published; see who else writes there.")
        return wanted

    def intact(self, version: int, files: Files) -> bool:
        """Compare names and sizes only: objects were read back before the manifest was written, and stores keep what they have."""
        with self._calls("listed"):
            return self._sizes_are(version, files)

    def discard(self, version: int) -> None:
        """Delete all objects and folders."""
        with self._calls("removed"):
            self._delete_files(version, self._sizes(version))
            for folder in sorted(self._fs.find(f"{self._root}/{version}", withdirs=True), reverse=True):
                self._fs.rmdir(folder)  # where the store has folders, they stay when they are empty

    def names(self, folder: str = "") -> set[str]:
        """Return the names in a folder of the base path, none if there is no such folder."""
        with self._calls("listed"):
            self._fs.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):  # nothing was published yet
                return {name.rstrip("/").rpartition("/")[2] for name in self._fs.ls(f"{self._root}/{folder}".rstrip("/"), detail=False)}
            return set()

    def read(self, path: str) -> bytes | None:
        """Return an object's content, None if there is no such object."""
        with self._calls("read"):
            with contextlib.suppress(FileNotFoundError):
                return bytes(self._fs.cat_file(f"{self._root}/{path}"))
            return None

    def write(self, path: str, data: bytes) -> None:
        """Write a small object and read it back."""
        with self._calls("written"), tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            self._upload(Path(file.name), path, FileEntry.of(Path(file.name)))

    def remove(self, path: str) -> None:
        """Delete an object; no error if there is none."""
        with self._calls("removed"):
            self._delete(path)

    def _right(self, version: int, wanted: Files) -> set[str]:
        """Return which objects are there as wanted, after deleting the others; half of one version never lies beside another one's graph."""
        sizes = self._sizes(version)
        same_size = {path: entry for path, entry in wanted.items() if sizes.get(path) == entry.size}
        right = {path for path, entry in same_size.items() if self._digest(f"{version}/{path}") == entry.digest}
        if sizes.keys() - right:
            right.discard(GRAPH)
        self._delete_files(version, sizes.keys() - right)
        return right

    def _upload(self, source: Path, path: str, wanted: FileEntry) -> None:
        # This call makes no bucket, where others of fsspec do, and makes directories, where a store has such.
        self._fs.put_file(str(source), f"{self._root}/{path}")
        if (found := self._digest(path)) != wanted.digest:
            raise PublishError(
                f"{self.uri}/{path} is not what was written: expected {wanted.digest}, read back {found}. Nothing was published; see to the store, "
                "and whether another process publishes the same version."
            )

    def _digest(self, path: str) -> str:
        with self._fs.open(f"{self._root}/{path}", "rb") as stream:
            return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()

    def _delete_files(self, version: int, paths: Iterable[str]) -> None:
        """Delete objects, first the one without which nothing can be loaded."""
        for path in sorted(paths, key=lambda name: (name != GRAPH, name)):
            self._delete(f"{version}/{path}")

    def _delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{path}")

    def _sizes_are(self, version: int, files: Files) -> bool:
        return self._sizes(version) == {relative: entry.size for relative, entry in files.items()}

    def _sizes(self, version: int) -> dict[str, int]:
        self._fs.invalidate_cache()
        folder = f"{self._root}/{version}/"
        found = self._fs.find(folder.rstrip("/"), detail=True)
        return {name.removeprefix(folder): info["size"] for name, info in found.items() if name.startswith(folder) and info["type"] == "file"}

    @contextlib.contextmanager
    def _calls(self, done: str) -> Iterator[None]:
        """Translate what a file system raises while `uri` is opened, read, written ...: there is no common class of their errors."""
        try:
            yield
        except MlopsError:
            raise
        except Exception as error:
            words = masked(str(error) or type(error).__name__, self._secrets)
            # Where a secret was taken out, the original must not be printed as the cause either.
            raise self._translated(error, words, done) from (error if words == str(error) else None)

    def _translated(self, error: Exception, words: str, done: str) -> MlopsError:
        protocol = self.uri.partition(":")[0]
        if isinstance(error, ImportError):
            package = str(known_implementations.get(protocol, {}).get("class", protocol)).partition(".")[0]
            return PublishError(f"{self.uri} cannot be {done}, because a package is missing ({words}). Install {package} on the workers.")
        if isinstance(error, ValueError) and protocol not in available_protocols():
            return SpecError(f"{self.uri} cannot be {done}: there is no kind of store called {protocol!r}. Correct the base path.")
        if passes(error):
            return ServingUnavailable(f"{self.uri} cannot be {done} for the moment: {words}. Nothing half-written is published; retry.")
        kind = type(error).__name__
        return PublishError(
            f"{self.uri} cannot be {done} ({kind}: {words}). Nothing half-written is published; see to the store and the credentials."
        )
