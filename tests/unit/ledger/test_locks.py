"""A ledger that another process holds, and another process that holds it and stands still, or ends."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from airflow_mlops.exceptions import LedgerUnavailable
from airflow_mlops.ledger import chain, champions
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.store import Store

CLAIM = Claim("promote:1", "digits", 1, None)

HOLD = """
import sys
from airflow_mlops.exceptions import LedgerUnavailable
from airflow_mlops.ledger import chain
from airflow_mlops.ledger.chain import Event
from airflow_mlops.ledger.store import Store
store = Store(sys.argv[1], patience_seconds=float(sys.argv[2]))
try:
    with store.transaction() as connection:
        chain.append(connection, Event("promoted", "letters@1", "bob", {}))
        print("held", flush=True)
        sys.stdin.readline()
except LedgerUnavailable:
    print("unavailable", flush=True)
"""


@contextmanager
def held(ledger_url: str, patience_seconds: float = 30.0) -> Iterator[subprocess.Popen[str]]:
    """Yield a process in the middle of a transaction: on SQLite it holds the ledger, on PostgreSQL the end of the audit trail."""
    command = [sys.executable, "-c", HOLD, ledger_url, str(patience_seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_lock_is_waited_for_thirty_seconds(store: Store) -> None:
    setting, expected = ("PRAGMA busy_timeout", 30_000) if store.engine.dialect.name == "sqlite" else ("SHOW lock_timeout", "30s")
    for _ in range(2):  # also when the connection comes out of the pool
        with store.transaction() as connection:
            assert connection.exec_driver_sql(setting).scalar() == expected


def test_a_ledger_that_another_process_holds_is_unavailable_and_nobody_is_half_promoted(ledger_url: str) -> None:
    store = Store(ledger_url, patience_seconds=0.1)
    with held(ledger_url) as holder:
        with pytest.raises(LedgerUnavailable, match=r"did not answer: (database is locked|canceling statement due to lock timeout)") as caught:
            champions.crown(store, CLAIM)
        assert caught.value.retryable
        holder.kill()
        holder.wait()
        assert champions.history(store, "digits") == []
        assert chain.events(store) == []
        assert champions.crown(store, CLAIM).token == 1
    store.close()


def test_what_a_killed_process_held_is_free(store: Store, ledger_url: str) -> None:
    with held(ledger_url) as holder:
        holder.kill()
        assert champions.crown(store, CLAIM).token == 1
    assert [event.subject for event in chain.events(store)] == ["digits@1"]


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_process_that_stands_still_in_a_transaction_is_ended_by_the_server(store: Store, ledger_url: str) -> None:
    with held(ledger_url, patience_seconds=0.2) as frozen:
        os.kill(frozen.pid, signal.SIGSTOP)
        assert champions.crown(store, CLAIM).token == 1
        os.kill(frozen.pid, signal.SIGCONT)
        assert frozen.communicate("go on\n")[0] == "unavailable\n"
    assert [event.subject for event in chain.events(store)] == ["digits@1"]


def test_a_new_file_that_another_process_writes_is_waited_for(database: Path) -> None:
    """SQLite refuses to change the journal of such a file at once, however patient the connection is."""
    with closing(sqlite3.connect(database, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable, match="database is locked"):
            Store(f"sqlite:///{database}", patience_seconds=0.1)
        written = threading.Timer(0.3, other.execute, ["COMMIT"])
        written.start()
        Store(f"sqlite:///{database}").close()
        written.join()
