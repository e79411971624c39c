"""What only a server can do: lose its connections, crash, and be started again."""

from __future__ import annotations

from functools import partial

import pytest

from airflow_mlops.exceptions import LedgerUnavailable
from airflow_mlops.ledger import champions
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.store import Store
from tests.postgresql import PostgresqlServer
from tests.promotions import cut

pytestmark = pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
CLAIM = Claim("promote:1", "digits", 1, None)
NUM_STATEMENTS = 8  # of a promotion: limits, intent, champion, reign, lock, head, event, commit
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'ledger_%'"


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


def test_a_connection_that_is_cut_at_any_step_promotes_nobody_by_half(ledger_url: str, postgresql: PostgresqlServer) -> None:
    assert cut(ledger_url, partial(postgresql.run, CUT)) == NUM_STATEMENTS
