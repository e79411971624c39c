"""The ledger's database and its transactions: SQLite by default, PostgreSQL in production.

Every public function of this room is one transaction. On SQLite a transaction takes the write lock at once (``BEGIN IMMEDIATE``), so that
two processes that read and then write cannot both win; on PostgreSQL the unique keys decide, and who meets one that is taken sees its row
(``READ COMMITTED``, whatever the server's default is).
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError

from airflow_mlops.exceptions import LedgerError, LedgerUnavailable, SpecError
from airflow_mlops.ledger import migrations
from airflow_mlops.ledger.tables import METADATA

INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
DRIVERS = ("sqlite+pysqlite", "postgresql+psycopg2", "postgresql+psycopg")


class Store:
    """One ledger database, open until `close` or the end of its ``with`` block.

    :param url: SQLAlchemy URL, for instance ``sqlite:////srv/mlops/ledger.db`` or ``postgresql+psycopg2://user:password@host/mlops``.
    :param patience_seconds: how long a statement waits for a lock that another one holds, and on PostgreSQL a connection for the server. There a
        transaction that stands still for as long, because its process is frozen, is ended by the server, so that it stops nobody else.
    :raises SpecError: when the URL is none, or names a database or a driver that is not there.
    :raises LedgerUnavailable: when the database does not answer or its file cannot be opened.
    :raises LedgerError: when the database is no ledger, or one of a newer version of this package.
    """

    def __init__(self, url: str | URL, *, patience_seconds: float = 30.0) -> None:
        self.engine = _engine(url, round(patience_seconds * 1000))
        try:
            with self.transaction() as connection:
                migrations.upgrade(connection)
        except BaseException:
            self.close()  # who waits for the database tries again and again
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection inside one transaction; commit at the end, roll back on any exception."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            said = " ".join(str(error.orig).split())
            if isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated:
                raise LedgerUnavailable(
                    f"The ledger at {self._where()} did not answer: {said}. Expected a database that can be written; "
                    "check the connection of type mlops_ledger and that the disk is not full."
                ) from error
            raise LedgerError(
                f"The ledger at {self._where()} refused: {said}. Expected a database with the tables of this package; "
                "check the connection of type mlops_ledger, and restore the database if it is damaged."
            ) from error

    def check_writable(self) -> None:
        """Write a row of every table to which rows are added, and take all of it back; raise `LedgerError` or `LedgerUnavailable` if that fails."""
        with contextlib.suppress(_TakeBack), self.transaction() as connection:
            for table in METADATA.sorted_tables:
                columns = (column for column in table.columns if column is not table.autoincrement_column)
                connection.execute(table.insert().values({column.name: _SAMPLES[column.type.python_type] for column in columns}))
            raise _TakeBack

    def close(self) -> None:
        """Close every database connection."""
        self.engine.dispose()

    def _where(self) -> str:
        return self.engine.url.set(query={}).render_as_string(hide_password=True)  # a query may hold a password too


class _TakeBack(Exception):
    """Rolls a transaction back that did nothing wrong."""


# Values that no real row has: they only show that a row can be written.
_SAMPLES: dict[type, object] = {str: "connection-test", int: -1, object: {}, datetime: datetime(1970, 1, 1, tzinfo=UTC)}


def insert_new(connection: Connection, table: sa.Table, row: dict[str, Any]) -> bool:
    """Insert `row` unless one of its unique keys is taken, and return whether it was inserted; of several at once exactly one inserts."""
    insert = INSERTS[connection.dialect.name](table).values(**row).on_conflict_do_nothing()
    # Not the count of rows, which psycopg has forgotten when it is asked for.
    return connection.execute(insert.returning(*table.primary_key)).first() is not None


def now() -> datetime:
    """Return the time that rows are stamped with."""
    return datetime.now(UTC)


def _engine(url: str | URL, patience_ms: int) -> Engine:
    try:
        # A server that was started again has cut the connections that wait in the pool: each is tried before it is used.
        engine = sa.create_engine(_parsed(url), pool_pre_ping=True)
    except (ArgumentError, ImportError) as error:
        raise SpecError(f"The ledger cannot be opened: {error}. Correct the connection of type mlops_ledger, or install its driver.") from error
    if (driver := f"{engine.dialect.name}+{engine.driver}") not in DRIVERS:
        raise SpecError(f"The ledger cannot be kept in {driver}; expected one of {', '.join(DRIVERS)}. Correct its connection.")
    _CONFIGURE[engine.dialect.name](engine, patience_ms)
    return engine


def _parsed(url: str | URL) -> URL:
    """Return `url` in its parts; raise `SpecError`, which does not quote it, if it has none: what cannot be told apart may be the password."""
    with contextlib.suppress(ArgumentError, ValueError):
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite" or "@" not in f"{parsed.host}{parsed.database}":
            return parsed
    raise SpecError(
        "The ledger cannot be opened: its address is no URL. Expected DRIVER://USER:PASSWORD@HOST:PORT/DATABASE, with @, : and / in user and "
        "password written as %40, %3A and %2F, or sqlite:///FILE."
    )


def _configure_sqlite(engine: Engine, patience_ms: int) -> None:
    @sa.event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own; see _begin
        connection.execute(f"PRAGMA busy_timeout = {patience_ms}")
        _log_ahead(connection, patience_ms)
        connection.execute("PRAGMA synchronous = FULL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _log_ahead(connection: sqlite3.Connection, patience_ms: int) -> None:
    """Turn on write-ahead logging; where another process writes to a file that has none yet, SQLite refuses at once instead of waiting."""
    end = time.monotonic() + patience_ms / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= end:
                raise
        time.sleep(0.01)


def _configure_postgresql(engine: Engine, patience_ms: int) -> None:
    @sa.event.listens_for(engine, "do_connect")
    def _connecting(_dialect: object, _record: object, _arguments: object, fields: dict[str, Any]) -> None:
        # A host that is gone answers nothing at all, and TCP alone would wait for it for hours.
        fields.setdefault("connect_timeout", max(2, patience_ms // 1000))
        fields.setdefault("keepalives_idle", max(1, patience_ms // 1000))
        fields.setdefault("tcp_user_timeout", patience_ms)

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # For this transaction only: settings of the session would be lost, or meet others, behind a connection pooler.
        limits = "".join(f"SET LOCAL {name} = {patience_ms}; " for name in ("lock_timeout", "idle_in_transaction_session_timeout"))
        connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL READ COMMITTED; {limits}")


_CONFIGURE = {"sqlite": _configure_sqlite, "postgresql": _configure_postgresql}
