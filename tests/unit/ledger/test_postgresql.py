"""What only a server can do: lose its connections, crash, and be started again."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from airflow_mlops.exceptions import LedgerError, LedgerUnavailable
from airflow_mlops.ledger import chain, champions, datasets
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.journal import once
from airflow_mlops.ledger.store import Store
from airflow_mlops.ledger.tables import AUDIT_EVENTS, REIGNS
from tests.fakes import dataset_version
from tests.postgresql import PostgresqlServer, execute, programs
from tests.promotions import cut

ROOT = Path(__file__).parents[3]
on_postgresql = pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
CLAIM = Claim("promote:1", "digits", 1, None)
NUM_STATEMENTS = 11  # of a promotion: limits, intent, reigns with their events (3), reign, the same as it is, lock, head, event, commit
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'ledger_%'"


@on_postgresql
def test_a_server_that_was_started_again_is_used_at_once(store: Store, postgresql: PostgresqlServer) -> None:
    champions.crown(store, CLAIM)
    postgresql.stop()
    try:
        with pytest.raises(LedgerUnavailable, match="refused"):
            champions.current(store, "digits")
    finally:
        postgresql.start()
    assert champions.crown(store, CLAIM).token == 1
    assert champions.crown(store, Claim("promote:2", "digits", 2, 1, 1)).token == 2


@on_postgresql
def test_a_connection_that_is_cut_at_any_step_promotes_nobody_by_half(ledger_url: str, postgresql: PostgresqlServer) -> None:
    assert cut(ledger_url, partial(postgresql.run, CUT)) == NUM_STATEMENTS


def test_the_roles_the_rights_and_the_backup_of_the_documentation_work(postgresql: PostgresqlServer, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operations.md").read_text().partition("### On PostgreSQL")[2].partition("\n## ")[0]
    sql = dict(re.findall(r'^```sql title="([\w.]+)"\n(.*?)^```$', page, flags=re.MULTILINE | re.DOTALL))
    make, dump, restore, verify = re.findall(r"^(?:airflow-mlops|pg_dump|pg_restore) .*", page, flags=re.MULTILINE)
    search = f"{Path(sys.executable).parent}:{programs()}:/usr/bin:/bin"

    def shell(command: str) -> None:
        command = command.replace("db.example.org", f"127.0.0.1:{postgresql.url.port}")
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, env={"PATH": search, "PGPASSWORD": "a-long-one"})

    owner = postgresql.url.set(username="mlops_owner", password="a-long-one", database="mlops")
    try:
        postgresql.run(*sql["roles.sql"].split("\n")[:-1])
        shell(make)
        execute(owner, *sql["rights.sql"].split("\n")[:-1])
        store = Store(owner.set(username="mlops_airflow", password="another-long-one"))
        promoted_and_refused(store)
        shell(dump)
        anchor = chain.head(store)
        champions.crown(store, Claim("promote:2", "digits", 2, 1))
        store.close()
        shell(restore)
        shell(verify.replace("ANCHOR", str(anchor)))
        store = Store(owner.set(username="mlops_airflow", password="another-long-one"))
        assert chain.head(store) == anchor
        promoted_and_refused(store)
        store.close()
    finally:
        postgresql.run("DROP DATABASE IF EXISTS mlops WITH (FORCE)", "DROP ROLE IF EXISTS mlops_owner", "DROP ROLE IF EXISTS mlops_airflow")


def promoted_and_refused(store: Store) -> None:
    """Do what a release does, and try what nobody may."""
    event = chain.Event("served", "digits@1", "ann", {})
    once(store, "switch", "switch", {}, lambda: {"version": champions.crown(store, CLAIM).version}, event=event)
    datasets.claim(store, dataset_version(), purpose="dag", run_id="run 1")
    datasets.record_verdict(store, dataset_version(), rejected_because=None)
    for statement in (AUDIT_EVENTS.update().values(line=""), AUDIT_EVENTS.delete(), REIGNS.update().values(version=9), REIGNS.delete()):
        with pytest.raises(LedgerError, match="permission denied for table"), store.transaction() as connection:
            connection.execute(statement)
