"""What has arrived: a scan that looks, and a decider without IO that says which versions to announce.

A version is announced once, under its key: the digest when complete; for a broken one a key of its own, so that a repaired version is still
announced as complete. The keys announced so far live in a ledger that the caller reads and writes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from airflow_mlops.artifacts import file_digest
from airflow_mlops.data.snapshot import MANIFEST_NAME, Digester, open_version
from airflow_mlops.exceptions import DatasetNotFound, ManifestInvalid, ManifestMismatch, SpecError
from airflow_mlops.results import DatasetVersion


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


class DigestCache:
    """A `Digester` that hashes a file again only when its size, times or inode changed; a poll over an unchanged inbox reads no data.

    A file touched less than `racy_seconds` ago is always hashed: a second write within one tick of the clock would leave its times as they are.
    """

    def __init__(self, hash_file: Digester = file_digest, *, max_files: int = 100_000, racy_seconds: float = 2.0) -> None:
        self._hash_file = hash_file
        self._racy_seconds = racy_seconds
        self._cached = functools.lru_cache(maxsize=max_files)(self._hash)

    def __call__(self, path: Path) -> str:
        found = path.stat()
        if time.time() - max(found.st_mtime, found.st_ctime) < self._racy_seconds:
            return self._hash_file(path)
        return self._cached(path, (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino))

    def _hash(self, path: Path, signature: tuple[int, ...]) -> str:
        return self._hash_file(path)


def scan(inbox: Path, *, digest_of: Digester = file_digest) -> list[Candidate]:
    """Return every directory of `inbox` that has a manifest, complete or not; raise `DatasetNotFound` without an inbox.

    Hidden directories (staging areas) and directories without a manifest are still being written and are no candidates. Pass one
    `DigestCache` as `digest_of` to all polls of a loop.
    """
    if not inbox.is_dir():
        raise DatasetNotFound(f"The inbox {inbox} does not exist: expected a directory. Create it, or mount it where the arrival check runs.")
    directories = sorted(path for path in inbox.iterdir() if not path.name.startswith(".") and path.is_dir())
    return [candidate for directory in directories if (candidate := _candidate(directory, digest_of))]


def _candidate(directory: Path, digest_of: Digester) -> Candidate | None:
    try:
        version = open_version(directory, digest_of=digest_of)
        return Candidate(directory.name, version.digest, version, changed_at=_changed_at(directory / MANIFEST_NAME))
    except DatasetNotFound:
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
