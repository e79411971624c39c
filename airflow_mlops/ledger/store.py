"""The ledger's database and its transactions: SQLite by default, PostgreSQL in production.

Every public function of this room is one transaction. On SQLite a transaction takes the write lock at once (``BEGIN IMMEDIATE``), so that
two processes that read and then write can not both win; on PostgreSQL the unique keys decide.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from airflow_mlops.exceptions import LedgerError, LedgerUnavailable, SpecError
from airflow_mlops.ledger import migrations

INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Store:
    """One ledger database.

    :param url: SQLAlchemy URL, for instance ``sqlite:////srv/mlops/ledger.db``.
    :raises SpecError: when the URL is none, or names a database or a driver that is not there.
    :raises LedgerUnavailable: when the database does not answer or its file can not be opened.
    :raises LedgerError: when the database is no ledger, or one of a newer version of this package.
    """

    def __init__(self, url: str | URL) -> None:
        self.engine = _engine(url)
        try:
            with self.transaction() as connection:
                migrations.upgrade(connection)
        except BaseException:
            self.close()  # who waits for the database tries again and again
            raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection inside one transaction; commit at the end, roll back on any exception."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except OperationalError as error:
            raise LedgerUnavailable(
                f"The ledger at {self._where()} did not answer: {error.orig}. Expected a database that can be written; "
                "check the connection of type mlops_ledger and that the disk is not full."
            ) from error
        except DatabaseError as error:
            raise LedgerError(
                f"The ledger at {self._where()} refused: {error.orig}. Expected a database with the tables of this package; "
                "check the connection of type mlops_ledger, and restore the database if it is damaged."
            ) from error

    def close(self) -> None:
        """Close every database connection."""
        self.engine.dispose()

    def _where(self) -> str:
        return self.engine.url.render_as_string(hide_password=True)


def insert_new(connection: Connection, table: sa.Table, row: dict[str, Any]) -> bool:
    """Insert `row` unless its primary key is taken, and return whether it was inserted; of several at once exactly one inserts."""
    return connection.execute(INSERTS[connection.dialect.name](table).values(**row).on_conflict_do_nothing()).rowcount == 1


def now() -> datetime:
    """Return the time that rows are stamped with."""
    return datetime.now(UTC)


def _engine(url: str | URL) -> Engine:
    try:
        engine = sa.create_engine(url)
    except (ArgumentError, ImportError) as error:
        raise SpecError(f"The ledger can not be opened: {error}. Correct the connection of type mlops_ledger, or install its driver.") from error
    if engine.dialect.name not in INSERTS:
        raise SpecError(f"The ledger can not be kept in {engine.dialect.name}; expected {' or '.join(INSERTS)}. Correct its connection.")
    if engine.dialect.name != "sqlite":
        return engine

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own; see _begin
        connection.execute("PRAGMA busy_timeout = 30000")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
