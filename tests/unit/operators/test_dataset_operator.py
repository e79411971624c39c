"""The run's dataset version: by event, by name, or the newest usable one, and never that of another run."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from airflow_mlops.data.snapshot import publish_version, write_manifest
from airflow_mlops.exceptions import DatasetNotFound, LedgerUnavailable
from airflow_mlops.ledger import datasets
from airflow_mlops.ledger.store import Store
from airflow_mlops.operators.dataset import ClaimDatasetOperator
from airflow_mlops.results import DatasetVersion, from_data, to_data
from tests.fakes import FakeTaskInstance, context

DAG_ID = FakeTaskInstance().dag_id
OTHER = FakeTaskInstance(run_id="other run")


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    return tmp_path / "inbox"


def publish(inbox: Path, name: str, dataset: str = "digits") -> DatasetVersion:
    return publish_version({"a.csv": f"x,label\n{len(name)},{name}\n".encode()}, inbox, name=name, dataset=dataset)


def event(version: DatasetVersion) -> dict[str, Any]:
    return {"from_trigger": True, "payload": to_data(version)}


def claim(inbox: Path, *events: dict[str, Any], ti: FakeTaskInstance | None = None, **settings: Any) -> DatasetVersion:
    operator = ClaimDatasetOperator(task_id="claim", dataset="digits", inbox=str(inbox), **settings)
    answer = operator.execute(context(ti, extras=events))
    return from_data(DatasetVersion, json.loads(json.dumps(answer)))


def claim_new(inbox: Path, name: str, **settings: Any) -> DatasetVersion:
    publish(inbox, name)
    return claim(inbox, version=name, **settings)


def test_the_constructor_only_assigns_and_its_fields_are_templates(tmp_path: Path) -> None:
    operator = ClaimDatasetOperator(task_id="claim", dataset="{{ params.dataset }}", inbox="{{ params.inbox }}", version="{{ params.version }}")
    assert (operator.dataset, operator.repeat, operator.ledger_conn_id) == ("{{ params.dataset }}", False, "mlops_ledger_default")
    operator.render_template_fields({"params": {"dataset": "digits", "inbox": "/inbox", "version": "v1"}})
    assert (operator.dataset, operator.inbox, operator.version) == ("digits", "/inbox", "v1")


def test_an_event_brings_its_version_and_the_run_takes_it(inbox: Path, ledger: Store) -> None:
    v1, _ = publish(inbox, "v1"), publish(inbox, "v2")
    assert claim(inbox, event(v1)) == v1
    assert datasets.claimed(ledger, "digits", purpose=DAG_ID) == {v1.digest: FakeTaskInstance().run_id}


def test_of_several_events_the_newest_counts_and_all_versions_are_taken(inbox: Path, ledger: Store) -> None:
    versions = [publish(inbox, name) for name in ("v2", "v3", "v1")]
    assert claim(inbox, *map(event, versions)) == versions[-1]
    assert set(datasets.claimed(ledger, "digits", purpose=DAG_ID)) == {version.digest for version in versions}


def test_an_older_version_that_another_run_has_or_that_is_gone_does_not_hold_up_the_newest(inbox: Path, ledger: Store) -> None:
    v1, v2, v3 = (publish(inbox, name) for name in ("v1", "v2", "v3"))
    claim(inbox, event(v1), ti=OTHER)
    shutil.rmtree(v2.uri)
    assert claim(inbox, event(v1), event(v2), event(v3)) == v3
    assert datasets.claimed(ledger, "digits", purpose=DAG_ID)[v1.digest] == OTHER.run_id


def test_an_event_without_a_version_means_the_newest(inbox: Path, ledger: Store) -> None:
    v1 = publish(inbox, "v1")
    assert claim(inbox, {}, {"from_rest_api": True}) == v1


def test_without_an_event_the_newest_complete_version_of_this_dataset_is_taken(inbox: Path, ledger: Store) -> None:
    publish(inbox, "v9")
    newest = publish(inbox, "v10")
    publish(inbox, "letters", dataset="letters")
    (inbox / "v11").mkdir()
    (inbox / "v11" / "manifest.json").write_text("{")
    assert claim(inbox) == newest


def test_a_version_can_be_asked_for_by_name(inbox: Path, ledger: Store) -> None:
    v1, _ = publish(inbox, "v1"), publish(inbox, "v2")
    assert claim(inbox, version="v1") == v1


def test_the_same_run_takes_its_version_again(inbox: Path, ledger: Store) -> None:
    v1 = publish(inbox, "v1")
    assert claim(inbox) == claim(inbox) == v1


def test_a_run_that_is_cleared_keeps_its_version_although_a_newer_one_came_and_its_own_was_rejected(inbox: Path, ledger: Store) -> None:
    v1 = claim_new(inbox, "v1")
    publish(inbox, "v2")
    datasets.record_verdict(ledger, v1, rejected_because="x is negative")
    assert claim(inbox) == v1


def test_a_version_asked_for_by_name_that_another_run_has_fails_the_task(inbox: Path, ledger: Store) -> None:
    claim_new(inbox, "v1", ti=OTHER)
    with pytest.raises(AirflowFailException, match=r"DatasetAlreadyClaimed: .*belongs to run 'other run'"):
        claim(inbox, version="v1")


def test_by_itself_a_run_chooses_the_newest_version_that_no_other_run_has(inbox: Path, ledger: Store) -> None:
    v1 = publish(inbox, "v1")
    claim_new(inbox, "v2", ti=OTHER)
    assert claim(inbox) == v1


@pytest.mark.parametrize("repeat", [False, True])
def test_by_itself_a_run_never_chooses_a_rejected_version_and_by_name_it_does(inbox: Path, ledger: Store, repeat: bool) -> None:
    v1, v2 = publish(inbox, "v1"), publish(inbox, "v2")
    datasets.record_verdict(ledger, v2, rejected_because="x is negative")
    assert claim(inbox, repeat=repeat) == v1
    assert claim(inbox, repeat=repeat, version="v2") == v2


def test_when_every_version_is_rejected_or_taken_the_error_says_so(inbox: Path, ledger: Store) -> None:
    claim_new(inbox, "v1", ti=OTHER)
    datasets.record_verdict(ledger, publish(inbox, "v2"), rejected_because="x is negative")
    with pytest.raises(DatasetNotFound, match="left to work on: validation has rejected 1 so far, other runs have 1"):
        claim(inbox)


def test_an_incomplete_newest_version_leaves_the_one_before_it(inbox: Path, ledger: Store) -> None:
    v1, v2 = publish(inbox, "v1"), publish(inbox, "v2")
    (Path(v2.uri) / "a.csv").unlink()
    assert claim(inbox) == v1


@pytest.mark.parametrize("name", ["../outside", "..", ".", ".staging-x", "v1/", "a/b", "v1\n", "/absolute"])
def test_a_name_that_leads_out_of_the_inbox_is_refused(inbox: Path, ledger: Store, name: str) -> None:
    publish(inbox, "v1")
    publish(inbox.parent, "outside")
    with pytest.raises(AirflowFailException, match=r"SpecError: .* expected the plain name of a directory"):
        claim(inbox, version=str(publish(inbox.parent, "absolute").uri) if name == "/absolute" else name)
    assert datasets.claimed(ledger, "digits", purpose=DAG_ID) == {}


def test_a_version_of_another_dataset_is_refused_and_not_taken(inbox: Path, ledger: Store) -> None:
    letters = publish(inbox, "letters", dataset="letters")
    for events, settings in (([], {"version": "letters"}), ([event(letters)], {})):
        with pytest.raises(AirflowFailException, match=r"SpecError: .*'letters': expected 'digits'"):
            claim(inbox, *events, **settings)
    assert datasets.claimed(ledger, "letters", purpose=DAG_ID) == {}


def test_an_event_may_not_pass_another_dataset_off_as_this_one(inbox: Path, ledger: Store) -> None:
    letters = publish(inbox, "letters", dataset="letters")
    with pytest.raises(AirflowFailException, match=r"SpecError: .*which the ledger has not announced; its manifest is of letters sha256:"):
        claim(inbox, event(dataclasses.replace(letters, dataset="digits")))
    assert datasets.claimed(ledger, "digits", purpose=DAG_ID) == {}


@pytest.mark.parametrize("changes", [{"uri": "{outside}"}, {"uri": "{outside}", "name": "v2"}, {"name": "../outside", "uri": "{outside}"}])
def test_an_event_of_another_place_is_refused_and_not_taken(inbox: Path, ledger: Store, changes: dict[str, str]) -> None:
    publish(inbox, "v1")
    outside = publish(inbox.parent, "outside")
    payload = {**to_data(outside), **{field: text.format(outside=outside.uri) for field, text in changes.items()}}
    with pytest.raises(AirflowFailException, match="SpecError"):
        claim(inbox, {"payload": payload})
    assert datasets.claimed(ledger, "digits", purpose=DAG_ID) == {}


def test_an_event_that_came_twice_skips_the_second_run_and_names_the_first(inbox: Path, ledger: Store) -> None:
    v1 = publish(inbox, "v1")
    claim(inbox, event(v1), ti=OTHER)
    with pytest.raises(AirflowSkipException, match="belongs to run 'other run'"):
        claim(inbox, event(v1))


def test_an_event_that_came_twice_does_not_hide_an_older_version_that_nobody_has(inbox: Path, ledger: Store) -> None:
    v1, v2 = publish(inbox, "v1"), publish(inbox, "v2")
    claim(inbox, event(v2), ti=OTHER)
    assert claim(inbox, event(v1), event(v2)) == v1


def test_repeat_works_on_it_all_the_same_and_takes_it_from_nobody(inbox: Path, ledger: Store) -> None:
    v1 = publish(inbox, "v1")
    claim(inbox, ti=OTHER)
    assert claim(inbox, repeat=True) == v1
    assert datasets.claimed(ledger, "digits", purpose=DAG_ID) == {v1.digest: OTHER.run_id}


def test_an_empty_inbox_may_fill_up(inbox: Path, ledger: Store) -> None:
    inbox.mkdir()
    with pytest.raises(DatasetNotFound, match="holds no complete version of 'digits'"):
        claim(inbox)


def test_a_version_altered_since_its_event_is_refused_yet_taken_so_that_it_holds_up_no_other(inbox: Path, ledger: Store) -> None:
    v1 = publish(inbox, "v1")
    (Path(v1.uri) / "a.csv").write_bytes(b"x,label\n9,v1\n")
    with pytest.raises(AirflowFailException, match=r"ManifestMismatch: .*a\.csv was altered"):
        claim(inbox, event(v1))
    assert datasets.claimed(ledger, "digits", purpose=DAG_ID) == {v1.digest: FakeTaskInstance().run_id}


def test_a_version_corrected_in_place_while_its_run_is_queued_holds_up_no_other(inbox: Path, ledger: Store) -> None:
    old = publish(inbox, "v3")
    datasets.announce(ledger, old)
    (Path(old.uri) / "a.csv").write_bytes(b"x,label\n7,v3\n")
    write_manifest(Path(old.uri), "digits")
    with pytest.raises(AirflowFailException, match=r"ManifestMismatch: .*holds another version"):
        claim(inbox, event(old))
    assert datasets.waiting(ledger, "digits") == ()


def test_an_event_with_another_payload_is_refused(inbox: Path, ledger: Store) -> None:
    with pytest.raises(AirflowFailException, match="payload of the dataset's asset event is not a DatasetVersion"):
        claim(inbox, {"payload": {"dataset": "digits"}})


def test_a_ledger_that_does_not_answer_is_worth_a_retry(inbox: Path, connect: Any, tmp_path: Path) -> None:
    publish(inbox, "v1")
    connect("mlops_ledger_default", "mlops_ledger", schema=str(tmp_path / "nowhere" / "ledger.db"))
    with pytest.raises(LedgerUnavailable):
        claim(inbox)


def test_the_newest_is_what_the_ledger_saw_last_whatever_happens_to_files_afterwards(inbox: Path, ledger: Store) -> None:
    for name in ("v1", "v2"):
        publish(inbox, name)
    assert claim(inbox, repeat=True).name == "v2"
    (inbox / "v1").chmod(0o700)
    shutil.copytree(inbox / "v1", inbox.parent / "backup", copy_function=os.link)
    for path in (inbox / "v1").iterdir():
        os.utime(path, (4e9, 4e9))
    assert claim(inbox, ti=OTHER, repeat=True).name == "v2"
    late = publish(inbox, "a-late-one")
    os.utime(inbox / "a-late-one" / "manifest.json", (0, 0))
    assert claim(inbox, ti=FakeTaskInstance(run_id="third"), repeat=True) == late


def test_of_versions_that_the_ledger_sees_at_once_the_last_by_name_is_the_newest(inbox: Path, ledger: Store) -> None:
    for name in ("v10", "v9", "v1"):
        publish(inbox, name)
    assert claim(inbox).name == "v10"


def test_joined_events_count_in_the_order_of_the_ledger_and_not_of_their_times(inbox: Path, ledger: Store) -> None:
    v1, v2 = publish(inbox, "v1"), publish(inbox, "v2")
    for version in (v1, v2):
        datasets.announce(ledger, version)
    assert claim(inbox, event(v2), event(v1)) == v2, "the older one was offered again"


@pytest.mark.parametrize(
    "forged",
    [
        lambda v1, v2: {**to_data(v1), "digest": v2.digest},
        lambda v1, v2: {**to_data(v2), "name": "v1", "uri": v1.uri},
        lambda v1, v2: {**to_data(v2), "digest": "sha256:" + "0" * 64},
        lambda v1, v2: {**to_data(v2), "digest": ""},
        lambda v1, v2: {**to_data(v2), "uri": "/etc"},
        lambda v1, v2: {**to_data(v2), "name": "v3"},
        lambda v1, v2: {**to_data(v2), "name": "v\n2"},
        lambda v1, v2: {**to_data(v2), "name": "\ud800"},
        lambda v1, v2: {**to_data(v2), "dataset": "letters"},
        lambda v1, v2: {**to_data(v2), "digest": "a\0b"},
        lambda v1, v2: {**to_data(v2), "dataset": "x" * 10_000},
        lambda v1, v2: {"name": "v2"},
        lambda v1, v2: None,
        lambda v1, v2: ["v2"],
    ],
)
@pytest.mark.parametrize("announced", [True, False])
def test_a_forged_event_is_refused_and_the_real_version_keeps_its_turn(inbox: Path, ledger: Store, forged: Any, announced: bool) -> None:
    v1, v2 = publish(inbox, "v1"), publish(inbox, "v2")
    for version in (v1, v2) if announced else ():
        datasets.announce(ledger, version)
    before = datasets.waiting(ledger, "digits")
    payload = {"from_rest_api": True, "payload": forged(v1, v2)}
    with pytest.raises(AirflowFailException, match=r"(SpecError|ResultInvalid): "):
        claim(inbox, payload)
    assert datasets.claimed(ledger, "digits", purpose=DAG_ID) == {}
    assert datasets.waiting(ledger, "digits") == before
    assert claim(inbox, payload, event(v2), payload, ti=OTHER) == v2, "together with a real event it changes nothing"


def test_an_event_by_hand_that_says_what_the_manifest_says_is_as_good_as_the_triggers(inbox: Path, ledger: Store) -> None:
    v1 = publish(inbox, "v1")
    assert claim(inbox, {"from_rest_api": True, "payload": to_data(v1)}) == v1


def test_a_run_by_hand_that_takes_an_announced_version_leaves_its_event_its_turn(inbox: Path, ledger: Store) -> None:
    v1 = publish(inbox, "v1")
    datasets.announce(ledger, v1)
    assert claim(inbox, ti=OTHER) == v1
    assert [one.version for one in datasets.waiting(ledger, "digits")] == [v1]
    with pytest.raises(AirflowSkipException):
        claim(inbox, event(v1))
    assert datasets.waiting(ledger, "digits") == ()


def test_an_announced_version_that_is_refused_holds_up_no_other(inbox: Path, ledger: Store) -> None:
    v1 = publish(inbox, "v1")
    elsewhere = publish(inbox.parent / "elsewhere", "v2")
    for version in (v1, elsewhere):
        datasets.announce(ledger, version)
    with pytest.raises(AirflowFailException, match="Watch the inbox that this task reads"):
        claim(inbox, event(elsewhere))
    assert [one.version.name for one in datasets.waiting(ledger, "digits")] == ["v1"]
