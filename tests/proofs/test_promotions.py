"""Promotions in full: killed between any two steps, and raced in 500 rounds."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.exceptions import AuditTrailBroken
from airflow_mlops.ledger import chain
from airflow_mlops.ledger.chain import Event
from airflow_mlops.ledger.store import Store
from tests.postgresql import PostgresqlServer
from tests.promotions import cut
from tests.trails import attacked

ROOT = Path(__file__).parents[2]
NUM_ATTACKS = 10_000


def run(*arguments: str) -> Any:
    command = [sys.executable, "-m", "tests.promotions", *arguments]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


@pytest.mark.timeout(900)
def test_a_promoter_killed_between_any_two_steps_promotes_exactly_once(tmp_path: Path, ledger_server: list[str]) -> None:
    report = run("kill", str(tmp_path), "1", *ledger_server)
    assert report["num_kills"] > 35
    assert report["wrong"] == []


@pytest.mark.timeout(900)
def test_of_eight_that_promote_at_once_in_500_rounds_one_wins_each(ledger_url: str) -> None:
    assert run("race", ledger_url, "500") == {
        "rounds": 500,
        "won": 500,
        "conflicts": 3500,
        "reigns": 500,
        "events": 500,
        "lost": 0,
    }


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_server_that_crashes_at_any_step_promotes_nobody_by_half(ledger_url: str, postgresql: PostgresqlServer) -> None:
    def crash() -> None:
        postgresql.stop()
        postgresql.start()

    assert cut(ledger_url, crash) == 11  # limits, intent, reigns with their events (3), reign, the same as it is, lock, head, event, commit


def test_ten_thousand_attacks_on_an_exported_trail_are_all_found(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/ledger.db")
    for number in range(50):
        with store.transaction() as connection:
            chain.append(connection, Event("promoted", f"digits@{number + 1}", "ann", {"why": "better", "gates": [1, 2.5, None]}))
    trail, head, draw = list(chain.lines(store)), chain.head(store), random.Random(1)
    for _ in range(NUM_ATTACKS):
        with pytest.raises(AuditTrailBroken):
            chain.verify(attacked(trail, draw), [head])
