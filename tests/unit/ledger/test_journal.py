"""An effect happens once per intent, whenever the process that applies it dies."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.exceptions import LedgerError
from airflow_mlops.ledger.journal import once
from airflow_mlops.ledger.store import Store

REQUEST = {"model": "digits", "version": 7, "expected": None}

DIE_IN_BETWEEN = """
import os, signal, sys, pathlib
from airflow_mlops.ledger.journal import once
from airflow_mlops.ledger.store import Store
def effect():
    with open(sys.argv[2], "a") as target:
        target.write("applied\\n")
    os.kill(os.getpid(), signal.SIGKILL)
once(Store(sys.argv[1]), "k", "promote", {"version": 7}, effect)
"""


class Target:
    """The outside world: counts what is done to it."""

    def __init__(self, *results: Any) -> None:
        self.results, self.count = results, 0

    def __call__(self) -> Any:
        self.count += 1
        result = self.results[min(self.count, len(self.results)) - 1]
        if isinstance(result, Exception):
            raise result
        return result


def test_an_effect_is_applied_once_and_its_result_remembered(store: Store) -> None:
    target = Target({"champion": 7, "previous": None})
    for _ in range(3):
        assert once(store, "k", "promote", REQUEST, target) == {"champion": 7, "previous": None}
    assert target.count == 1


def test_an_effect_without_a_result_is_applied_once_too(store: Store) -> None:
    target = Target({})
    for _ in range(2):
        assert once(store, "k", "promote", REQUEST, target) == {}
    assert target.count == 1


def test_other_intents_are_applied_for_themselves(store: Store) -> None:
    target = Target({"n": 1})
    once(store, "k", "promote", REQUEST, target)
    once(store, "other", "promote", REQUEST, target)
    assert target.count == 2


def test_an_effect_that_failed_is_applied_again_by_a_retry(store: Store) -> None:
    target = Target(ConnectionError("no answer"), {"done": True})
    with pytest.raises(ConnectionError):
        once(store, "k", "promote", REQUEST, target)
    assert once(store, "k", "promote", REQUEST, target) == {"done": True}
    assert target.count == 2


@pytest.mark.parametrize(("kind", "request_"), [("publish", REQUEST), ("promote", {**REQUEST, "version": 8}), ("promote", {})])
def test_an_intent_can_not_be_used_for_another_request(store: Store, kind: str, request_: dict[str, Any]) -> None:
    once(store, "k", "promote", REQUEST, Target({}))
    target = Target({})
    with pytest.raises(LedgerError, match=r"'k' was already used for promote .*One intent is one request"):
        once(store, "k", kind, request_, target)
    assert target.count == 0


def test_a_request_that_json_changes_is_still_the_same_request(store: Store) -> None:
    target = Target({})
    for _ in range(2):
        once(store, "k", "promote", {"versions": (7, 8)}, target)
    assert target.count == 1


def test_a_process_killed_between_the_effect_and_its_record_is_followed_by_one_more_application(
    store: Store, ledger_url: str, tmp_path: Path
) -> None:
    applied = tmp_path / "applied"
    died = subprocess.run([sys.executable, "-c", DIE_IN_BETWEEN, ledger_url, str(applied)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert applied.read_text() == "applied\n"
    target = Target({"champion": 7})
    for _ in range(2):
        assert once(store, "k", "promote", {"version": 7}, target) == {"champion": 7}
    assert target.count == 1
