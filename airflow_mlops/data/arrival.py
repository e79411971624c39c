"""What has arrived: a scan that looks, and a decider without IO that says which versions to announce.

A version is announced under its key: the digest when complete; for a broken one a key of its own, so that a repaired version is still
announced as complete. The keys announced so far live in a ledger that the caller reads and writes. A scan reads manifests first and examines
the files only of the versions that the caller wants: what was announced, or is taken, costs one look at its manifest's times.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from airflow_mlops.artifacts import file_digest
from airflow_mlops.data.snapshot import MANIFEST_NAME, Digester, open_version, read_manifest
from airflow_mlops.exceptions import DatasetNotFound, ManifestInvalid, ManifestMismatch, SpecError
from airflow_mlops.results import DatasetVersion

T = TypeVar("T")
MAX_CACHED_FILES = 100_000


@dataclass(frozen=True)
class ArrivalPolicy:
    """When a version that does not match its manifest counts as broken, and how long a version waits for the one before it.

    * `settle_seconds`: time without any change in its directory; 600 s outlasts a stalled upload and still tells somebody the same hour.
    * `hold_seconds`: a complete version is announced only after a run has taken the one announced before it, because Airflow joins events
      that arrive while a run is queued into one run, and each version shall have its own. After 6 hours it no longer waits: by then the
      pipeline is paused or failed before it took the version.
    """

    settle_seconds: float = 600.0
    hold_seconds: float = 6 * 3600.0

    def __post_init__(self) -> None:
        for name in ("settle_seconds", "hold_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SpecError(f"{name} is {getattr(self, name)}: expected a finite number of seconds, 0 or more.")


@dataclass(frozen=True)
class Candidate:
    """A directory with a manifest as one scan saw it: `version` if complete, else `problem`.

    `changed_at` (epoch seconds) is when a complete version's manifest was written, and when anything in a directory with a problem last changed.
    """

    name: str
    key: str
    version: DatasetVersion | None = None
    problem: str | None = None
    changed_at: float = 0.0


@dataclass(frozen=True)
class Observation:
    """What the decider decides on: the candidates of one scan, the keys announced so far, and since when (epoch seconds) an announced version
    waits for a run to take it, if one does."""

    candidates: tuple[Candidate, ...]
    announced: frozenset[str] = frozenset()
    waiting_since: float | None = None


@dataclass(frozen=True)
class AnnounceComplete:
    """Start a run for `version`, then remember `key`."""

    key: str
    version: DatasetVersion


@dataclass(frozen=True)
class AnnounceBroken:
    """Tell somebody that the version called `name` is unusable and why, then remember `key`."""

    key: str
    name: str
    reason: str


Announcement = AnnounceComplete | AnnounceBroken


def decide(observation: Observation, now: float, policy: ArrivalPolicy) -> tuple[Announcement, ...]:
    """Return what to announce at `now` (epoch seconds), oldest first: every broken version, and at most one complete one."""
    done = set(observation.announced)
    held = observation.waiting_since is not None and now - observation.waiting_since < policy.hold_seconds
    actions: list[Announcement] = []
    for candidate in sorted(observation.candidates, key=lambda candidate: (candidate.changed_at, candidate.name)):
        action = _action(candidate, done, now, policy)
        if action is None or (held and isinstance(action, AnnounceComplete)):
            continue
        held = held or isinstance(action, AnnounceComplete)
        actions.append(action)
        done.add(action.key)
    return tuple(actions)


def _action(candidate: Candidate, done: Set[str], now: float, policy: ArrivalPolicy) -> Announcement | None:
    if candidate.key in done:
        return None
    if candidate.version is not None:
        return AnnounceComplete(candidate.key, candidate.version)
    if now - candidate.changed_at < policy.settle_seconds:
        return None
    return AnnounceBroken(candidate.key, candidate.name, candidate.problem or "unknown problem")


class Heading(NamedTuple):
    """What a manifest says of its version, whose files nobody has looked at yet."""

    dataset: str
    digest: str


def heading(path: Path) -> Heading:
    """Return the heading of the manifest at `path`; raise what `read_manifest` raises."""
    manifest = read_manifest(path.parent)
    return Heading(manifest.dataset, manifest.digest)


class StatCache(Generic[T]):
    """What `read` says of a file, asked again only when the file's size, times or inode changed.

    A file touched less than `racy_seconds` ago is always read: a second write within one tick of the clock would leave its times as they are.
    """

    def __init__(self, read: Callable[[Path], T], *, racy_seconds: float = 2.0) -> None:
        self._read = read
        self._racy_seconds = racy_seconds
        self._cached = functools.lru_cache(maxsize=MAX_CACHED_FILES)(lambda path, signature: read(path))

    def __call__(self, path: Path) -> T:
        found = path.lstat()  # of a link that leads nowhere `read` shall say what is wrong
        if time.time() - max(found.st_mtime, found.st_ctime) < self._racy_seconds:
            return self._read(path)
        return self._cached(path, (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino))


class DigestCache(StatCache[str]):
    """A `Digester` that hashes only what changed; a poll over an unchanged inbox reads no data."""

    def __init__(self, hash_file: Digester = file_digest, *, racy_seconds: float = 2.0) -> None:
        super().__init__(hash_file, racy_seconds=racy_seconds)


class HeadingCache(StatCache[Heading]):
    """A `heading` that reads only manifests that changed."""

    def __init__(self, read: Callable[[Path], Heading] = heading, *, racy_seconds: float = 2.0) -> None:
        super().__init__(read, racy_seconds=racy_seconds)


def scan(
    inbox: Path,
    *,
    wanted: Callable[[Heading], bool] | None = None,
    digest_of: Digester = file_digest,
    heading_of: Callable[[Path], Heading] = heading,
) -> list[Candidate]:
    """Return all `candidates` of `inbox`, the oldest manifest first.

    Pass one `DigestCache` as `digest_of` and one `HeadingCache` as `heading_of` to all polls of a loop.
    """
    return list(candidates(inbox, wanted=wanted, digest_of=digest_of, heading_of=heading_of))


def candidates(
    inbox: Path,
    *,
    wanted: Callable[[Heading], bool] | None = None,
    newest_first: bool = False,
    digest_of: Digester = file_digest,
    heading_of: Callable[[Path], Heading] = heading,
) -> Iterator[Candidate]:
    """Yield every directory of `inbox` that has a manifest, complete or not, in the order of the manifests' times.

    Hidden directories (staging areas) and directories without a manifest are still being written and are no candidates. The files of a
    version are examined only when it is asked for, and only if `wanted`. A manifest that can not be read is a candidate with a problem.

    :raises DatasetNotFound: the inbox is not there, or can not be listed now.
    """
    try:
        directories = [path for path in inbox.iterdir() if not path.name.startswith(".") and path.is_dir()]
    except OSError as error:
        raise DatasetNotFound(
            f"The inbox {inbox} does not exist or can not be listed ({error.strerror}): expected a directory. "
            "Create it, or mount it where the arrival check runs."
        ) from error
    published = [(at, path) for path in directories if (at := _published_at(path)) is not None]
    for _, directory in sorted(published, reverse=newest_first):
        if candidate := _candidate(directory, wanted, digest_of, heading_of):
            yield candidate


def _candidate(
    directory: Path, wanted: Callable[[Heading], bool] | None, digest_of: Digester, heading_of: Callable[[Path], Heading]
) -> Candidate | None:
    try:
        if wanted is not None and not wanted(heading_of(directory / MANIFEST_NAME)):
            return None
        version = open_version(directory, digest_of=digest_of)
        if wanted is not None and not wanted(Heading(version.dataset, version.digest)):  # rewritten while we looked
            return None
        return Candidate(directory.name, version.digest, version, changed_at=_changed_at(directory / MANIFEST_NAME))
    except (DatasetNotFound, FileNotFoundError):  # removed while we looked
        return None
    except (ManifestInvalid, ManifestMismatch, OSError) as error:
        problem = str(error) if not isinstance(error, OSError) else f"{directory} can not be read ({error}). Correct its permissions."
        return _broken(directory, problem)


def _broken(directory: Path, problem: str) -> Candidate | None:
    path = directory / MANIFEST_NAME
    try:
        manifest = file_digest(path) if path.is_file() else "no file"  # a named pipe would be waited for
        changed_at = _changed_at(directory, *directory.rglob("*"))
    except FileNotFoundError:  # removed while we looked
        return None
    except OSError:  # not ours to read
        manifest, changed_at = "unreadable", _changed_at(directory)
    return Candidate(directory.name, f"broken:{directory.name}:{manifest}", problem=problem, changed_at=changed_at)


def _changed_at(*paths: Path) -> float:
    # The inode change time counts too: a copy that preserves old modification times (rsync -a) is still a change of now.
    return max(max(found.st_mtime, found.st_ctime) for found in (path.lstat() for path in paths))


def _published_at(directory: Path) -> float | None:
    try:
        return _changed_at(directory / MANIFEST_NAME)
    except FileNotFoundError:  # still being written
        return None
    except OSError:  # not ours to read, which `_candidate` says with its reason
        return 0.0
