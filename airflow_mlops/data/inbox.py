"""An inbox that is looked at again and again: what a version costs is bounded, remembered, and paid by that version alone.

Manifests are read first, and files only of the versions that the caller wants. What was read, or could not be, is remembered until the file
it came from changes. A look that takes long continues at the next one, small versions first, so that a large or a hostile one delays no other
that is smaller.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from airflow_mlops.artifacts import bytes_digest
from airflow_mlops.data.arrival import Candidate, natural
from airflow_mlops.data.manifest import MANIFEST_NAME, MAX_BYTES, FileEntry, is_version_name, read_regular
from airflow_mlops.data.reading import RACY_SECONDS, Digests, Headings, NotRead, Signature, signature, status_of
from airflow_mlops.data.snapshot import check_digest, check_size, read_manifest
from airflow_mlops.exceptions import DatasetNotFound, ManifestInvalid, ManifestMismatch
from airflow_mlops.names import shown
from airflow_mlops.results import DatasetVersion

if TYPE_CHECKING:
    from airflow_mlops.ledger.store import Store

LOOK_SECONDS = 20.0
MAX_PROBLEM = 2000  # characters
_TRUSTED_SECONDS = 60.0  # a complete version that waits for its turn is examined again after that, and by its run
_SAMPLE = 200  # files, from the wrong one on: an upload under way changes one of them


class Heading(NamedTuple):
    """What a manifest says of its version, before its files are looked at."""

    dataset: str
    digest: str
    num_bytes: int


class Listed(NamedTuple):
    """A directory with a manifest: its `heading`, or None where there is none to read, and what is wrong before its files are looked at."""

    directory: Path
    heading: Heading | None
    problem: str = ""


@dataclass
class _Verdict:
    """What one look found at `at`: the `problem` or none, its `key`, and how the files looked that it was found in.

    `passing` problems are looked at again; `files` are those that may be under way, which `looked` so since `since`.
    """

    listed: Listed
    problem: str
    key: str
    found_in: dict[Path, Signature | None]
    at: float
    passing: bool = False
    files: tuple[Path, ...] = ()
    looked: tuple[Signature | None, ...] = ()
    since: float = 0.0

    def says(self) -> tuple[object, ...]:
        """Return what is the same as long as nothing has changed."""
        return self.problem, self.key, self.found_in

    def stands(self, listed: Listed, now: float) -> bool:
        """Return whether another look would find the same."""
        age = abs(now - self.at)
        fresh = age >= RACY_SECONDS if self.problem else age < _TRUSTED_SECONDS
        return fresh and not self.passing and listed == self.listed and all(signature(path) == looked for path, looked in self.found_in.items())


class Inbox:
    """The directory `root` with one directory per version.

    :param look_seconds: how long a listing, and an examination, may take, but for one manifest or chunk of data; by default as long as it takes.
    :param clock: epoch seconds; how long a problem has been the same is measured with it, and never with the times of files.
    """

    def __init__(self, root: Path, *, look_seconds: float = float("inf"), clock: Callable[[], float] = time.time) -> None:
        self.root = root
        self._look_seconds, self._clock = look_seconds, clock
        self._deadline = float("inf")
        self._headings = Headings(_read_heading)
        self._digests = Digests()
        self._verdicts: dict[Path, _Verdict] = {}

    def listed(self) -> list[Listed]:
        """Return every directory with a manifest that could be read by now, in the natural order of their names; a look begins with it.

        Hidden directories (staging areas) and directories without a manifest are still being written and are left out.

        :raises DatasetNotFound: the inbox is not there, or cannot be listed now.
        """
        self._deadline = time.monotonic() + self._look_seconds
        found = [(path, status) for path in self._directories() if (status := status_of(path / MANIFEST_NAME)) is not None]
        self._headings.keep({path for path, _ in found})
        listed = []
        for path, status in sorted(found, key=lambda one: getattr(one[1], "st_size", 0)):
            with contextlib.suppress(DatasetNotFound, NotRead):  # removed meanwhile, or for a later look
                listed.append(self._listed(path, status))
        return sorted(listed, key=lambda one: natural(one.directory.name))

    def examine(self, listed: Iterable[Listed], told: Set[str] = frozenset()) -> list[Candidate]:
        """Return which of the versions are complete, and what is wrong with the others but those whose keys are in `told`.

        A version that could not be read to its end in this look is left out.
        """
        self._deadline = time.monotonic() + self._look_seconds  # its own: however long the listing took, the examination makes progress
        wanted = sorted(listed, key=lambda one: one.heading.num_bytes if one.heading else 0)
        here = {one.directory for one in wanted}
        self._digests.keep(here)
        self._verdicts = {path: verdict for path, verdict in self._verdicts.items() if path in here}
        found = []
        for one in wanted:
            with contextlib.suppress(DatasetNotFound, NotRead):
                found.append(self._candidate(one, told))
        return [candidate for candidate in found if candidate is not None]

    def _directories(self) -> list[Path]:
        try:
            with os.scandir(self.root) as entries:
                return [self.root / entry.name for entry in entries if not entry.name.startswith(".") and _is_directory(entry)]
        except OSError as error:
            raise DatasetNotFound(
                f"The inbox {self.root} does not exist or cannot be listed ({error.strerror}): expected a directory. "
                "Create it, or mount it where the arrival check runs."
            ) from error

    def _listed(self, path: Path, status: os.stat_result | OSError) -> Listed:
        if isinstance(status, OSError):
            return Listed(path, None, _unreadable(path, status))
        try:
            heading, problem = self._headings(path / MANIFEST_NAME, status, self._deadline)
        except OSError as error:
            heading, problem = None, _unreadable(path, error)
        if not is_version_name(path.name):
            problem = f"{shown(path.name)} is no version's name: expected characters that print, and no dot in front. Publish it under another."
        return Listed(path, heading, problem)

    def _candidate(self, one: Listed, told: Set[str]) -> Candidate | None:
        before, now = self._verdicts.get(one.directory), self._clock()
        verdict = before if before is not None and before.stands(one, now) else self._verdict(one, now)
        if (
            before is not None
            and before.problem
            and (before.problem, before.key, before.found_in) == (verdict.problem, verdict.key, verdict.found_in)
        ):
            verdict.at, verdict.since, verdict.looked = before.at, before.since, before.looked
        self._verdicts[one.directory] = verdict
        if not verdict.problem and one.heading:
            version = DatasetVersion(one.heading.dataset, one.directory.name, one.heading.digest, str(one.directory.absolute()))
            return Candidate(version.name, version.digest, version)
        if verdict.key in told:
            return None
        looked = tuple(map(signature, verdict.files))
        if looked != verdict.looked or verdict.since > now:
            verdict.looked, verdict.since = looked, now
        return Candidate(shown(one.directory.name), verdict.key, problem=verdict.problem, since=verdict.since)

    def _verdict(self, one: Listed, now: float) -> _Verdict:
        path = one.directory / MANIFEST_NAME
        found_in = {path: signature(path)}
        if one.problem or one.heading is None:
            return _broken(one, one.problem, found_in, now)
        manifest = read_manifest(one.directory)
        if (manifest.dataset, manifest.digest) != (one.heading.dataset, one.heading.digest):
            raise NotRead  # rewritten while we looked
        for check in (check_size, self._check_digest):  # only after all sizes agree: a version that is still being copied costs no hashing
            for index, entry in enumerate(manifest.files):
                looks = signature(one.directory / entry.path)
                try:
                    check(one.directory, entry)
                except (ManifestMismatch, OSError) as error:
                    verdict = _broken(one, error, {**found_in, one.directory / entry.path: looks}, now)
                    sample = (*manifest.files[index : index + _SAMPLE], *manifest.files[:index])[:_SAMPLE]
                    verdict.files = (one.directory, *(one.directory / other.path for other in sample))
                    verdict.looked = tuple(map(signature, verdict.files))
                    return verdict
        return _Verdict(one, "", "", found_in, now)

    def _check_digest(self, directory: Path, entry: FileEntry) -> None:
        if time.monotonic() > self._deadline:
            raise NotRead
        check_digest(directory, entry, self._digests(directory / entry.path, self._deadline))


def in_order(store: Store, listed: Iterable[Listed], dataset: str) -> list[tuple[Listed, Heading]]:
    """Return the versions of `dataset` whose manifests can be read, the oldest first by the ledger, which gives each new one its number.

    Of several that the ledger sees at once those are older whose names come first.
    """
    from airflow_mlops.ledger.datasets import see  # a database's client, which a DAG file that names the trigger need not import

    mine = [(one, one.heading) for one in listed if one.heading and one.heading.dataset == dataset and not one.problem]
    numbers = see(store, dataset, (heading.digest for _, heading in mine))
    return sorted(mine, key=lambda one: numbers[one[1].digest])


def _read_heading(path: Path) -> tuple[Heading | None, str]:
    try:
        manifest = read_manifest(path.parent)
    except ManifestInvalid as error:
        return None, shown(str(error), MAX_PROBLEM)
    return Heading(manifest.dataset, manifest.digest, sum(entry.size for entry in manifest.files)), ""


def _broken(one: Listed, why: Exception | str, found_in: dict[Path, Signature | None], now: float) -> _Verdict:
    problem = _unreadable(one.directory, why) if isinstance(why, OSError) else shown(str(why), MAX_PROBLEM)
    key = f"broken:{_short(os.fsencode(one.directory.name))}:{_state(one.directory / MANIFEST_NAME)}"
    return _Verdict(one, problem, key, found_in, now, passing=isinstance(why, OSError), since=now)


def _unreadable(directory: Path, error: OSError) -> str:
    return shown(f"{directory} cannot be read ({error}). Correct its permissions.", MAX_PROBLEM)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()  # a link to a version's directory is reported as broken
    except OSError:  # one that leads round in circles, or where we may not look
        return False


def _state(manifest: Path) -> str:
    """Return what tells a broken manifest from one that may replace it."""
    try:
        return _short(read_regular(manifest, MAX_BYTES))
    except ManifestInvalid:
        return "no file that could be one"
    except OSError:
        return "unreadable"


def _short(data: bytes) -> str:
    return bytes_digest(data).removeprefix("sha256:")[:40]
