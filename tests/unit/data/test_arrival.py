"""A complete version is announced once, and again only if no run came of it; a broken one after it settled; file times decide nothing."""

from __future__ import annotations

import random

import pytest

from airflow_mlops.data.arrival import AnnounceBroken, AnnounceComplete, ArrivalPolicy, Candidate, Observation, Untaken, decide, natural
from airflow_mlops.exceptions import SpecError
from airflow_mlops.results import DatasetVersion

POLICY = ArrivalPolicy(settle_seconds=60, hold_seconds=1000, offer_again_seconds=100)


def described(name: str, digest: str) -> DatasetVersion:
    return DatasetVersion("digits", name, digest, f"/inbox/{name}")


def complete(name: str, key: str) -> Candidate:
    return Candidate(name, key, described(name, key))


def broken(name: str, since: float, key: str = "broken") -> Candidate:
    return Candidate(name, key, problem="a.csv was altered", since=since)


@pytest.mark.parametrize(
    ("candidates", "announced", "now", "expected"),
    [
        ((), (), 100.0, []),
        ((complete("v1", "d1"),), (), 0.0, ["d1"]),
        ((complete("v1", "d1"),), ("d1",), 100.0, []),
        ((complete("v10", "d10"), complete("v9", "d9")), (), 20.0, ["d9"]),
        ((complete("v10", "d10"), complete("v9", "d9")), ("d9",), 20.0, ["d10"]),
        ((complete("v1", "d1"), complete("copy", "d1")), (), 0.0, ["d1"]),
        ((complete("v1", "rewritten"),), ("d1",), 0.0, ["rewritten"]),
        ((broken("v1", 100.0),), (), 159.9, []),
        ((broken("v1", 100.0),), (), 160.0, ["broken"]),
        ((broken("v1", 100.0),), ("broken",), 160.0, []),
        ((broken("v1", 100.0),), (), 50.0, []),
        ((complete("v1", "d1"),), ("broken",), 160.0, ["d1"]),
        ((broken("a", 100.0), complete("b", "d1")), (), 100.0, ["d1"]),
    ],
    ids=[
        "nothing is there",
        "a complete version needs no settling",
        "what was announced is not announced again",
        "of several the oldest is announced first",
        "then the next",
        "the same content twice is one version",
        "a rewrite is a new version",
        "a mismatch may still be an upload",
        "a settled mismatch is broken",
        "a broken version is told once",
        "a clock that was set back waits",
        "a repaired version is complete after all",
        "a broken version does not hold up the others",
    ],
)
def test_decide(candidates: tuple[Candidate, ...], announced: tuple[str, ...], now: float, expected: list[str]) -> None:
    order = {"d9": 1, "d10": 2}
    assert [action.key for action in decide(Observation(candidates, frozenset(announced), order), now, POLICY)] == expected


def test_a_broken_version_is_announced_with_its_reason_and_a_complete_one_with_its_record() -> None:
    observation = Observation((complete("a", "d1"), broken("b", 0.0)))
    assert decide(observation, 60.0, POLICY) == (AnnounceBroken("broken", "b", "a.csv was altered"), AnnounceComplete("d1", described("a", "d1")))


@pytest.mark.parametrize("field", ["settle_seconds", "hold_seconds", "offer_again_seconds"])
@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_an_impossible_time_is_refused(field: str, seconds: float) -> None:
    with pytest.raises(SpecError, match=field):
        ArrivalPolicy(**{field: seconds})


def test_the_ledgers_order_counts_and_not_that_of_names_or_of_the_look() -> None:
    candidates = [complete(name, name) for name in ("v1", "v2", "v3")]
    random.Random(1).shuffle(candidates)
    announced: set[str] = set()
    for expected in ("v2", "v3", "v1"):
        (action,) = decide(Observation(tuple(candidates), frozenset(announced), {"v2": 1, "v3": 2, "v1": 3}), 0.0, POLICY)
        assert action.key == expected
        announced.add(action.key)


@pytest.mark.parametrize("untaken", [(), (Untaken(described("v1", "d1"), 900.0, 900.0),)])
def test_while_airflow_has_yet_to_store_an_event_no_other_is_sent(untaken: tuple[Untaken, ...]) -> None:
    observation = Observation((complete("v2", "d2"), broken("v3", 3.0)), frozenset({"d1"}), untaken=untaken, pending=True)
    assert [action.key for action in decide(observation, 5000.0, POLICY)] == ["broken"]


def held(now: float, *untaken: Untaken) -> list[str]:
    candidates = (complete("v9", "d9"), broken("b", 3.0))
    observation = Observation(candidates, frozenset(one.version.digest for one in untaken), untaken=untaken)
    return [
        f"{action.key} again" if isinstance(action, AnnounceComplete) and action.again else action.key for action in decide(observation, now, POLICY)
    ]


def test_a_version_waits_until_the_run_of_the_one_before_it_has_begun_or_the_wait_is_over() -> None:
    waiting = Untaken(described("v1", "d1"), 1000.0, 1950.0)
    assert held(1999.9, waiting) == ["broken"]
    assert held(2000.0, waiting) == ["broken", "d9"]


def test_an_announced_version_that_no_run_took_is_offered_again_and_each_time_after_twice_as_long() -> None:
    offered, times = 0.0, list[float]()
    for now in range(0, 3001, 10):
        if "d1 again" in held(float(now), Untaken(described("v1", "d1"), 0.0, offered)):
            offered = float(now)
            times.append(offered)
    assert times == [100.0, 200.0, 400.0, 800.0, 1600.0]


def test_of_several_that_no_run_took_the_one_that_was_not_offered_for_longest_is_offered() -> None:
    one, other = Untaken(described("v1", "d1"), 0.0, 500.0), Untaken(described("v2", "d2"), 400.0, 400.0)
    assert held(560.0, one, other) == ["broken", "d2 again"]
    assert held(900.0, one, Untaken(described("v2", "d2"), 400.0, 900.0)) == ["broken"]
    assert held(1000.0, one, Untaken(described("v2", "d2"), 400.0, 900.0)) == ["broken", "d1 again"]


def test_a_clock_that_was_wrong_delays_nothing_without_end() -> None:
    ahead = Untaken(described("v1", "d1"), 1e9, 1e9)
    assert held(100.0, ahead) == ["broken", "d1 again"]
    assert held(100.0, ahead._replace(offered_at=50.0)) == ["broken", "d9"]


def test_names_are_sorted_as_people_sort_them() -> None:
    names = ["v10", "v9", "v9b", "2026-01-02", "2026-01-01", "a", "v09", "v9"]
    assert sorted(names, key=natural) == ["2026-01-01", "2026-01-02", "a", "v09", "v9", "v9", "v9b", "v10"]
