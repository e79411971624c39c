"""What tasks hand over: by the trail, the newest of each, and only of work that belongs together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from airflow_mlops.exceptions import NotHandedOver
from airflow_mlops.ledger import chain, handovers
from airflow_mlops.ledger.handovers import Task
from airflow_mlops.ledger.store import Store

RUN = "digits_on_dataset/run 1"
REF = {"stage": "train", "uri": "/runs/1/result.json", "digest": "sha256:1"}


def values(store: Store, run: str = RUN) -> dict[str, dict[int, Any]]:
    return {name: {index: one.value for index, one in of_task.items()} for name, of_task in handovers.handed_over(store, run).items()}


def test_of_each_task_the_newest_counts_and_other_runs_do_not(store: Store) -> None:
    handovers.hand_over(store, RUN, Task("train", 0), REF)
    handovers.hand_over(store, RUN, Task("train", 1), 2)
    handovers.hand_over(store, RUN, Task("train", 0, try_number=2), {**REF, "digest": "sha256:2"})
    handovers.hand_over(store, "digits_on_dataset/run 2", Task("train", 0), "another run's")
    assert values(store) == {"train": {0: {**REF, "digest": "sha256:2"}, 1: 2}}
    assert chain.verify(chain.lines(store), [chain.head(store)]).number == 4


def test_runs_whose_names_begin_with_the_same_300_letters_are_different_runs(store: Store) -> None:
    runs = [f"{'d' * 250}/{'r' * 240}{number}" for number in (1, 2)]
    for run in runs:
        handovers.hand_over(store, run, Task("claim"), run)
    assert [values(store, run) for run in runs] == [{"claim": {-1: run}} for run in runs]


def test_the_same_again_is_no_event_unless_a_task_before_it_did_its_work_again(store: Store) -> None:
    before = frozenset({"evaluate"})
    for number in (1, 2):
        handovers.hand_over(store, RUN, Task("evaluate"), number)
        for _ in range(3):
            handovers.hand_over(store, RUN, Task("gate"), "released", before)
    assert [event.details["task_id"] for event in chain.events(store)] == ["evaluate", "gate", "evaluate", "gate"]
    handovers.check(handovers.handed_over(store, RUN), {"gate": before})
    handovers.hand_over(store, RUN, Task("evaluate"), 3)
    with pytest.raises(NotHandedOver, match="'evaluate' ran again after 'gate'"):
        handovers.check(handovers.handed_over(store, RUN), {"gate": before})


def test_mapped_tasks_hand_over_at_the_same_moment_and_are_taken_as_one_list(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: handovers.hand_over(store, RUN, Task("train", index), {**REF, "uri": str(index)}), range(12)))
    handed = handovers.handed_over(store, RUN)
    everything = [{**REF, "uri": str(index)} for index in range(12)]
    assert handovers.take(handed, ["train"], [None, *everything]) == everything
    assert handovers.take(handed, ["train"], everything[3]) == everything[3]
    for wrong in (everything[1:], everything[::-1], [*everything, everything[0]], [], None, float("nan"), object(), {**REF, "uri": "12"}):
        with pytest.raises(NotHandedOver, match=r"Clear 'train' with what follows"):
            handovers.take(handed, ["train"], wrong)


def test_a_task_that_handed_nothing_over_is_named(store: Store) -> None:
    handovers.hand_over(store, RUN, Task("evaluate"), REF)
    with pytest.raises(NotHandedOver, match=r"by 'gate', 'robustness': by the ledger .* clear 'gate', 'robustness' with what follows"):
        handovers.check(handovers.handed_over(store, RUN), {"evaluate": frozenset(), "robustness": frozenset(), "gate": frozenset()})


def test_an_event_whose_columns_were_edited_is_not_taken_for_a_handover(store: Store) -> None:
    with store.transaction() as connection:
        chain.append(connection, chain.Event("note", RUN, RUN, {"task_id": "train", "map_index": -1, "try_number": 1, "value": REF}))
        connection.exec_driver_sql("UPDATE audit_events SET kind = 'handed over'")
    assert values(store) == {}
