"""What auditors ask the trail: is it whole, what served when, and why did this version go live."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from airflow_mlops.exceptions import LedgerError, SpecError
from airflow_mlops.ledger import chain
from airflow_mlops.ledger.chain import Event, Head
from airflow_mlops.ledger.champions import CHAMPION_KINDS
from airflow_mlops.ledger.store import Store

SERVED = "served"
_ANCHOR = re.compile(r"\b\d+:[0-9a-f]{64}\b")


@dataclass(frozen=True)
class Served:
    """The event since which a version serves, and the one that ended it (None: it still does)."""

    since: Event
    until: Event | None


def export(store: Store, path: Path) -> Head:
    """Write the whole trail to `path`, one JSON document a line, and return its head, which belongs somewhere else as an anchor.

    :raises AuditTrailBroken: the trail in the ledger is not whole; what came before that place is in the file.
    :raises SpecError: the file cannot be written.
    """
    try:
        with path.open("wb") as stream:
            for line in chain.lines(store):
                stream.write(line)
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror}. Name a file in a directory that is there and has room.") from error
    return verify_file(path, ())


def verify_file(path: Path, anchors: Iterable[Head]) -> Head:
    """Return the head of an exported trail; raise `AuditTrailBroken` at the first place that is not as it was written."""
    try:
        with path.open("rb") as trail:
            return chain.verify(trail, anchors)
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}. Give the file that 'airflow-mlops audit export' wrote.") from error


def anchors_in(path: Path) -> list[Head]:
    """Return every anchor, ``NUMBER:HASH``, in a text: exported Slack messages, the outbox, notes; raise `SpecError` where there is none."""
    try:
        found = _ANCHOR.findall(path.read_text(errors="replace"))
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}. Give a text that holds anchors.") from error
    if not found:
        raise SpecError(f"{path} holds no anchor; expected NUMBER:HASH with 64 hex digits somewhere in it.")
    return [Head.parse(text) for text in found]


def who_served(store: Store, model: str, at: datetime) -> Served:
    """Return which version of `model` served at a time with its zone.

    What the rollouts saw served decides; before the first rollout that the trail knows of, who was champion.

    :raises LedgerError: the trail knows of none at that time.
    """
    if at.tzinfo is None:
        raise SpecError(f"The time {at.isoformat()} has no zone; expected for instance {at.isoformat()}+00:00 for UTC.")
    events = chain.events(store, model=model, kinds=[SERVED, *CHAMPION_KINDS])
    rollouts = [event for event in events if event.kind == SERVED]
    line = rollouts if rollouts and datetime.fromisoformat(rollouts[0].at) <= at else [event for event in events if event.kind != SERVED]
    before = [event for event in line if datetime.fromisoformat(event.at) <= at]
    if not before:
        first = f"; the first is {line[0].subject} at {line[0].at}" if line else ""
        raise LedgerError(f"The trail knows of no version of {model!r} that served at {at.isoformat()}{first}. Check the name and the time.")
    since = before[-1]
    after = line[len(before) :]
    return Served(since, next((event for event in after if event.subject != since.subject), None))


def why(store: Store, model: str, version: int) -> list[Event]:
    """Return everything the trail says of one version, oldest first; raise `LedgerError` if that is nothing."""
    subject = f"{model}@{version}"
    found = [event for event in chain.events(store, model=subject) if event.subject == subject]
    if not found:
        raise LedgerError(f"The trail says nothing of {subject}: it was never offered, promoted or served here. Check the name and the version.")
    return found
