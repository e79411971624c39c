"""The ledger's tables and its transactions: SQLite by default, PostgreSQL in production.

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

INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
METADATA = sa.MetaData()


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A time with its zone; SQLite forgets the zone, and all times here are UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


DATASET_VERSIONS = sa.Table(
    "dataset_versions",
    METADATA,
    sa.Column("dataset", sa.String(250), primary_key=True),
    sa.Column("key", sa.String(500), primary_key=True),  # its digest; for a version that arrived broken a key of its own
    sa.Column("digest", sa.String(80), nullable=True),
    sa.Column("name", sa.String(255), nullable=False),  # of a directory, which may be this long
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("problem", sa.Text, nullable=True),  # why a version that arrived broken was announced as broken
    sa.Column("announced_at", UtcDateTime, nullable=False),
)

CLAIMS = sa.Table(
    "dataset_claims",
    METADATA,
    sa.Column("dataset", sa.String(250), primary_key=True),
    sa.Column("digest", sa.String(80), primary_key=True),
    sa.Column("purpose", sa.String(501), primary_key=True),  # the DAG id of who wants the version; of a repeated run "DAG id/run id"
    sa.Column("run_id", sa.String(250), nullable=False),
    sa.Column("claimed_at", UtcDateTime, nullable=False),
)

REJECTIONS = sa.Table(
    "dataset_rejections",
    METADATA,
    sa.Column("dataset", sa.String(250), primary_key=True),
    sa.Column("digest", sa.String(80), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),  # in the words of the validation that saw it last
    sa.Column("rejected_at", UtcDateTime, nullable=False),
)

EFFECTS = sa.Table(
    "effects",
    METADATA,
    sa.Column("key", sa.String(500), primary_key=True),
    sa.Column("kind", sa.String(80), nullable=False),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("asked_at", UtcDateTime, nullable=False),
    sa.Column("applied_at", UtcDateTime, nullable=True),
)


class Store:
    """One ledger database.

    :param url: SQLAlchemy URL, for instance ``sqlite:////srv/mlops/ledger.db``.
    :raises SpecError: when the URL is none, or names a database or a driver that is not there.
    :raises LedgerUnavailable: when the database does not answer or its file can not be opened.
    """

    def __init__(self, url: str | URL) -> None:
        self.engine = _engine(url)
        try:
            with self.transaction() as connection:
                METADATA.create_all(connection)
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
