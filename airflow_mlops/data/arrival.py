"""What has arrived: a decider without IO that says which versions to announce, and when to offer one again.

A version is announced under its key: the digest when complete; for a broken one a key of its own, so that a repaired version is still
announced as complete. What was announced, in which order versions were first seen, and which of them no run has taken is the ledger's to say
(`airflow_mlops.ledger.datasets`); what lies in the inbox says `airflow_mlops.data.inbox`. No time of a file decides anything.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from airflow_mlops.exceptions import SpecError
from airflow_mlops.results import DatasetVersion


@dataclass(frozen=True)
class ArrivalPolicy:
    """When a version that does not match its manifest counts as broken, and how long a version waits for the one before it.

    * `settle_seconds`: time without any change of what is wrong with it; 600 s outlasts a stalled upload and still reports it within the hour.
    * `hold_seconds`: a complete version is announced only after the run of the one announced before it has begun, because Airflow joins events
      that arrive while a run is queued into one run, or drops them, and each version shall have its own. After 6 hours it no longer waits: by
      then the pipeline is paused or fails before it takes the version.
    * `offer_again_seconds`: an announced version whose run has not begun is offered again after 15 minutes, and then after waiting as long as it
      has waited already: Airflow may have dropped its event, and an event too many costs nothing while a run is queued.
    """

    settle_seconds: float = 600.0
    hold_seconds: float = 6 * 3600.0
    offer_again_seconds: float = 900.0

    def __post_init__(self) -> None:
        for name in ("settle_seconds", "hold_seconds", "offer_again_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SpecError(f"{name} is {getattr(self, name)}: expected a finite number of seconds, 0 or more.")


@dataclass(frozen=True)
class Candidate:
    """A directory with a manifest as one look saw it: `version` if complete, else `problem`, which has been the same since `since` (epoch s)."""

    name: str
    key: str
    version: DatasetVersion | None = None
    problem: str | None = None
    since: float = 0.0


class Untaken(NamedTuple):
    """The announced `version`, whose run has not begun: announced at `since` and offered last at `offered_at`, both epoch seconds."""

    version: DatasetVersion
    since: float
    offered_at: float


@dataclass(frozen=True)
class Observation:
    """What the decider decides on: the candidates of one look, the keys announced so far, the number of each digest in the order of the ledger,
    the announced versions that no run has taken, the oldest first, and whether Airflow has yet to store an event."""

    candidates: tuple[Candidate, ...]
    announced: frozenset[str] = frozenset()
    order: Mapping[str, int] = field(default_factory=dict)
    untaken: tuple[Untaken, ...] = ()
    pending: bool = False


@dataclass(frozen=True)
class AnnounceComplete:
    """Start a run for `version`, then remember `key`; `again` if that was done before, and no run came of it."""

    key: str
    version: DatasetVersion
    again: bool = False


@dataclass(frozen=True)
class AnnounceBroken:
    """Tell somebody that the version called `name` is unusable and why, then remember `key`."""

    key: str
    name: str
    reason: str


Announcement = AnnounceComplete | AnnounceBroken


def decide(observation: Observation, now: float, policy: ArrivalPolicy) -> tuple[Announcement, ...]:
    """Return what to announce at `now` (epoch seconds): every broken version, and at most one complete one."""
    complete = None if observation.pending else _again(observation, now, policy) or _next(observation, now, policy)
    return (*_broken(observation, now, policy), *([complete] if complete else []))


def natural(name: str) -> tuple[list[str | int], str]:
    """Return the key by which names are sorted as people sort them: ``v9`` before ``v10``."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", name))], name


def _broken(observation: Observation, now: float, policy: ArrivalPolicy) -> Iterator[AnnounceBroken]:
    for candidate in observation.candidates:
        if candidate.problem and candidate.key not in observation.announced and now - candidate.since >= policy.settle_seconds:
            yield AnnounceBroken(candidate.key, candidate.name, candidate.problem)


def _again(observation: Observation, now: float, policy: ArrivalPolicy) -> AnnounceComplete | None:
    for version, since, offered_at in sorted(observation.untaken, key=lambda untaken: untaken.offered_at):
        if _waited(offered_at, now) >= max(policy.offer_again_seconds, offered_at - since):
            return AnnounceComplete(version.digest, version, again=True)
    return None


def _next(observation: Observation, now: float, policy: ArrivalPolicy) -> AnnounceComplete | None:
    if any(_waited(untaken.since, now) < policy.hold_seconds for untaken in observation.untaken):
        return None
    new = [candidate for candidate in observation.candidates if candidate.version and candidate.key not in observation.announced]
    for candidate in sorted(new, key=lambda new: (observation.order.get(new.key, sys.maxsize), natural(new.name))):
        if candidate.version:
            return AnnounceComplete(candidate.key, candidate.version)
    return None


def _waited(since: float, now: float) -> float:
    """Return the seconds from `since` to `now`; a time in the future is of a wrong clock, and delays nothing for longer than its error."""
    return abs(now - since)
