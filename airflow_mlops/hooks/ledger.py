"""Connection type ``mlops_ledger``: the database that remembers dataset versions and effects."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airflow.sdk import BaseHook

from airflow_mlops.hooks.errors import tested

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_mlops.ledger.store import Store


class MlopsLedgerHook(BaseHook):
    """Opens the ledger that a connection names.

    Connection fields: `schema` is the database name, for SQLite the file; `host`, `port`, `login`, `password` as usual; the extra `driver`
    is SQLAlchemy's driver name: without one, ``postgresql+psycopg2`` where there is a host, else ``sqlite``.
    """

    conn_name_attr = "ledger_conn_id"
    default_conn_name = "mlops_ledger_default"
    conn_type = "mlops_ledger"
    hook_name = "MLOps ledger"

    def __init__(self, ledger_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.ledger_conn_id = ledger_conn_id

    def get_conn(self) -> Store:
        """Return the open ledger; raise `LedgerUnavailable` when its database does not answer."""
        return self.open(self.get_connection(self.ledger_conn_id))

    async def aget_conn(self) -> Store:
        """Return the open ledger from a trigger, whose event loop must not wait."""
        return await asyncio.to_thread(self.open, await self.aget_connection(self.ledger_conn_id))

    @staticmethod
    def open(connection: Connection) -> Store:
        """Return the ledger that `connection` names; raise `SpecError` when it names none."""
        from sqlalchemy.engine import URL

        from airflow_mlops.exceptions import SpecError
        from airflow_mlops.ledger.store import Store

        if not connection.schema:  # SQLite would keep a ledger without a name in memory, and forget it
            raise SpecError(f"Connection {connection.conn_id!r} has no schema; put the database's name there, for SQLite the path of its file.")
        url = URL.create(
            drivername=connection.extra_dejson.get("driver") or ("postgresql+psycopg2" if connection.host else "sqlite"),
            username=connection.login or None,
            password=connection.password or None,
            host=connection.host or None,
            port=connection.port or None,
            database=connection.schema,
        )
        return Store(url)

    def test_connection(self) -> tuple[bool, str]:
        """Say whether the ledger can be written, for the button in Airflow's connection form."""
        return tested(self._write)

    def _write(self) -> str:
        with self.get_conn() as store:
            store.check_writable()
        return "The ledger can be written."
