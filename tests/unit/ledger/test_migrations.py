"""A ledger of an older version is brought up to date when it is opened, one of a newer version is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from airflow_mlops.exceptions import LedgerError
from airflow_mlops.ledger import datasets, migrations
from airflow_mlops.ledger.store import Store
from airflow_mlops.ledger.tables import METADATA

SCRIPTS = Path(migrations.__file__).parent
# What version 0.1 wrote, before there were migrations.
OLD = """
CREATE TABLE dataset_versions (dataset VARCHAR(250) NOT NULL, "key" VARCHAR(500) NOT NULL, digest VARCHAR(80), name VARCHAR(255) NOT NULL,
    uri TEXT NOT NULL, problem TEXT, announced_at DATETIME NOT NULL, PRIMARY KEY (dataset, "key"));
CREATE TABLE dataset_claims (dataset VARCHAR(250) NOT NULL, digest VARCHAR(80) NOT NULL, purpose VARCHAR(501) NOT NULL,
    run_id VARCHAR(250) NOT NULL, claimed_at DATETIME NOT NULL, PRIMARY KEY (dataset, digest, purpose));
CREATE TABLE dataset_rejections (dataset VARCHAR(250) NOT NULL, digest VARCHAR(80) NOT NULL, reason TEXT NOT NULL, rejected_at DATETIME NOT NULL,
    PRIMARY KEY (dataset, digest));
CREATE TABLE effects ("key" VARCHAR(500) NOT NULL, kind VARCHAR(80) NOT NULL, request JSON NOT NULL, result JSON, asked_at DATETIME NOT NULL,
    applied_at DATETIME, PRIMARY KEY ("key"));
INSERT INTO dataset_versions VALUES ('digits', 'sha256:v1', 'sha256:v1', '2026-01-01', '/inbox/2026-01-01', NULL, '2026-01-01 00:00:00');
"""


def make_old(url: str) -> None:
    time = "DATETIME" if url.startswith("sqlite") else "TIMESTAMP WITH TIME ZONE"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in OLD.replace("DATETIME", time).split(";\n")[:-1]:
            connection.exec_driver_sql(statement)
    engine.dispose()


def contents(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Return every table's rows, with nothing of the package in between."""
    engine, found = sa.create_engine(url), sa.MetaData()
    found.reflect(engine)
    with engine.connect() as connection:
        rows = {name: [tuple(row) for row in connection.execute(sa.select(table))] for name, table in found.tables.items()}
    engine.dispose()
    return rows


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a ledger can be made, on each database that keeps one."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.db"
    else:
        with request.getfixturevalue("postgresql").database() as url:
            yield url


def test_the_scripts_lead_to_the_tables_that_the_code_expects(store: Store) -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    assert ScriptDirectory.from_config(config).get_current_head() == migrations.HEAD
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": migrations.VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_a_ledger_from_before_migrations_keeps_its_rows(database_url: str) -> None:
    make_old(database_url)
    store = Store(database_url)
    assert datasets.announced(store, "digits") == {"sha256:v1"}
    assert "read_back_at" in {column["name"] for column in sa.inspect(store.engine).get_columns("effects")}
    assert sa.inspect(store.engine).has_table("reigns")
    store.close()


def test_what_was_announced_before_there_was_an_order_is_older_than_all_that_is_seen_and_waits_for_nothing(database_url: str) -> None:
    make_old(database_url)
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO dataset_versions VALUES ('digits', 'sha256:v0', 'sha256:v0', 'v0', '/', NULL, '2025-01-01 00:00:00')")
        connection.exec_driver_sql("INSERT INTO dataset_versions VALUES ('digits', 'broken:x', NULL, 'x', '', 'gone', '2025-01-01 00:00:00')")
    engine.dispose()
    store = Store(database_url)
    assert datasets.waiting(store, "digits") == ()
    assert datasets.see(store, "digits", ["sha256:v2", "sha256:v1"]) == {"sha256:v0": -1, "sha256:v1": 0, "sha256:v2": 1}
    assert datasets.waiting(store, "digits") == ()
    store.close()


def test_a_ledger_of_a_newer_version_is_refused_and_left_alone(store: Store, ledger_url: str) -> None:
    with store.transaction() as connection:
        connection.execute(sa.text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'"))
    store.close()
    before = contents(ledger_url)
    with pytest.raises(LedgerError, match=rf"schema 9999; expected at most {migrations.HEAD}.*A newer version has used it") as caught:
        Store(ledger_url)
    assert not caught.value.retryable
    assert contents(ledger_url) == before


def test_an_upgrade_that_is_interrupted_has_not_begun(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(database_url)
    before = contents(database_url)

    def no_such_thing(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("alembic.op.add_column", no_such_thing)
        Store(database_url)
    assert contents(database_url) == before
    Store(database_url).close()


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_several_that_open_a_ledger_at_once_all_find_it_whole(database_url: str, old: bool) -> None:
    if old:
        make_old(database_url)
    code = "import sys; from airflow_mlops.ledger.store import Store; print('ready', flush=True); sys.stdin.read(); Store(sys.argv[1]).close()"
    command = [sys.executable, "-c", code, database_url]
    opening = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(6)]
    for process in opening:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    for process in opening:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait() for process in opening] == [0] * 6
    store = Store(database_url)
    assert datasets.announced(store, "digits") == ({"sha256:v1"} if old else frozenset())
    store.close()


def test_opening_a_ledger_that_is_up_to_date_does_not_import_alembic(store: Store, ledger_url: str) -> None:
    code = "import sys; from airflow_mlops.ledger.store import Store; Store(sys.argv[1]).close(); sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, ledger_url], check=False).returncode == 0
