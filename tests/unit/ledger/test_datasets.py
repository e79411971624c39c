"""A dataset version is announced once, and one run works on it."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC

import pytest

from airflow_mlops.exceptions import DatasetAlreadyClaimed
from airflow_mlops.ledger import datasets, history
from airflow_mlops.ledger.journal import once
from airflow_mlops.ledger.store import Store
from tests.fakes import dataset_version

V1, V2 = dataset_version("v1"), dataset_version("v2")
NUM_PROCESSES = 8

CLAIM_AT_ONCE = """
import os, sys
from airflow_mlops.exceptions import DatasetAlreadyClaimed
from airflow_mlops.ledger import datasets
from airflow_mlops.ledger.store import Store
from airflow_mlops.results import DatasetVersion
database, num_processes = sys.argv[1], int(sys.argv[2])
start, starter = os.pipe()
for i in range(num_processes):
    if os.fork() == 0:
        os.close(starter)
        os.read(start, 1)  # returns in all processes at once, when the parent closes its end
        try:
            datasets.claim(Store(database), DatasetVersion("digits", "v1", "sha256:v1", "/"), purpose="dag", run_id=f"run {i}")
        except DatasetAlreadyClaimed as error:
            answer = str(error)
        else:
            answer = f"claimed by run {i}"
        os.write(1, answer.encode() + b"\\n")
        os._exit(0)
os.close(starter)
print(sorted(os.wait()[1] for _ in range(num_processes)), flush=True)
"""


def test_a_version_is_announced_once(store: Store) -> None:
    assert datasets.announce(store, V1)
    assert not datasets.announce(store, V1)
    assert datasets.announce(store, V2)
    assert datasets.announced(store, "digits") == {V1.digest, V2.digest}


def test_datasets_do_not_share_announcements(store: Store) -> None:
    datasets.announce(store, V1)
    assert datasets.announced(store, "letters") == frozenset()
    assert datasets.announce(store, dataset_version("v1", dataset="letters"))


def test_a_broken_version_is_announced_once_and_its_repair_still_is(store: Store) -> None:
    assert datasets.announce_broken(store, "digits", "broken:v1:abc", "v1", "a.csv was altered")
    assert not datasets.announce_broken(store, "digits", "broken:v1:abc", "v1", "a.csv was altered")
    assert datasets.announce(store, V1)
    assert datasets.announced(store, "digits") == {"broken:v1:abc", V1.digest}


def test_a_run_may_claim_its_version_again(store: Store) -> None:
    for _ in range(2):
        datasets.claim(store, V1, purpose="dag", run_id="run 1")
    assert datasets.claimed(store, "digits", purpose="dag") == {V1.digest: "run 1"}


def test_another_run_is_told_who_has_the_version(store: Store) -> None:
    datasets.claim(store, V1, purpose="dag", run_id="run 1")
    with pytest.raises(DatasetAlreadyClaimed, match=r"digits v1 .*belongs to run 'run 1' of 'dag'.*'repeat'") as caught:
        datasets.claim(store, V1, purpose="dag", run_id="run 2")
    assert not caught.value.retryable
    assert datasets.claimed(store, "digits", purpose="dag") == {V1.digest: "run 1"}


def test_pipelines_claim_for_themselves(store: Store) -> None:
    datasets.claim(store, V1, purpose="dag", run_id="run 1")
    datasets.claim(store, V1, purpose="other dag", run_id="run 2")
    assert datasets.claimed(store, "digits", purpose="other dag") == {V1.digest: "run 2"}


def test_of_eight_processes_that_claim_at_once_exactly_one_wins(ledger_url: str) -> None:
    command = [sys.executable, "-c", CLAIM_AT_ONCE, ledger_url, str(NUM_PROCESSES)]
    *answers, exit_codes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert exit_codes == str([0] * NUM_PROCESSES)
    (winner,) = [answer.removeprefix("claimed by ") for answer in answers if answer.startswith("claimed by ")]
    losers = [answer for answer in answers if f"belongs to run '{winner}'" in answer]
    assert len(losers) == NUM_PROCESSES - 1


def test_a_version_waits_from_its_announcement_until_some_run_takes_it(store: Store) -> None:
    assert datasets.waiting(store, "digits") is None
    before = time.time()
    datasets.announce(store, V1)
    waiting = datasets.waiting(store, "digits")
    assert waiting is not None
    assert waiting.name == "v1"
    assert before - 1 <= waiting.since <= time.time() + 1
    datasets.claim(store, V1, purpose="dag", run_id="run 1")
    assert datasets.waiting(store, "digits") is None


def test_of_several_that_wait_the_last_one_counts(store: Store) -> None:
    for version in (V2, V1):
        datasets.announce(store, version)
    waiting = datasets.waiting(store, "digits")
    assert waiting is not None
    assert waiting.name == "v1"
    assert datasets.waiting(store, "letters") is None


def test_a_broken_version_waits_for_nobody(store: Store) -> None:
    datasets.announce_broken(store, "digits", "broken:v1:abc", "v1", "a.csv was altered")
    assert datasets.waiting(store, "digits") is None


def test_the_machines_time_zone_does_not_change_since_when_a_version_waits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        datasets.announce(store, V1)
        waiting = datasets.waiting(store, "digits")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert waiting is not None
    assert waiting.since == pytest.approx(time.time(), abs=5)


def test_the_last_verdict_of_validation_counts_and_needs_no_announcement(store: Store) -> None:
    for reason in ("pixel_3 is negative", "pixel_4 is negative"):
        datasets.record_verdict(store, V1, rejected_because=reason)
    assert datasets.rejected(store, "digits") == {V1.digest: "pixel_4 is negative"}
    assert datasets.rejected(store, "letters") == {}
    datasets.record_verdict(store, V2, rejected_because=None)
    datasets.record_verdict(store, V1, rejected_because=None)
    assert datasets.rejected(store, "digits") == {}


def test_words_that_quote_binary_data_are_kept(store: Store) -> None:
    datasets.record_verdict(store, V1, rejected_because="label is 'a\0b'")
    assert datasets.rejected(store, "digits") == {V1.digest: r"label is 'a\0b'"}
    assert datasets.announce_broken(store, "digits", "broken:v2:abc", "v2", "'a\0b.csv' is missing")
    assert {seen.problem for seen in history.dataset_versions(store)} == {r"'a\0b.csv' is missing"}


def test_history_tells_why_a_version_was_rejected_whether_it_was_announced_or_only_taken(store: Store) -> None:
    datasets.announce(store, V1)
    datasets.claim(store, V2, purpose="dag", run_id="run 1")
    assert [seen.problem for seen in history.dataset_versions(store)] == [None, None]
    for version in (V1, V2):
        datasets.record_verdict(store, version, rejected_because=f"{version.name} has no rows")
    datasets.record_verdict(store, dataset_version("v1", dataset="letters"), rejected_because="other data")
    assert {seen.digest: seen.problem for seen in history.dataset_versions(store)} == {V1.digest: "v1 has no rows", V2.digest: "v2 has no rows"}


def test_every_time_in_the_history_is_utc(store: Store) -> None:
    datasets.announce(store, V1)
    datasets.claim(store, V2, purpose="dag", run_id="run 1")
    once(store, "k", "promote", {}, dict)
    only_taken, announced = history.dataset_versions(store)
    (effect,) = history.effects(store, ["promote"])
    for at in (only_taken.seen_at, only_taken.claims[0].claimed_at, announced.seen_at, effect.asked_at, effect.applied_at):
        assert at is not None
        assert at.tzinfo is UTC
