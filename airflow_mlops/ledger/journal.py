"""The journal of effects: what was asked of the outside (promote, switch, notify), and what came of it.

An effect is written down before it is applied ("asked"), again with its result afterwards ("applied"), and where that can be seen, once more
when it was ("read back"). A crash in between leaves it
asked; whoever retries applies it again, so an effect must look first whether what it wants is already so, or be bearable twice (a message).
Two callers with the same intent at the same moment both apply it: let one of them run at a time.

What a watcher of the outside saw last is kept here, too, in one row that is replaced (`remember`), so that its next look tells only what is new.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from airflow_mlops.artifacts import canonical_json
from airflow_mlops.exceptions import LedgerError
from airflow_mlops.ledger import chain
from airflow_mlops.ledger.chain import Event
from airflow_mlops.ledger.store import Store, insert_new, now
from airflow_mlops.ledger.tables import EFFECTS


def once(
    store: Store, key: str, kind: str, request: Mapping[str, Any], effect: Callable[[], Mapping[str, Any]], *, event: Event | None = None
) -> dict[str, Any]:
    """Apply `effect` unless the intent `key` was applied before; return its JSON result, remembered or new.

    :param key: the intent, for instance ``promote:digits:7:<run id>``. The same key with another `request` is refused.
    :param event: of the audit trail; it is written with the result, once.
    :raises LedgerError: `key` was used for another request.
    """
    applied = _ask(store, key, kind, _as_json(request))
    if applied is not None:
        return applied
    result = _as_json(effect())
    with store.transaction() as connection:
        unfinished = EFFECTS.update().where(EFFECTS.c.key == key, EFFECTS.c.applied_at.is_(None))
        if connection.execute(unfinished.values(result=result, applied_at=now())).rowcount and event is not None:
            chain.append(connection, event)
    return result


def read_back(store: Store, key: str, look: Callable[[], object]) -> None:
    """Note that what the intent `key` applied is in place, after `look`, which raises if it is not."""
    look()
    with store.transaction() as connection:
        connection.execute(EFFECTS.update().where(EFFECTS.c.key == key, EFFECTS.c.read_back_at.is_(None)).values(read_back_at=now()))


def known(store: Store, key: str) -> dict[str, Any] | None:
    """Return the result of the intent `key` if it was applied, else None."""
    with store.transaction() as connection:
        result: dict[str, Any] | None = connection.scalar(sa.select(EFFECTS.c.result).where(EFFECTS.c.key == key))
    return result


def asked(store: Store, key: str) -> bool:
    """Return whether the intent `key` was written down, applied or not."""
    with store.transaction() as connection:
        return connection.scalar(sa.select(EFFECTS.c.key).where(EFFECTS.c.key == key)) is not None


def remember(store: Store, key: str, kind: str, seen: Mapping[str, Any]) -> None:
    """Keep `seen` as what the watcher `key` saw last, in place of what it saw before; `known` returns it."""
    with store.transaction() as connection:
        insert_new(connection, EFFECTS, {"key": key, "kind": kind, "request": {}, "asked_at": now()})
        connection.execute(EFFECTS.update().where(EFFECTS.c.key == key).values(result=_as_json(seen), applied_at=now()))


def _ask(store: Store, key: str, kind: str, request: dict[str, Any]) -> dict[str, Any] | None:
    with store.transaction() as connection:
        if insert_new(connection, EFFECTS, {"key": key, "kind": kind, "request": request, "asked_at": now()}):
            return None
        row = connection.execute(sa.select(EFFECTS.c.kind, EFFECTS.c.request, EFFECTS.c.result).where(EFFECTS.c.key == key)).one()
    if (row.kind, row.request) != (kind, request):
        raise LedgerError(
            f"The intent {key!r} was already used for {row.kind} {row.request}, and is now asked for {kind} {request}. "
            "One intent is one request: start a new run instead of changing the old one."
        )
    result: dict[str, Any] | None = row.result
    return result


def _as_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return `data` as it will be read back, so that a first call and a repeated one compare and return the same."""
    plain: dict[str, Any] = json.loads(canonical_json(dict(data)))
    return plain
