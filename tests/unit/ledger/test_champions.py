"""One champion at a time, whoever asks at the same moment, however often and however late."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from airflow_mlops.exceptions import LedgerError, PromotionConflict
from airflow_mlops.ledger import chain, champions
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.store import Store


def claim(version: int, expected: int | None, *, intent: str = "", token: int | None = None) -> Claim:
    return Claim(intent or f"promote:{version}", "digits", version, expected, token, f"sha256:{version}", actor="ann", details={"run": "r1"})


def test_nobody_is_champion_at_first(store: Store) -> None:
    assert champions.current(store, "digits") is None
    assert champions.history(store, "digits") == []


def test_reigns_follow_each_other(store: Store) -> None:
    first = champions.crown(store, claim(1, None))
    second = champions.crown(store, claim(2, 1))
    assert (first.token, first.version, first.previous) == (1, 1, None)
    assert (second.token, second.version, second.previous, second.digest) == (2, 2, 1, "sha256:2")
    assert champions.current(store, "digits") == second
    assert champions.history(store, "digits") == [first, second]
    assert champions.current(store, "other") is None


def test_each_reign_is_one_event_that_says_who_and_why(store: Store) -> None:
    champions.crown(store, claim(1, None))
    champions.crown(store, claim(2, 1))
    seen = chain.events(store, model="digits", kinds=["promoted"])
    assert [(event.subject, event.actor) for event in seen] == [("digits@1", "ann"), ("digits@2", "ann")]
    assert seen[1].details == {"token": 2, "previous": 1, "digest": "sha256:2", "intent": "promote:2", "run": "r1"}


def test_the_same_intent_again_changes_nothing_even_when_another_reigns_by_now(store: Store) -> None:
    first = champions.crown(store, claim(1, None))
    champions.crown(store, claim(2, 1))
    assert champions.crown(store, claim(1, None)) == first
    assert champions.current(store, "digits").version == 2  # type: ignore[union-attr]
    assert chain.head(store).number == 2


def test_who_reigns_already_by_another_intent_is_not_crowned_again(store: Store) -> None:
    first = champions.crown(store, claim(1, None))
    assert champions.crown(store, claim(1, 1, intent="again")) == first
    assert chain.head(store).number == 1


def test_an_intent_cannot_be_used_for_another_version(store: Store) -> None:
    champions.crown(store, claim(1, None, intent="k"))
    with pytest.raises(LedgerError, match=r"'k' made version 1 .* champion, and is now used for version 2"):
        champions.crown(store, claim(2, 1, intent="k"))


@pytest.mark.parametrize(
    ("expected", "words"), [(None, "was evaluated against nobody"), (1, "was evaluated against version 1"), (9, "was evaluated against version 9")]
)
def test_a_version_that_was_compared_with_another_champion_is_refused(store: Store, expected: int | None, words: str) -> None:
    champions.crown(store, claim(1, None))
    champions.crown(store, claim(2, 1))
    with pytest.raises(PromotionConflict, match=rf"Champion of 'digits' is version 2 since .* UTC, but version 3 {words}.*Evaluate it again"):
        champions.crown(store, claim(3, expected))
    assert chain.head(store).number == 2


def test_a_champion_that_came_back_is_another_reign(store: Store) -> None:
    """The version is the expected one again, but what happened in between is not known to who looked before it."""
    champions.crown(store, claim(1, None))
    champions.crown(store, claim(2, 1))
    champions.crown(store, claim(1, 2, intent="roll back"))
    with pytest.raises(PromotionConflict, match="in reign 1, and this is reign 3"):
        champions.crown(store, claim(3, 1, token=1))
    assert champions.crown(store, claim(3, 1, token=3)).token == 4


FROZEN = """
import sys
from airflow_mlops.ledger import champions
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.store import Store
from airflow_mlops.exceptions import PromotionConflict
store = Store(sys.argv[1])
seen = champions.current(store, "digits")
print("looked", flush=True)
sys.stdin.readline()
try:
    champions.crown(store, Claim("frozen", "digits", 2, seen.version, seen.token))
except PromotionConflict as error:
    print("conflict", flush=True)
"""


def test_a_promoter_that_was_frozen_while_another_won_is_refused_when_it_goes_on(store: Store, ledger_url: str) -> None:
    champions.crown(store, claim(1, None))
    process = subprocess.Popen([sys.executable, "-c", FROZEN, ledger_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "looked\n"
    os.kill(process.pid, signal.SIGSTOP)
    champions.crown(store, claim(3, 1))
    process.stdin.write("go\n")
    process.stdin.flush()
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=30)[0] == "conflict\n"
    assert [reign.version for reign in champions.history(store, "digits")] == [1, 3]
