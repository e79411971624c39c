from __future__ import annotations

from typing import Any

import pytest

from airflow_mlops.exceptions import SpecError
from airflow_mlops.serving.availability import Available, Fail, VersionStatus, Wait, decide, version_number, worst

AVAILABLE, LOADING, END = VersionStatus("AVAILABLE"), VersionStatus("LOADING"), VersionStatus("END")
BROKEN = VersionStatus("END", "no graph")
BEFORE, AT = 99.0, 100.0  # the deadline is at 100


@pytest.mark.parametrize(
    ("observation", "now", "expected"),
    [
        ({"a:1": {1: AVAILABLE, 2: AVAILABLE}}, BEFORE, Available()),
        ({"a:1": {2: AVAILABLE}, "b:1": {2: AVAILABLE}}, BEFORE, Available()),
        ({"a:1": {2: AVAILABLE}, "b:1": {2: AVAILABLE}}, 200.0, Available()),
        ({"a:1": {2: AVAILABLE}, "b:1": {2: LOADING}}, BEFORE, Wait()),
        ({"a:1": {2: AVAILABLE}, "b:1": {1: AVAILABLE}}, BEFORE, Wait()),
        ({"a:1": {2: AVAILABLE}, "b:1": {}}, BEFORE, Wait()),
        ({"a:1": {2: AVAILABLE}, "b:1": None}, BEFORE, Wait()),
        ({"a:1": {2: END}}, BEFORE, Wait()),
        ({}, BEFORE, Wait()),
        ({"a:1": {2: AVAILABLE}, "b:1": {2: BROKEN}}, BEFORE, Fail("replica b:1 could not load version 2: no graph")),
        ({"a:1": None, "b:1": {2: BROKEN}}, 200.0, Fail("replica b:1 could not load version 2: no graph")),
        ({"a:1": {1: BROKEN, 2: AVAILABLE}}, BEFORE, Available()),
        (
            {"a:1": {2: BROKEN}, "b:1": {2: BROKEN}},
            BEFORE,
            Fail("replica a:1 could not load version 2: no graph; replica b:1 could not load version 2: no graph"),
        ),
    ],
)
def test_a_version_is_there_once_every_replica_has_it(observation: Any, now: float, expected: Any) -> None:
    assert decide(observation, 2, now, deadline=100.0) == expected


@pytest.mark.parametrize(
    ("observation", "missing"),
    [
        ({"a:1": {2: AVAILABLE}, "b:1": {2: LOADING}}, "LOADING on b:1"),
        ({"a:1": {1: AVAILABLE}, "b:1": None, "c:1": {2: END}}, "unknown to a:1, no answer from b:1, END on c:1"),
        ({}, "there is none"),
    ],
)
def test_who_waits_and_who_gives_up_says_which_replica_is_not_ready(observation: Any, missing: str) -> None:
    reason = f"version 2 is not AVAILABLE on every replica: {missing}"
    waiting = decide(observation, 2, BEFORE, deadline=100.0)
    assert isinstance(waiting, Wait) and waiting.reason == reason
    assert decide(observation, 2, AT, deadline=100.0) == Fail(f"at the deadline {reason}", timed_out=True)


def test_a_version_that_could_not_be_loaded_may_be_waited_for_all_the_same() -> None:
    observation = {"a:1": {2: BROKEN}}
    assert decide(observation, 2, BEFORE, deadline=100.0, fail_on_load_error=False) == Wait()
    late = decide(observation, 2, AT, deadline=100.0, fail_on_load_error=False)
    assert late == Fail("at the deadline version 2 is not AVAILABLE on every replica: END on a:1 (no graph)", timed_out=True)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((AVAILABLE, AVAILABLE), AVAILABLE),
        ((AVAILABLE, LOADING), LOADING),
        ((VersionStatus("UNLOADING"), AVAILABLE), VersionStatus("UNLOADING")),
        ((LOADING, VersionStatus("START")), VersionStatus("START")),
        ((AVAILABLE, None), VersionStatus("START")),
        ((END, None), END),
        ((BROKEN, END), VersionStatus("END", "replica 0: no graph")),
        ((AVAILABLE, BROKEN), VersionStatus("END", "replica 1: no graph")),
    ],
)
def test_the_worst_state_over_the_replicas_is_the_version_s(states: tuple[VersionStatus | None, ...], expected: VersionStatus) -> None:
    assert worst({str(index): {7: status} if status else {} for index, status in enumerate(states)}) == {7: expected}


def test_versions_that_only_some_know_are_listed_too() -> None:
    seen = worst({"a": {1: AVAILABLE, 2: AVAILABLE}, "b": {2: AVAILABLE, 3: LOADING}})
    assert seen == {1: VersionStatus("START"), 2: AVAILABLE, 3: VersionStatus("START")}


@pytest.mark.parametrize(("value", "number"), [(7, 7), ("7", 7), (" 42 ", 42), (0, 0), (str(2**63 - 1), 2**63 - 1)])
def test_a_version_is_a_number_or_its_text(value: Any, number: int) -> None:
    assert version_number(value) == number


@pytest.mark.parametrize("value", ["", "latest", "7.0", 7.0, -1, "-1", True, None, "\u0667", "1e3", 2**63, {"version": 7}, "{{ version }}"])
def test_anything_else_is_no_version(value: Any) -> None:
    with pytest.raises(SpecError, match=r"version is .*; expected a whole number from 0 to 2\*\*63 - 1"):
        version_number(value)
