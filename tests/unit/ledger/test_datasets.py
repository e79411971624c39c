"""A dataset version is announced once, and one run works on it."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC

import pytest

from airflow_mlops.exceptions import DatasetAlreadyClaimed, LedgerError
from airflow_mlops.ledger import datasets, history
from airflow_mlops.ledger.journal import once
from airflow_mlops.ledger.store import Store
from tests.fakes import dataset_version

HOSTILE = "a\0b\n\x1b[31m"
V1, V2 = dataset_version("v1"), dataset_version("v2")
NUM_PROCESSES = 8

CLAIM_AT_ONCE = """
import os, sys
from airflow_mlops.exceptions import DatasetAlreadyClaimed, LedgerError
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


def waiting(store: Store, dataset: str = "digits") -> list[str]:
    return [one.version.name for one in datasets.waiting(store, dataset)]


def test_a_version_waits_from_its_announcement_until_the_run_of_its_event_takes_it(store: Store) -> None:
    assert waiting(store) == []
    before = time.time()
    datasets.announce(store, V1)
    (one,) = datasets.waiting(store, "digits")
    assert one.version == V1
    assert before - 1 <= one.since <= one.offered_at <= time.time() + 1
    datasets.claim(store, V1, purpose="dag", run_id="run 1")
    assert waiting(store) == []


def test_a_run_by_hand_that_claims_an_announced_version_does_not_take_the_turn_of_its_event(store: Store) -> None:
    datasets.announce(store, V1)
    datasets.claim(store, V1, purpose="dag", run_id="by hand", of_event=False)
    assert waiting(store) == ["v1"]
    with pytest.raises(DatasetAlreadyClaimed, match="'by hand'"):
        datasets.claim(store, V1, purpose="dag", run_id="by event")
    assert waiting(store) == [], "its own run came, and left the version to the other"


def test_a_version_that_is_offered_again_waits_since_it_was_first_announced(store: Store) -> None:
    datasets.announce(store, V1)
    (first,) = datasets.waiting(store, "digits")
    time.sleep(0.01)
    assert not datasets.announce(store, V1)
    (again,) = datasets.waiting(store, "digits")
    assert (again.since, again.version) == (first.since, V1)
    assert again.offered_at > first.offered_at


def test_those_that_wait_come_in_the_order_of_their_announcements(store: Store) -> None:
    for version in (V2, V1):
        datasets.announce(store, version)
    assert waiting(store) == ["v2", "v1"]
    assert waiting(store, "letters") == []


def test_each_pipeline_that_follows_the_events_is_waited_for_and_a_stalled_one_only_once(store: Store) -> None:
    v1, v2, v3 = (dataset_version(name) for name in ("v1", "v2", "v3"))
    for pipeline in ("one", "two"):
        datasets.announce(store, v1)
        datasets.claim(store, v1, purpose=pipeline, run_id="r")
    datasets.announce(store, v2)
    datasets.claim(store, v2, purpose="one", run_id="r")
    assert waiting(store) == ["v2"], "the event has yet to start a run of the other pipeline"
    datasets.announce(store, v3)
    datasets.claim(store, v3, purpose="one", run_id="r")
    assert waiting(store) == ["v2"]
    datasets.claim(store, v2, purpose="two", run_id="r")
    assert waiting(store) == ["v3"], "it resumed, so it gets the next one, too"
    datasets.claim(store, v3, purpose="two", run_id="r")
    assert waiting(store) == []


def test_a_repeated_run_takes_the_turn_of_its_pipeline(store: Store) -> None:
    for version, purpose in ((V1, "dag"), (V2, "dag/run 2")):
        datasets.announce(store, version)
        datasets.claim(store, version, purpose=purpose, run_id="run 2")
    assert waiting(store) == []


def test_versions_keep_the_order_in_which_they_were_seen(store: Store) -> None:
    assert datasets.see(store, "digits", ["b", "a"]) == {"b": 1, "a": 2}
    assert datasets.see(store, "digits", ["c", "a", "b", "c"]) == {"b": 1, "a": 2, "c": 3}
    assert datasets.see(store, "letters", ["c"]) == {"c": 1}
    assert datasets.numbers(store, "digits") == {"b": 1, "a": 2, "c": 3}


def test_of_processes_that_see_versions_at_once_each_version_has_one_number(ledger_url: str) -> None:
    Store(ledger_url).close()
    code = (
        "import sys; from airflow_mlops.ledger import datasets; from airflow_mlops.ledger.store import Store; store = Store(sys.argv[1]);"
        "sys.stdin.read(); [datasets.see(store, 'digits', [f'{name}{i}' for name in sys.argv[2]]) for i in range(10)]"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, ledger_url, names], stdin=subprocess.PIPE) for names in ("abc", "bcd", "dae")]
    for process in running:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait() for process in running] == [0] * 3
    store = Store(ledger_url)
    assert sorted(datasets.numbers(store, "digits").values()) == list(range(1, 51))
    store.close()


def test_a_broken_version_waits_for_nobody(store: Store) -> None:
    datasets.announce_broken(store, "digits", "broken:v1:abc", "v1", "a.csv was altered")
    assert waiting(store) == []


def test_the_machines_time_zone_does_not_change_since_when_a_version_waits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        datasets.announce(store, V1)
        (one,) = datasets.waiting(store, "digits")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert abs(one.since - time.time()) < 600


def test_an_event_that_is_refused_takes_the_turn_of_what_was_announced_and_of_nothing_else(store: Store) -> None:
    datasets.announce(store, V1)
    for forged in (dataset_version("v2", digest=V1.digest), dataset_version("v1", uri="/elsewhere"), dataset_version("v1", digest="sha256:other")):
        with pytest.raises(LedgerError), datasets.turn_even_if_refused(store, forged, purpose="dag", run_id="r"):
            raise LedgerError("refused")
    assert waiting(store) == ["v1"]
    with pytest.raises(LedgerError), datasets.turn_even_if_refused(store, V1, purpose="dag", run_id="r"):
        raise LedgerError("refused")
    assert waiting(store) == []


@pytest.mark.parametrize("odd", [HOSTILE, "v\udcff\udcfe1", "x" * 5000, "\u202e" * 255], ids=["control", "no UTF-8", "long", "direction"])
def test_whatever_a_broken_version_is_called_it_is_remembered_under_a_name_that_every_database_takes(store: Store, odd: str) -> None:
    assert datasets.announce_broken(store, "digits", "broken:x", odd, odd)
    (seen,) = history.dataset_versions(store)
    assert seen.name is not None and seen.name.isprintable() and len(seen.name) <= 250
    assert seen.problem is not None and seen.problem.isprintable()


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
    assert datasets.rejected(store, "digits") == {V1.digest: r"label is 'a\x00b'"}
    assert datasets.announce_broken(store, "digits", "broken:v2:abc", "v2", "'a\0b.csv' is missing")
    assert {seen.problem for seen in history.dataset_versions(store)} == {r"'a\x00b.csv' is missing"}


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
