"""An effect happens once per intent, whenever the process that applies it dies."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_mlops.exceptions import LedgerError
from airflow_mlops.ledger.history import effects
from airflow_mlops.ledger.journal import known, once, open_effects
from airflow_mlops.ledger.store import Store, now

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
def test_an_intent_cannot_be_used_for_another_request(store: Store, kind: str, request_: dict[str, Any]) -> None:
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


def later() -> datetime:
    return now() + timedelta(seconds=1)


@pytest.mark.parametrize("error", [ConnectionError("no answer"), ValueError("no\0t"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_an_effect_that_failed_is_closed_with_its_problem_until_it_is_tried_again(store: Store, error: BaseException) -> None:
    def effect() -> dict[str, Any]:
        assert open_effects(store, later()) == ["k"]
        raise error

    for _ in range(2):
        with pytest.raises(type(error)):
            once(store, "k", "promote", REQUEST, effect)
        assert open_effects(store, later()) == []
        (row,) = effects(store, ["promote"])
        assert row.problem == f"{type(error).__name__}: {error}".replace("\0", "\\0") and row.applied_at is None
    once(store, "k", "promote", REQUEST, lambda: {"done": True})
    (row,) = effects(store, ["promote"])
    assert (row.problem, row.result) == (None, {"done": True}) and row.applied_at is not None


def test_an_effect_whose_process_died_is_open_until_the_next_try(store: Store, ledger_url: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", DIE_IN_BETWEEN, ledger_url, str(tmp_path / "applied")], check=False)
    assert open_effects(store, later()) == ["k"] and open_effects(store, now() - timedelta(hours=1)) == []
    with pytest.raises(ConnectionError):
        once(store, "k", "promote", {"version": 7}, Target(ConnectionError("no answer")))
    assert open_effects(store, later()) == []


def test_an_effect_that_is_applied_again_keeps_its_first_result_and_is_never_open(store: Store) -> None:
    once(store, "k", "promote", REQUEST, lambda: {"n": 1})
    assert once(store, "k", "promote", REQUEST, lambda: {"n": len(open_effects(store, later()))}, again=True) == {"n": 0}
    with pytest.raises(ConnectionError):
        once(store, "k", "promote", REQUEST, Target(ConnectionError("no answer")), again=True)
    assert known(store, "k") == {"n": 1} and open_effects(store, later()) == []


def test_a_failure_that_cannot_be_noted_is_still_the_error_that_is_raised(store: Store) -> None:
    def effect() -> dict[str, Any]:
        with store.transaction() as connection:
            connection.execute(sa.text("DROP TABLE effects"))
        raise ConnectionError("no answer")

    with pytest.raises(ConnectionError) as caught:
        once(store, "k", "promote", REQUEST, effect)
    assert "could not note that 'k' failed" in "".join(caught.value.__notes__)
