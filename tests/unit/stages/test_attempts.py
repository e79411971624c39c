"""Which attempt comes next: budgets are counted apart, and a chain of tries has its own."""

from __future__ import annotations

import pytest

from airflow_mlops.ledger.store import Store
from airflow_mlops.stages.attempts import Attempt, next_attempt, settle
from airflow_mlops.stages.pod import Outcome


def after(*outcomes: str, chain: str = "1") -> Attempt:
    return Attempt.after([{"outcome": one.partition("@")[0], "chain": one.partition("@")[2] or "1"} for one in outcomes], chain)


def test_budgets_are_counted_apart() -> None:
    assert after() == Attempt(1)
    assert after("interrupted", "out of memory", "interrupted") == Attempt(4, step=1, num_interruptions=2)


@pytest.mark.parametrize("final", ["failed", "error"])
def test_they_begin_anew_after_a_final_outcome(final: str) -> None:
    assert after("interrupted", final) == Attempt(3)
    assert after("out of memory", final, "out of memory") == Attempt(4, step=1)


def test_a_record_is_returned_again_in_its_own_chain_of_tries() -> None:
    assert after("interrupted", "record") == Attempt(2, settled=True)


def test_whoever_clears_the_task_begins_anew_and_with_full_budgets() -> None:
    assert after("interrupted", "record", chain="2") == Attempt(3)
    assert after("interrupted", "out of memory", "interrupted@2", chain="2") == Attempt(4, num_interruptions=1)


def test_the_ledger_remembers_the_first_that_an_attempt_came_to(ledger: Store) -> None:
    assert next_attempt(ledger, "dag:task", "1") == Attempt(1)
    settle(ledger, "dag:task", 1, "pod", "1", Outcome.INTERRUPTED)
    settle(ledger, "dag:task", 1, "pod", "1", Outcome.RECORD)
    assert next_attempt(ledger, "dag:task", "1") == Attempt(2, num_interruptions=1)
    assert next_attempt(ledger, "dag:other", "1") == Attempt(1)


def test_a_failure_for_good_is_told_again_in_its_own_chain_of_tries_and_not_tried_again(ledger: Store) -> None:
    settle(ledger, "dag:task", 1, "pod", "1", Outcome.FAILED, "exit code 1")
    assert next_attempt(ledger, "dag:task", "1") == Attempt(1, settled=True, failure="exit code 1")
    assert next_attempt(ledger, "dag:task", "2") == Attempt(2)
