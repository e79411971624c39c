"""The journal of effects: what was asked of the outside (promote, switch, notify), and what came of it.

An effect is written down before it is applied ("asked"), again with its result afterwards ("applied"), and where that can be seen, once more
when it was ("read back"). A crash in between leaves it
asked; whoever retries applies it again, so an effect must look first whether what it wants is already so, or be bearable twice (a message).
An effect that fails is closed with its problem until it is tried again, so that what stays open has lost its process (`open_effects`).
Two callers with the same intent at the same moment both apply it: let one of them run at a time.

What a watcher of the outside saw last is kept here, too, in one row that is replaced (`remember`), so that its next look tells only what is new.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from airflow_mlops.artifacts import canonical_json
from airflow_mlops.exceptions import LedgerError
from airflow_mlops.ledger import rows
from airflow_mlops.ledger.chain import Event
from airflow_mlops.ledger.store import Store, insert_new, now
from airflow_mlops.ledger.tables import EFFECTS


def once(
    store: Store,
    key: str,
    kind: str,
    request: Mapping[str, Any],
    effect: Callable[[], Mapping[str, Any]],
    *,
    event: Event | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Apply `effect` unless the intent `key` was applied before; return its JSON result, remembered or new.

    :param key: the intent, for instance ``promote:digits:7:<run id>``. The same key with another `request` is refused.
    :param event: of the audit trail; it is written with the result, once.
    :param again: apply it although it was applied before, where a memory is no proof that it is still so; the first result is kept.
    :raises LedgerError: `key` was used for another request.
    :raises LedgerAltered: its row is not what the audit trail says.
    """
    applied = _ask(store, key, kind, _as_json(request), again)
    if applied is not None:
        return applied
    try:
        result = _as_json(effect())
    except BaseException as error:
        _close(store, key, error)
        raise
    done = event or Event("effect applied", _subject(key), "", {})
    _set(store, key, done, EFFECTS.c.applied_at.is_(None), result=result, applied_at=now(), problem=None)
    return result


def read_back(store: Store, key: str, look: Callable[[], object]) -> None:
    """Note that what the intent `key` applied is in place, after `look`, which raises if it is not."""
    look()
    _set(store, key, Event("effect seen", _subject(key), "", {}), EFFECTS.c.read_back_at.is_(None), read_back_at=now())


def known(store: Store, key: str) -> dict[str, Any] | None:
    """Return the result of the intent `key` if it was applied, else None; raise `LedgerAltered` if that is not what the audit trail says."""
    row = _row(store, key)
    return row["result"] if row else None


def asked(store: Store, key: str) -> bool:
    """Return whether the intent `key` was written down, applied or not."""
    return _row(store, key) is not None


def remember(store: Store, key: str, kind: str, seen: Mapping[str, Any]) -> None:
    """Keep `seen` as what the watcher `key` saw last, in place of what it saw before; `known` returns it."""
    with store.transaction() as connection:
        if not rows.proven(connection, EFFECTS, key=key):
            insert_new(connection, EFFECTS, {"key": key, "kind": kind, "request": {}, "asked_at": now()})
        connection.execute(EFFECTS.update().where(EFFECTS.c.key == key).values(result=_as_json(seen), applied_at=now()))
        rows.state(connection, Event("remembered", _subject(key), "", {}), (EFFECTS, {"key": key}))


def open_effects(store: Store, before: datetime) -> list[str]:
    """Return the keys of the effects that were asked for before a time, the oldest first, and neither applied nor closed since."""
    unfinished = (EFFECTS.c.applied_at.is_(None), EFFECTS.c.problem.is_(None), EFFECTS.c.asked_at < before)
    with store.transaction() as connection:
        return list(connection.scalars(sa.select(EFFECTS.c.key).where(*unfinished).order_by(EFFECTS.c.asked_at, EFFECTS.c.key)))


def _ask(store: Store, key: str, kind: str, request: dict[str, Any], again: bool) -> dict[str, Any] | None:
    """Write down that the effect is asked for; return its result if it was applied before and is not to be applied again."""
    with store.transaction() as connection:
        new = {"key": key, "kind": kind, "request": request, "asked_at": now()}
        # Looked at first, for a row that was taken away by hand must not be written again; and again, for another one may have been faster.
        found = rows.proven(connection, EFFECTS, key=key) or (not insert_new(connection, EFFECTS, new) and rows.proven(connection, EFFECTS, key=key))
        if found:
            _check(found[0], kind, request)
            result: dict[str, Any] | None = found[0]["result"]
            if result is not None:
                return None if again else result
            connection.execute(EFFECTS.update().where(EFFECTS.c.key == key).values(asked_at=now(), problem=None))
        rows.state(connection, Event("effect asked", _subject(key), "", {}), (EFFECTS, {"key": key}))
    return None


def _check(row: Mapping[str, Any], kind: str, request: dict[str, Any]) -> None:
    if (row["kind"], row["request"]) != (kind, request):
        raise LedgerError(
            f"The intent {row['key']!r} was already used for {row['kind']} {row['request']}, and is now asked for {kind} {request}. "
            "One intent is one request: start a new run instead of changing the old one."
        )


def _close(store: Store, key: str, error: BaseException) -> None:
    """Note why the effect was not applied; if that fails, say so in `error`, which matters more."""
    problem = f"{type(error).__name__}: {error}".replace("\0", "\\0")
    failed = Event("effect failed", _subject(key), "", {"problem": problem})
    try:
        _set(store, key, failed, EFFECTS.c.applied_at.is_(None), problem=problem)
    except LedgerError as second:
        error.add_note(f"The journal could not note that {key!r} failed: {second}")


def _set(store: Store, key: str, event: Event, condition: sa.ColumnElement[bool], **values: Any) -> None:
    """Change the row of `key` where `condition` holds, with `event` about it."""
    with store.transaction() as connection:
        rows.proven(connection, EFFECTS, key=key)
        if connection.execute(EFFECTS.update().where(EFFECTS.c.key == key, condition).values(**values)).rowcount:
            rows.state(connection, event, (EFFECTS, {"key": key}))


def _row(store: Store, key: str) -> dict[str, Any] | None:
    with store.transaction() as connection:
        found = rows.proven(connection, EFFECTS, key=key)
    return found[0] if found else None


def _subject(key: str) -> str:
    return f"effect {key}"[:300]


def _as_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return `data` as it will be read back, so that a first call and a repeated one compare and return the same."""
    plain: dict[str, Any] = json.loads(canonical_json(dict(data)))
    return plain
