"""Bringing a ledger's tables to what this version of the package expects (Alembic; the scripts are in ``versions/``)."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from airflow_mlops.exceptions import LedgerError

HEAD = "0007"  # of the scripts in versions/; a test holds it to them
VERSION_TABLE = "mlops_ledger_version"  # a database may be shared with Airflow or MLflow, which have an alembic_version each
_LOCK = 0x6D6C6F7073  # any number that others do not use: "mlops"


def upgrade(connection: sa.Connection) -> None:
    """Bring the tables up to date inside the transaction of `connection`; raise `LedgerError` if they are of a newer package."""
    if _current(connection) == HEAD:
        return  # Alembic takes a moment to be imported, and a ledger is opened often
    if connection.dialect.name == "postgresql":  # SQLite's transaction has its lock already
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    current = _current(connection)
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    if current is not None and current not in known:
        raise LedgerError(
            f"The ledger has schema {current}; expected at most {HEAD}, which this version of airflow-mlops writes. A newer version has used it: "
            "install that version here too, or restore a backup of the ledger from before."
        )
    command.upgrade(config, "head")


def _current(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None  # empty, or of a version that did not migrate yet
    version: str | None = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    return version
