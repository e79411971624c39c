"""The audit trail: who did what, when and why, in events that are only ever added, each naming the hash of the one before it.

An event is one line of JSON, kept and exported as the same bytes. It begins with ``{"previous":"<64 hex digits>"``, the SHA-256 of the line
before it with its line feed (zeros for the first one), so that a line cannot be altered, removed or inserted without breaking the next.
Who can write the database can still cut off the end or write everything anew, hashes included: that shows only against an anchor, the
number and hash of an event that was noted elsewhere (`Head`; after Haber and Stornetta, 1991).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

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
    """What happened to `subject` (``model`` or ``model@version``), by whom, and everything that explains it.

    `rows` are the rows of the ledger's tables that it states, as they are since then (`airflow_mlops.ledger.rows`); `scope` is what they are
    found by.
    """

    kind: str
    subject: str
    actor: str
    details: Mapping[str, Any]
    number: int = 0
    at: str = ""
    scope: str | None = None
    rows: tuple[Mapping[str, Any], ...] = ()


class Reader(Protocol):
    """Follows the trail while it is read, some events at a time, and with the last of them sees the database as it is at that moment."""

    def see(self, events: Sequence[Event], end: sa.Connection | None) -> None: ...


def append(connection: sa.Connection, event: Event) -> Head:
    """Add `event` in the caller's transaction, as its last statement: what it tells of and the event are there together or not at all."""
    hold(connection)
    last = _head(connection)
    body = {"actor": event.actor, "at": now().isoformat(), "details": dict(event.details), "kind": event.kind, "number": last.number + 1}
    stated = {"rows": list(event.rows), "scope": event.scope} if event.rows else {}
    line = f'{_BEGIN.decode()}{last.hash}",' + canonical_json({**body, **stated, "subject": event.subject})[1:].decode()
    row = {"number": last.number + 1, "kind": event.kind, "subject": event.subject, "scope": event.scope, "line": line}
    connection.execute(AUDIT_EVENTS.insert().values(**row))
    return Head(last.number + 1, _hash(line))


def hold(connection: sa.Connection) -> None:
    """Lock the trail against other writers until the end of the transaction."""
    if connection.dialect.name == "postgresql":  # SQLite's transaction has the only write lock already
        # Not LOCK TABLE: that would wait for a VACUUM, and needs the right to alter events, which no user should have.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


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
        return [parsed(line) for line in connection.scalars(query)]


def lines(store: Store, reader: Reader | None = None) -> Iterator[bytes]:
    """Yield the trail as it is exported, a line at a time; raise `AuditTrailBroken` where a row is missing or says something else than its line."""
    table, number = AUDIT_EVENTS.c, 0
    while True:
        query = sa.select(AUDIT_EVENTS).where(table.number > number).order_by(table.number).limit(_ROWS_AT_ONCE)
        with store.transaction() as connection:
            if reader is not None:
                hold(connection)
            events = [_whole(row, expected) for expected, row in enumerate(connection.execute(query), number + 1)]
            at_end = len(events) < _ROWS_AT_ONCE
            if reader is not None:
                reader.see([event for event, _ in events], connection if at_end else None)
        yield from (line.encode() + b"\n" for _, line in events)
        number += len(events)
        if at_end:
            return


def stating(connection: sa.Connection, scope: str) -> list[Event]:
    """Return the events that state rows of `scope`, oldest first; raise `AuditTrailBroken` where one is not as the event after it says."""
    following = AUDIT_EVENTS.alias()
    query = sa.select(AUDIT_EVENTS, following.c.line.label("following")).outerjoin(following, following.c.number == AUDIT_EVENTS.c.number + 1)
    found = []
    for row in connection.execute(query.where(AUDIT_EVENTS.c.scope == scope).order_by(AUDIT_EVENTS.c.number)):
        found.append(_whole(row, row.number)[0])
        if row.following is not None and not row.following.startswith(f'{_BEGIN.decode()}{_hash(row.line)}"'):
            raise AuditTrailBroken(f"Event {row.number} was altered, or event {row.number + 1}: they do not fit together. {_ADVICE}")
    return found


def num_last(connection: sa.Connection, scope: str) -> int:
    """Return the number of the last event that states rows of `scope`, 0 if none does."""
    return connection.scalar(sa.select(sa.func.max(AUDIT_EVENTS.c.number)).where(AUDIT_EVENTS.c.scope == scope)) or 0


def at(connection: sa.Connection, number: int) -> Event:
    """Return one event."""
    return parsed(connection.execute(sa.select(AUDIT_EVENTS.c.line).where(AUDIT_EVENTS.c.number == number)).scalar_one())


def _whole(row: sa.Row[Any], number: int) -> tuple[Event, str]:
    """Return the event in a row and its line; raise `AuditTrailBroken` if the row says something else than its line, or is not event `number`."""
    event = parsed(row.line)
    if not row.number == event.number == number or (row.kind, row.subject, row.scope) != (event.kind, event.subject, event.scope):
        raise AuditTrailBroken(f"Row {row.number} of the ledger's table audit_events is in the place of event {number}. {_ADVICE}")
    return event, row.line


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


def parsed(line: str) -> Event:
    """Return the event of a line of the trail; raise `AuditTrailBroken` if it is none."""
    try:
        data = json.loads(line)
        stated = data.get("scope"), tuple(data.get("rows", ()))
        return Event(data["kind"], data["subject"], data["actor"], data["details"], data["number"], data["at"], *stated)
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
