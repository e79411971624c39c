"""The audit trail: who did what, when and why, in events that are only ever added, each naming the hash of the one before it.

An event is one line of JSON, kept and exported as the same bytes. It begins with ``{"previous":"<64 hex digits>"``, the SHA-256 of the line
before it with its line feed (zeros for the first one), so that a line can not be altered, removed or inserted without breaking the next.
Who can write the database can still cut off the end or write everything anew, hashes included: that shows only against an anchor, the
number and hash of an event that was noted elsewhere (`Head`; after Haber and Stornetta, 1991).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import sqlalchemy as sa

from airflow_mlops.artifacts import canonical_json
from airflow_mlops.exceptions import AuditTrailBroken, SpecError
from airflow_mlops.ledger.store import Store, now
from airflow_mlops.ledger.tables import AUDIT_EVENTS

GENESIS = "0" * 64
_BEGIN = b'{"previous":"'
_ROWS_AT_ONCE = 10_000
_LOCK = 0x61756469742E  # any number that others do not use: "audit."


@dataclass(frozen=True)
class Head:
    """An event by its `number` (from 1; 0 is the empty trail) and `hash`: as an anchor it vouches for the trail up to there."""

    number: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> Head:
        """Return the head written as ``number:hash``; raise `SpecError` if it is not."""
        number, _, digest = text.strip().partition(":")
        if not (number.isdecimal() and len(digest) == 64 and set(digest) <= set("0123456789abcdef")):
            raise SpecError(f"{text!r} is no anchor; expected NUMBER:HASH with the 64 hex digits that 'airflow-mlops audit export' printed.")
        return cls(int(number), digest)

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


@dataclass(frozen=True)
class Event:
    """What happened to `subject` (``model`` or ``model@version``), by whom, and everything that explains it."""

    kind: str
    subject: str
    actor: str
    details: Mapping[str, Any]
    number: int = 0
    at: str = ""


def append(connection: sa.Connection, event: Event) -> Head:
    """Add `event` in the caller's transaction, as its last statement: what it tells of and the event are there together or not at all."""
    if connection.dialect.name == "postgresql":  # SQLite's transaction has the only write lock already
        # Not LOCK TABLE: that would wait for a VACUUM, and needs the right to alter events, which nobody should have.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    last = _head(connection)
    body = {"actor": event.actor, "at": now().isoformat(), "details": dict(event.details), "kind": event.kind, "number": last.number + 1}
    line = f'{_BEGIN.decode()}{last.hash}",' + canonical_json({**body, "subject": event.subject})[1:].decode()
    row = {"number": last.number + 1, "kind": event.kind, "subject": event.subject, "line": line}
    connection.execute(AUDIT_EVENTS.insert().values(**row))
    return Head(last.number + 1, _hash(line))


def head(store: Store) -> Head:
    """Return the last event's number and hash."""
    with store.transaction() as connection:
        return _head(connection)


def events(store: Store, *, model: str | None = None, kinds: Iterable[str] = ()) -> list[Event]:
    """Return the events of a model and all its versions, oldest first; of everything without `model`, of all kinds without `kinds`."""
    table = AUDIT_EVENTS.c
    query = sa.select(table.line).order_by(table.number)
    if model is not None:
        # Not LIKE, to which "Digits" and "digits" are the same on SQLite.
        query = query.where((table.subject == model) | (sa.func.substr(table.subject, 1, len(model) + 1) == f"{model}@"))
    if wanted := list(kinds):
        query = query.where(table.kind.in_(wanted))
    with store.transaction() as connection:
        return [_event(line) for line in connection.scalars(query)]


def lines(store: Store) -> Iterator[bytes]:
    """Yield the trail as it is exported, a line at a time; raise `AuditTrailBroken` where a row is missing or says something else than its line."""
    table, number = AUDIT_EVENTS.c, 0
    while True:
        query = sa.select(AUDIT_EVENTS).where(table.number > number).order_by(table.number).limit(_ROWS_AT_ONCE)
        with store.transaction() as connection:
            rows = connection.execute(query).all()
        for row in rows:
            number += 1
            event = _event(row.line)
            if (row.number, row.kind, row.subject) != (number, event.kind, event.subject) or event.number != number:
                raise AuditTrailBroken(f"Row {row.number} of the ledger's table audit_events stands where event {number} was written. {_ADVICE}")
            yield row.line.encode() + b"\n"
        if len(rows) < _ROWS_AT_ONCE:
            return


def verify(trail: Iterable[bytes], anchors: Iterable[Head] = ()) -> Head:
    """Return the head of a trail, the lines of an export; raise `AuditTrailBroken` naming the first place that is not as it was written.

    Without anchors a trail that was cut off at its end, or rewritten from some event on, looks whole.
    """
    remaining, vouched = iter(trail), 0
    digest, line = GENESIS, b""
    number = 0
    for anchor in sorted(set(anchors), key=lambda one: one.number):
        number, digest, line = _follow(remaining, number, digest, line, anchor.number - number)
        if number < anchor.number:
            raise AuditTrailBroken(f"The trail ends after event {number}; the anchor names event {anchor.number}. The end was cut off. {_ADVICE}")
        if digest != anchor.hash:
            raise AuditTrailBroken(
                f"Event {number} has the hash {digest}; the anchor says {anchor.hash}. One of the events {vouched + 1} to {number} was rewritten, "
                f"and those that follow it were chained anew. {_ADVICE}"
            )
        vouched = number
    number, digest, _ = _follow(remaining, number, digest, line, None)
    return Head(number, digest)


def _follow(trail: Iterator[bytes], number: int, digest: str, line: bytes, count: int | None) -> tuple[int, str, bytes]:
    """Go on from event `number` for `count` lines or to the end; return where that is, its hash and its line."""
    sha256, begin, end = hashlib.sha256, len(_BEGIN), len(_BEGIN) + 64
    previous = digest.encode()
    for following in islice(trail, count):
        if following[begin:end] != previous or following[:begin] != _BEGIN:
            raise AuditTrailBroken(_place(number, line, following, next(trail, b"")))
        number, line = number + 1, following
        previous = sha256(following).hexdigest().encode()
    if line[-1:] not in (b"", b"\n"):
        raise AuditTrailBroken(f"Event {number} has no end: the export was cut off. {_ADVICE}")
    return number, previous.decode(), line


def _place(number: int, line: bytes, following: bytes, after: bytes) -> str:
    """Say what does not fit: `following` came after `line`, event `number`, and does not name its hash."""
    found, expected = _number(following), number + 1
    if found is None:
        return f"Line {expected} is not an event any more. {_ADVICE}"
    if found > expected:
        return f"Events {expected} to {found - 1} are missing before line {expected}. {_ADVICE}"
    if found < expected:
        return f"Line {expected} says that it is event {found}: it was inserted, or lines changed places. {_ADVICE}"
    # The line that the next one still vouches for is as it was written; then the one before it is not.
    if line and after.startswith(_BEGIN + _hash_of(following)):
        return f"Event {number} was altered: event {expected} names another hash for it. {_ADVICE}"
    return f"Event {expected} was altered{f', or event {number}: they do not fit together' if number else ''}. {_ADVICE}"


_ADVICE = "Compare with an earlier export or a backup of the ledger, and find out who could write there."


def _number(line: bytes) -> int | None:
    try:
        number = json.loads(line)["number"]
    except (ValueError, KeyError, TypeError):
        return None
    return number if isinstance(number, int) else None


def _event(line: str) -> Event:
    try:
        data = json.loads(line)
        return Event(data["kind"], data["subject"], data["actor"], data["details"], data["number"], data["at"])
    except (ValueError, KeyError, TypeError) as error:
        raise AuditTrailBroken(f"The ledger holds something that is no event: {line[:80]!r}. {_ADVICE}") from error


def _head(connection: sa.Connection) -> Head:
    table = AUDIT_EVENTS.c
    last = connection.execute(sa.select(table.number, table.line).order_by(table.number.desc()).limit(1)).first()
    return Head(last.number, _hash(last.line)) if last else Head(0, GENESIS)


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode() + b"\n").hexdigest()


def _hash_of(line: bytes) -> bytes:
    return hashlib.sha256(line).hexdigest().encode()
