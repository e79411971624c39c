"""Messages to people: each is written down before it is sent, so that one that could not be delivered is delivered later, in order.

The messages of one channel form a queue. Whoever adds a message sends what waits before it, too; one process at a time sends to a channel, because
it leases the first message that waits. A sender that is killed between sending and noting it makes the next one send that message again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from airflow_mlops.ledger.store import Store, insert_new, now
from airflow_mlops.ledger.tables import MESSAGES

LEASE = timedelta(minutes=2)  # longer than one attempt with its retries takes


@dataclass(frozen=True)
class Waiting:
    """The first message of a channel that was not sent; `problem` says why an earlier attempt failed."""

    number: int
    message: Mapping[str, Any]
    asked_at: datetime
    problem: str | None


@dataclass(frozen=True)
class Message:
    """One message, for people to read: `sent_to` is None while it waits, `problem` says why; `dag_id` is whose run wrote it, None for a command."""

    text: str
    dag_id: str | None
    asked_at: datetime
    sent_to: str | None
    problem: str | None


@dataclass(frozen=True)
class Delivery:
    """What came of an attempt: where the message went, or the problem and the time before which no attempt makes sense."""

    sent_to: str | None
    problem: str | None = None
    not_before: datetime | None = None


def add(store: Store, key: str, messenger: str, channel: str, message: Mapping[str, Any]) -> bool:
    """Write a message down unless `key` was used before, and return whether it is new."""
    row = {"key": key, "messenger": messenger, "channel": channel, "message": dict(message), "asked_at": now()}
    with store.transaction() as connection:
        return insert_new(connection, MESSAGES, row)


def send(store: Store, messenger: str, channel: str, attempt: Callable[[Waiting], Delivery]) -> int:
    """Send what waits for a channel, the oldest first, until an attempt fails or another process is sending; return how many were sent."""
    sent = 0
    while (waiting := _lease(store, messenger, channel)) is not None:
        delivery = attempt(waiting)
        _note(store, waiting, delivery)
        if delivery.sent_to is None:
            break
        sent += 1
    return sent


def waiting(store: Store) -> dict[tuple[str, str], int]:
    """Return how many messages wait, by messenger and channel."""
    columns = (MESSAGES.c.messenger, MESSAGES.c.channel)
    with store.transaction() as connection:
        rows = connection.execute(sa.select(*columns, sa.func.count()).where(MESSAGES.c.sent_at.is_(None)).group_by(*columns).order_by(*columns))
        return {(messenger, channel): count for messenger, channel, count in rows}


def latest(store: Store, *, limit: int = 50) -> list[Message]:
    """Return the `limit` newest messages, the newest first."""
    with store.transaction() as connection:
        rows = connection.execute(sa.select(MESSAGES).order_by(MESSAGES.c.number.desc()).limit(limit)).all()
    return [Message(row.message["text"], row.message.get("dag_id"), row.asked_at, row.sent_to, row.problem) for row in rows]


def _lease(store: Store, messenger: str, channel: str) -> Waiting | None:
    at = now()
    unsent = (MESSAGES.c.messenger == messenger, MESSAGES.c.channel == channel, MESSAGES.c.sent_at.is_(None))
    with store.transaction() as connection:
        row = connection.execute(sa.select(MESSAGES).where(*unsent).order_by(MESSAGES.c.number).limit(1)).first()
        if row is None or (row.not_before is not None and row.not_before > at):
            return None
        same = MESSAGES.c.not_before.is_(None) if row.not_before is None else MESSAGES.c.not_before == row.not_before
        lease = MESSAGES.update().where(MESSAGES.c.number == row.number, MESSAGES.c.sent_at.is_(None), same).values(not_before=at + LEASE)
        if connection.execute(lease.returning(MESSAGES.c.number)).first() is None:  # another process was faster
            return None
        return Waiting(row.number, row.message, row.asked_at, row.problem)


def _note(store: Store, waiting: Waiting, delivery: Delivery) -> None:
    values: dict[str, Any] = {"problem": delivery.problem, "not_before": delivery.not_before}
    if delivery.sent_to is not None:
        values |= {"sent_at": now(), "sent_to": delivery.sent_to}
    with store.transaction() as connection:
        connection.execute(MESSAGES.update().where(MESSAGES.c.number == waiting.number).values(values))
