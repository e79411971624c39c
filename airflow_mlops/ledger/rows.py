"""The ledger's tables held to the audit trail: an event states the rows it writes, and a row that no event states, or states otherwise, is found.

Whoever may write the database can change a row with one statement. So each transaction that writes a row of a table that decides something adds an
event with the whole row, as it is since then (`state`). Rows that decide are read together with the events that state them (`proven`), and
`verify` compares every table with the whole trail, in both directions. Who rewrites tables and trail alike is found by an anchor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from airflow_mlops.artifacts import bytes_digest, canonical_json
from airflow_mlops.exceptions import LedgerAltered
from airflow_mlops.ledger import chain
from airflow_mlops.ledger.chain import Event, Head
from airflow_mlops.ledger.store import Store
from airflow_mlops.ledger.tables import METADATA, SCOPE, UtcDateTime
from airflow_mlops.names import shown

DECIDING = {table.name: table for table in METADATA.sorted_tables if SCOPE in table.info}
ADVICE = (
    "Find out who could write there, and put the row back as the event says, or restore a backup of the ledger; "
    "'airflow-mlops audit verify --ledger URL' names every such row."
)
_SHOWN = 10


def state(connection: sa.Connection, event: Event, *rows: tuple[sa.Table, Mapping[str, Any]]) -> Head:
    """Add `event` to the trail, stating `rows` as they are now (or that they are gone): the table and the primary key of each, of one scope.

    Who changes a row looks first whether it is `proven`: otherwise what was done to it by hand would become what the trail says.
    """
    stated = tuple(_stated(connection, table, key) for table, key in rows)
    return chain.append(connection, replace(event, scope=_scope(*rows[0]), rows=stated))


def proven(connection: sa.Connection, table: sa.Table, **scope: Any) -> list[dict[str, Any]]:
    """Return the rows of `table` in a scope, after comparing them with every event that states one.

    :raises LedgerAltered: a row differs, is missing, or was never written by this package.
    :raises AuditTrailBroken: an event that states one was altered.
    """
    digest = _scope(table, scope)
    while True:
        events = chain.stating(connection, digest)
        found = [_plain(table, row) for row in connection.execute(_raw(table).where(*_equal(table, scope)).order_by(*table.primary_key))]
        if chain.num_last(connection, digest) == (events[-1].number if events else 0):
            break
        # On PostgreSQL another one wrote between both looks, and committed row and event together: look again.
    said = Said()
    said.see(events)
    if wrong := said.differences(connection, table, found):
        raise LedgerAltered(f"{' '.join(wrong[:_SHOWN])} Nothing was done. {ADVICE}")
    return [_typed(table, row) for row in found]


def verify(store: Store, anchors: Iterable[Head] = ()) -> Head:
    """Return the head of the ledger's trail, after following it to its end and comparing every table that decides something with it.

    :raises AuditTrailBroken: as `airflow_mlops.ledger.chain.verify`.
    :raises LedgerAltered: rows are not what the trail says; the message names the first of them.
    """
    said = Said()
    head = chain.verify(chain.lines(store, said), anchors)
    if said.wrong:
        more = f" And {len(said.wrong) - _SHOWN} more rows." if len(said.wrong) > _SHOWN else ""
        raise LedgerAltered(f"{' '.join(said.wrong[:_SHOWN])}{more} {ADVICE}")
    return head


@dataclass
class Said:
    """What events say that the tables hold: of each row the number of the last event that states it and a digest, None where it is gone.

    `wrong` is filled at the end of the trail: a sentence for each row that differs.
    """

    rows: dict[str, dict[bytes, tuple[int, str | None]]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def see(self, events: Iterable[Event], end: sa.Connection | None = None) -> None:
        """Take note of the rows that `events` state; in the transaction that sees the trail's `end`, compare every table with all that was said."""
        for event in events:
            for one in event.rows:
                table, row = DECIDING[one["table"]], one.get("row")
                key = _key(table, one["gone"] if row is None else row)
                self.rows.setdefault(table.name, {})[key] = event.number, None if row is None else _digest(row)
        if end is None:
            return
        for table in DECIDING.values():
            self.wrong += self.differences(end, table, (_plain(table, row) for row in end.execute(_raw(table))))

    def differences(self, connection: sa.Connection, table: sa.Table, found: Iterable[dict[str, Any]]) -> list[str]:
        """Return a sentence for each row that is missing, or `found` to differ from what was said."""
        said, wrong = dict(self.rows.get(table.name, {})), []
        for row in found:
            number, digest = said.pop(_key(table, row), (0, None))
            if digest != _digest(row):
                wrong.append(_changed(connection, table, row, number))
        missing = [(number, key) for key, (number, digest) in said.items() if digest is not None]
        for number, key in sorted(missing):
            wrong.append(f"{_named(table, _of_key(table, key))} is missing, which {_told(chain.at(connection, number))} wrote.")
        return wrong


def _stated(connection: sa.Connection, table: sa.Table, key: Mapping[str, Any]) -> dict[str, Any]:
    names = [column.name for column in table.primary_key]
    row = connection.execute(_raw(table).where(*_equal(table, {name: key[name] for name in names}))).first()
    if row is None:
        return {"table": table.name, "gone": {name: key[name] for name in names}}
    return {"table": table.name, "row": _plain(table, row)}


def _scope(table: sa.Table, values: Mapping[str, Any]) -> str:
    return bytes_digest(canonical_json({name: values[name] for name in table.info[SCOPE]}))


def _equal(table: sa.Table, values: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == value for name, value in values.items()]


def _raw(table: sa.Table) -> sa.Select[Any]:
    """Return a query for whole rows as the driver gives them: what was put in by hand may not fit the column's type."""
    columns: list[sa.ColumnElement[Any]] = [sa.type_coerce(column, sa.types.NullType()).label(column.name) for column in table.columns]
    return sa.select(*columns)


def _plain(table: sa.Table, row: sa.Row[Any]) -> dict[str, Any]:
    """Return a raw row as JSON; an unreadable value becomes its text."""
    return {column.name: _value(column, getattr(row, column.name)) for column in table.columns}


def _value(column: sa.Column[Any], raw: Any) -> Any:
    try:
        if isinstance(column.type, UtcDateTime) and raw is not None:
            at = datetime.fromisoformat(raw) if isinstance(raw, str) else raw
            return (at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)).isoformat()
        value = json.loads(raw) if isinstance(column.type, sa.JSON) and isinstance(raw, str) else raw
        canonical_json(value)
    except (ValueError, TypeError, AttributeError):
        return repr(raw)
    return value


def _typed(table: sa.Table, row: Mapping[str, Any]) -> dict[str, Any]:
    times = {column.name for column in table.columns if isinstance(column.type, UtcDateTime)}
    return {name: datetime.fromisoformat(value) if name in times and value is not None else value for name, value in row.items()}


def _digest(row: Mapping[str, Any]) -> str:
    return bytes_digest(canonical_json(row))


def _key(table: sa.Table, row: Mapping[str, Any]) -> bytes:
    return canonical_json([row[column.name] for column in table.primary_key])


def _of_key(table: sa.Table, key: bytes) -> dict[str, Any]:
    return dict(zip((column.name for column in table.primary_key), json.loads(key), strict=True))


def _changed(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any], number: int) -> str:
    if number == 0:
        return f"{_named(table, row)} is there, and no event of the audit trail wrote it."
    event = chain.at(connection, number)
    key = _key(table, row)
    expected = [one["row"] for one in event.rows if one["table"] == table.name and "row" in one and _key(table, one["row"]) == key]
    if not expected:
        return f"{_named(table, row)} is there, although {_told(event)} removed it."
    changed = "; ".join(f"{where} is {found} and was {was}" for where, was, found in _leaves("", expected[-1], row))
    return f"{_named(table, row)} was changed since {_told(event)} wrote it: {changed}."


def _leaves(where: str, was: Any, found: Any) -> Iterator[tuple[str, str, str]]:
    """Yield what differs between two JSON values: its name, and both as short texts."""
    if isinstance(was, Mapping) and isinstance(found, Mapping):
        for name in sorted({*was, *found}):
            yield from _leaves(f"{where}.{name}".lstrip("."), was.get(name), found.get(name))
    elif canonical_json(was) != canonical_json(found):
        yield where, _short(was), _short(found)


def _short(value: Any) -> str:
    return shown(canonical_json(value).decode(), 100)


def _named(table: sa.Table, row: Mapping[str, Any]) -> str:
    key = ", ".join(f"{column.name} {row[column.name]!r}" for column in table.primary_key)
    return f"The row of table {table.name} with {key}"


def _told(event: Event) -> str:
    return f"event {event.number} ({event.kind}, {event.subject})"
