"""The states of model versions, without a clock, a disk or a process: servables are words, `now` is a number."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.embedded.refusal import Refusal
from airflow_mlops.serving.embedded.versions import RetryPolicy, Version, Versions
from airflow_mlops.serving.protos import model_server_config_pb2

POLICY = RetryPolicy(max_load_retries=1, retry_seconds=10.0, max_restart_seconds=30.0, steady_seconds=60.0)
BASE = Path("/models/m")


@pytest.fixture
def versions() -> Versions[str]:
    return Versions(POLICY)


def serving(*numbers: int, base: Path = BASE, **labels: int) -> ServerConfig:
    return ServerConfig((ModelConfig("m", str(base), numbers, labels),))


def by_policy(text: str) -> ServerConfig:
    message = model_server_config_pb2.ModelConfig(name="m", base_path=str(BASE))
    getattr(message.model_version_policy, text).SetInParent()
    return ServerConfig((ModelConfig.from_proto(message),))


def disk(*numbers: int, base: Path = BASE) -> dict[str, Mapping[int, Path]]:
    return {"m": {number: base / str(number) for number in numbers}}


def due(versions: Versions[str], now: float = 0.0) -> Version[str]:
    """Return what is to be loaded now, its load begun."""
    entry = versions.due(now)
    assert entry is not None
    versions.begin(entry)
    return entry


def load(versions: Versions[str], now: float = 0.0) -> None:
    """Load everything that is due; each servable is the directory's name."""
    while entry := versions.due(now):
        versions.begin(entry)
        versions.loaded(entry, str(entry.path), now)


def fail(versions: Versions[str], now: float = 0.0) -> None:
    """Fail one load as often as it may be tried."""
    entry = due(versions, now)
    versions.failed(entry, "no graph in it", now)
    for _ in range(POLICY.max_load_retries):
        now = entry.try_at
        assert due(versions, now) is entry
        versions.failed(entry, "no graph in it", now)
    assert entry.state == "END"


def states(versions: Versions[str], name: str = "m") -> dict[int, str]:
    try:
        return {number: state for number, state, _ in versions.states(name)}
    except Refusal:
        return {}


def released(versions: Versions[str]) -> list[str]:
    taken = sorted(versions.released)
    versions.released.clear()
    return taken


class TestWhatIsServed:
    def test_specific_versions_are_loaded_and_the_latest_loaded_answers(self, versions: Versions[str]) -> None:
        versions.configure(serving(1, 2), disk(1, 2, 3))
        assert states(versions) == {2: "START", 1: "START"}
        assert due(versions).number == 2  # the latest first
        assert states(versions) == {2: "LOADING", 1: "START"}
        load(versions)
        assert versions.resolve("m") == (1, "/models/m/1")  # the latest that is loaded, not the latest that is wanted

    def test_without_a_policy_the_latest_version_is_served_as_it_appears(self, versions: Versions[str]) -> None:
        versions.configure(serving(), disk(1))
        load(versions)
        versions.look(disk(1, 2))
        load(versions)
        assert versions.resolve("m") == (2, "/models/m/2")
        assert states(versions) == {2: "AVAILABLE", 1: "END"}
        assert released(versions) == ["/models/m/1"]

    def test_all_versions_are_served_where_the_policy_says_so(self, versions: Versions[str]) -> None:
        versions.configure(by_policy("all"), disk(1, 2, 3))
        load(versions)
        assert states(versions) == dict.fromkeys((1, 2, 3), "AVAILABLE")

    def test_the_states_are_listed_from_the_latest_version_to_the_first(self, versions: Versions[str]) -> None:
        versions.configure(by_policy("all"), disk(10, 9, 101))
        assert [number for number, _, _ in versions.states("m")] == [101, 10, 9]
        assert versions.states("m", 9) == [(9, "START", "")]

    def test_a_version_that_is_asked_for_by_number_answers_or_is_not_found(self, versions: Versions[str]) -> None:
        versions.configure(serving(1, 2), disk(1, 2))
        load(versions)
        assert versions.resolve("m", 1) == (1, "/models/m/1")
        with pytest.raises(Refusal, match=r"Servable not found for request: Specific\(m, 3\)") as refused:
            versions.resolve("m", 3)
        assert refused.value.code is grpc.StatusCode.NOT_FOUND
        with pytest.raises(Refusal, match="Could not find version 3 of model m"):
            versions.states("m", 3)

    @pytest.mark.parametrize(("version", "words"), [(None, r"Latest\(nobody\)"), (1, r"Specific\(nobody, 1\)")])
    def test_an_unknown_model_is_not_found(self, versions: Versions[str], version: int | None, words: str) -> None:
        with pytest.raises(Refusal, match=f"Servable not found for request: {words}"):
            versions.resolve("nobody", version)
        with pytest.raises(Refusal, match="Could not find any versions of model nobody"):
            versions.states("nobody")

    def test_version_zero_is_a_version(self, versions: Versions[str]) -> None:
        versions.configure(serving(), disk(0))
        load(versions)
        assert versions.resolve("m") == (0, "/models/m/0")
        assert versions.states("m", 0) == [(0, "AVAILABLE", "")]

    def test_a_missing_base_path_is_served_once_it_is_there(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), {"m": {}})
        assert versions.due(0.0) is None and versions.due_at() is None
        versions.look(disk(1))
        load(versions)
        assert versions.resolve("m")[0] == 1

    def test_an_emptied_base_path_takes_nothing_out_of_service(self, versions: Versions[str]) -> None:
        versions.configure(serving(), disk(1))
        load(versions)
        for listing in ({"m": {}}, {}):
            versions.look(listing)
            assert (versions.resolve("m")[0], states(versions), versions.released) == (1, {1: "AVAILABLE"}, [])

    def test_a_disk_that_is_lost_for_a_moment_does_not_make_a_version_unwanted_that_is_still_to_be_loaded(self, versions: Versions[str]) -> None:
        versions.configure(serving(), disk(1))
        versions.look({"m": {}})
        load(versions)
        assert versions.resolve("m")[0] == 1

    def test_a_specific_version_that_was_deleted_is_served_on_beside_what_is_there(self, versions: Versions[str]) -> None:
        versions.configure(serving(1, 2), disk(1, 2))
        load(versions)
        versions.look(disk(2))
        assert states(versions) == {2: "AVAILABLE", 1: "AVAILABLE"}

    def test_one_models_missing_path_does_not_keep_another_from_its_new_version(self, versions: Versions[str]) -> None:
        config = ServerConfig((ModelConfig("m", str(BASE)), ModelConfig("b", "/models/b")))
        versions.configure(config, {"m": {}, "b": {1: Path("/models/b/1")}})
        load(versions)
        versions.look({"m": {}, "b": {2: Path("/models/b/2")}})
        load(versions)
        assert versions.resolve("b")[0] == 2


class TestSwitching:
    def test_the_old_version_serves_until_the_new_one_is_available(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        load(versions)
        versions.configure(serving(2), disk(1, 2))
        new = due(versions)
        assert states(versions) == {2: "LOADING", 1: "AVAILABLE"}
        assert versions.resolve("m")[0] == 1
        versions.loaded(new, "two", 0.0)
        assert states(versions) == {2: "AVAILABLE", 1: "END"}
        assert versions.resolve("m") == (2, "two")
        assert released(versions) == ["/models/m/1"]

    def test_a_version_that_was_never_loaded_ends_too_when_another_serves(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1, 2))
        versions.configure(serving(2), disk(1, 2))
        entry = due(versions)
        assert entry.number == 2  # the one that is no longer wanted is not loaded any more
        assert versions.due(0.0) is None
        versions.loaded(entry, "two", 0.0)
        assert states(versions) == {2: "AVAILABLE", 1: "END"}

    def test_a_reload_that_names_only_versions_that_are_not_there_takes_nothing_out_of_service(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        load(versions)
        versions.configure(serving(2), disk(1))
        assert versions.resolve("m")[0] == 1
        versions.look(disk(1, 2))
        load(versions)
        assert versions.resolve("m")[0] == 2
        assert states(versions) == {2: "AVAILABLE", 1: "END"}

    def test_going_back_to_a_version_that_ended_loads_it_again(self, versions: Versions[str]) -> None:
        for number in (1, 2, 1):
            versions.configure(serving(number), disk(1, 2))
            load(versions)
        assert versions.resolve("m") == (1, "/models/m/1")
        assert states(versions) == {2: "END", 1: "AVAILABLE"}
        assert released(versions) == ["/models/m/1", "/models/m/2"]

    def test_a_model_that_is_no_longer_configured_is_unloaded(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        load(versions)
        versions.configure(ServerConfig(), {})
        assert states(versions) == {1: "END"}  # and stays listed
        assert released(versions) == ["/models/m/1"]
        with pytest.raises(Refusal, match=r"Servable not found for request: Latest\(m\)"):
            versions.resolve("m")

    def test_a_load_that_ends_after_its_model_was_dropped_is_let_go_at_once(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        entry = due(versions)
        versions.configure(ServerConfig(), {})
        versions.loaded(entry, "late", 0.0)
        assert (states(versions), released(versions)) == ({1: "END"}, ["late"])

    def test_a_load_that_fails_after_its_model_was_dropped_is_not_tried_again(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        entry = due(versions)
        versions.configure(ServerConfig(), {})
        versions.failed(entry, "too late", 0.0)
        assert versions.states("m") == [(1, "END", "")]
        assert versions.due_at() is None

    def test_a_model_that_comes_back_while_its_first_load_runs_gets_one_servable(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        first = due(versions)
        versions.configure(ServerConfig(), {})
        versions.configure(serving(1), disk(1))
        second = due(versions)
        assert second is not first
        versions.loaded(second, "second", 0.0)
        versions.loaded(first, "first", 0.0)
        assert versions.resolve("m") == (1, "second")
        assert released(versions) == ["first"]

    def test_a_version_that_is_loaded_after_it_was_replaced_by_none_better_still_serves(self, versions: Versions[str]) -> None:
        """Nothing wanted is there, so what is there is better than nothing."""
        versions.configure(serving(1), disk(1))
        entry = due(versions)
        versions.configure(serving(2), disk(1))
        versions.loaded(entry, "one", 0.0)
        assert versions.resolve("m") == (1, "one")


class TestReplacedPath:
    ELSEWHERE = Path("/elsewhere/m")

    @pytest.fixture
    def moved(self, versions: Versions[str]) -> Versions[str]:
        versions.configure(serving(1), disk(1))
        load(versions)
        versions.configure(serving(1, base=self.ELSEWHERE), disk(1, base=self.ELSEWHERE))
        return versions

    def test_a_changed_base_path_replaces_the_version_of_the_same_number_without_a_gap(self, moved: Versions[str]) -> None:
        assert moved.resolve("m", 1) == (1, "/models/m/1")
        entry = due(moved)
        assert (entry.path, states(moved)) == (self.ELSEWHERE / "1", {1: "LOADING"})
        assert moved.resolve("m", 1) == (1, "/models/m/1")
        moved.loaded(entry, "new", 0.0)
        assert moved.resolve("m", 1) == (1, "new")
        assert released(moved) == ["/models/m/1"]

    def test_a_version_that_was_moved_and_deleted_is_not_taken_for_the_one_under_the_new_path(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        load(versions)
        versions.configure(serving(1, base=self.ELSEWHERE), disk(2, base=self.ELSEWHERE))
        versions.look(disk(1, 2, base=self.ELSEWHERE))
        load(versions)
        assert versions.resolve("m") == (1, "/elsewhere/m/1")

    def test_a_path_that_is_written_as_a_file_uri_is_the_same_path(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        load(versions)
        versions.configure(ServerConfig((ModelConfig("m", f"file://{BASE}", (1,)),)), disk(2))
        assert states(versions) == {1: "AVAILABLE"}
        assert versions.released == []

    def test_a_load_of_the_old_path_that_ends_late_is_let_go(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        old = due(versions)
        versions.configure(serving(1, base=self.ELSEWHERE), disk(1, base=self.ELSEWHERE))
        versions.loaded(old, "old", 0.0)
        load(versions)
        assert versions.resolve("m") == (1, "/elsewhere/m/1")
        assert released(versions) == ["old"]

    def test_a_new_path_that_cannot_be_loaded_leaves_the_old_one_serving(self, moved: Versions[str]) -> None:
        fail(moved)
        assert moved.resolve("m", 1) == (1, "/models/m/1")

    def test_an_old_process_that_dies_while_the_new_path_is_loaded_is_not_asked_any_more(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        old = due(versions)
        versions.loaded(old, "old", 0.0)
        versions.configure(serving(1, base=self.ELSEWHERE), disk(1, base=self.ELSEWHERE))
        due(versions)
        versions.lost(old, "old", "was killed by SIGKILL", 1.0)
        with pytest.raises(Refusal):
            versions.resolve("m", 1)

    def test_a_path_that_changes_twice_while_it_is_loaded_neither_loses_nor_doubles_the_serving_one(self, moved: Versions[str]) -> None:
        second = due(moved)
        third = Path("/third/m")
        moved.configure(serving(1, base=third), disk(1, base=third))
        moved.failed(second, "gone", 0.0)
        second.loading, second.tries = True, POLICY.max_load_retries + 1  # its last try fails too
        moved.failed(second, "gone", 0.0)
        assert moved.released == []
        load(moved)
        assert moved.resolve("m") == (1, "/third/m/1")
        assert released(moved) == ["/models/m/1"]


class TestFailures:
    def test_a_broken_version_ends_with_its_error_after_its_retries_and_the_others_keep_serving(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        load(versions)
        versions.configure(serving(2), disk(1, 2))
        entry = due(versions)
        versions.failed(entry, "no graph in it", 0.0)
        assert versions.states("m", 2) == [(2, "LOADING", "")]  # an error that may pass is not reported yet
        assert versions.due(9.9) is None and versions.due_at() == 10.0
        assert due(versions, 10.0) is entry
        versions.failed(entry, "no graph in it", 10.0)
        assert versions.states("m", 2) == [(2, "END", "no graph in it")]
        assert versions.due_at() is None
        assert versions.resolve("m")[0] == 1  # nothing wanted is available, so the old one stays
        assert versions.released == []

    def test_one_that_is_broken_only_at_first_is_available_after_a_retry(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        versions.failed(due(versions), "half a copy", 0.0)
        versions.loaded(due(versions, 10.0), "whole", 10.0)
        assert versions.states("m") == [(1, "AVAILABLE", "")]

    def test_what_was_tried_least_is_loaded_first_so_that_a_broken_version_delays_nothing(self, versions: Versions[str]) -> None:
        config = ServerConfig((ModelConfig("m", str(BASE), (9,)), ModelConfig("b", "/models/b", (1, 2))))
        versions.configure(config, {**disk(9), "b": {1: Path("/models/b/1"), 2: Path("/models/b/2")}})
        entry = due(versions)
        assert (entry.name, entry.number) == ("m", 9)
        versions.failed(entry, "no graph in it", 0.0)
        assert [due(versions, 100.0).number for _ in range(3)] == [2, 1, 9]

    def test_nothing_is_begun_twice(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        due(versions)
        versions.look(disk(1))
        assert versions.due(1e9) is None and versions.due_at() is None

    def test_a_version_that_failed_is_tried_anew_when_it_is_asked_for_anew(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1, 2))
        load(versions)
        versions.configure(serving(1, 2), disk(1, 2))
        fail(versions)
        assert states(versions) == {2: "END", 1: "AVAILABLE"}
        versions.look(disk(1, 2))
        assert versions.due_at() is None  # who goes on asking does not ask anew
        versions.configure(serving(1), disk(1, 2))
        versions.configure(serving(1, 2), disk(1, 2))
        assert versions.states("m", 2) == [(2, "START", "")]  # at once: who asks now must not read the old error
        load(versions)
        assert states(versions) == {2: "AVAILABLE", 1: "AVAILABLE"}

    def test_a_version_that_failed_is_tried_again_as_often_as_a_new_one(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1, 2))
        load(versions)
        versions.configure(serving(1, 2), disk(1, 2))
        fail(versions)
        versions.configure(serving(1), disk(1, 2))
        versions.configure(serving(1, 2), disk(1, 2))
        entry = due(versions, 100.0)
        versions.failed(entry, "still none", 100.0)
        assert (entry.state, entry.try_at) == ("LOADING", 110.0)

    def test_without_retries_the_first_failure_is_the_end(self) -> None:
        versions: Versions[str] = Versions(RetryPolicy(max_load_retries=0))
        versions.configure(serving(1), disk(1))
        versions.failed(due(versions), "no graph in it", 0.0)
        assert versions.states("m") == [(1, "END", "no graph in it")]


class TestDeaths:
    @pytest.fixture
    def serves(self, versions: Versions[str]) -> Version[str]:
        versions.configure(serving(1), disk(1))
        load(versions)
        return versions._models["m"][1]

    def die(self, versions: Versions[str], entry: Version[str], now: float) -> float:
        """Let the process of `entry` die and return in how many seconds it is to be started again."""
        assert entry.servable is not None
        versions.lost(entry, entry.servable, "was killed by SIGSEGV", now)
        at = versions.due_at()
        assert at is not None
        return at - now

    def test_the_first_time_it_is_started_again_at_once_and_says_so_meanwhile(self, versions: Versions[str], serves: Version[str]) -> None:
        assert self.die(versions, serves, 5.0) == 0.0
        assert versions.states("m") == [(1, "LOADING", "its process was killed by SIGSEGV")]
        for asked in ((), (1,)):
            with pytest.raises(Refusal, match="Version 1 of model m is being started again: its process was killed by SIGSEGV") as refused:
                versions.resolve("m", *asked)
            assert refused.value.code is grpc.StatusCode.UNAVAILABLE
        versions.begin(serves)
        assert versions.states("m") == [(1, "LOADING", "its process was killed by SIGSEGV")]
        versions.loaded(serves, "again", 5.0)
        assert versions.states("m") == [(1, "AVAILABLE", "")]
        assert versions.resolve("m") == (1, "again")
        assert versions.released == []  # what is dead need not be retired

    def test_if_it_goes_on_it_is_started_later_and_later_up_to_a_limit(self, versions: Versions[str], serves: Version[str]) -> None:
        waited = []
        now = 0.0
        for _ in range(8):
            waited.append(self.die(versions, serves, now))
            now += waited[-1]
            load(versions, now)
        assert waited == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]

    def test_a_night_of_deaths_is_no_number_too_large(self, versions: Versions[str], serves: Version[str]) -> None:
        """One every 30 seconds."""
        for number in range(1100):
            assert self.die(versions, serves, 30.0 * number) <= 30.0
            load(versions, 30.0 * (number + 1))

    @pytest.mark.parametrize(("served", "wait"), [(60.0, 2.0), (60.1, 0.0)])
    def test_one_that_has_served_steadily_begins_anew(self, versions: Versions[str], serves: Version[str], served: float, wait: float) -> None:
        self.die(versions, serves, 0.0)
        load(versions, 0.0)
        self.die(versions, serves, 0.5)
        load(versions, 100.0)
        assert self.die(versions, serves, 100.0 + served) == wait

    def test_a_version_kept_for_want_of_a_better_one_is_started_again(self, versions: Versions[str], serves: Version[str]) -> None:
        versions.configure(serving(2), disk(1, 2))
        fail(versions)
        self.die(versions, serves, 20.0)
        load(versions, 20.0)
        assert versions.resolve("m") == (1, "/models/m/1")

    def test_one_that_dies_when_a_better_one_is_there_is_not_started_again(self, versions: Versions[str], serves: Version[str]) -> None:
        versions.configure(serving(2), disk(1, 2))
        new = due(versions)
        self.die(versions, serves, 1.0)
        versions.loaded(new, "two", 2.0)
        assert states(versions) == {2: "AVAILABLE", 1: "END"}
        assert versions.due_at() is None

    def test_the_death_of_one_that_was_let_go_is_nobodys_business(self, versions: Versions[str], serves: Version[str]) -> None:
        servable = serves.servable
        assert servable is not None
        versions.configure(ServerConfig(), {})
        versions.lost(serves, servable, "ended", 1.0)
        assert versions.states("m") == [(1, "END", "")]
        assert versions.due_at() is None

    def test_a_restart_that_fails_is_tried_again_for_ever_because_the_version_has_served_before(
        self, versions: Versions[str], serves: Version[str]
    ) -> None:
        self.die(versions, serves, 1.0)
        now, pauses = 1.0, []
        for _ in range(40):
            versions.failed(due(versions, now), "no memory", now)
            pauses.append(serves.try_at - now)
            now = serves.try_at
        assert pauses == sorted(pauses) and pauses[-1] == POLICY.max_restart_seconds
        assert states(versions) == {1: "LOADING"}
        versions.loaded(due(versions, now), "again", now)
        assert versions.resolve("m") == (1, "again")

    def test_a_shortage_is_not_the_fault_of_a_version_that_is_loaded_for_the_first_time(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        entry, now = due(versions), 0.0
        for _ in range(40):
            versions.failed(entry, "too many open files", now, own_fault=False)
            now = entry.try_at
            assert due(versions, now) is entry
        assert states(versions) == {1: "LOADING"}

    def test_a_request_that_ends_it_again_and_again_keeps_it_waiting_never(self, versions: Versions[str], serves: Version[str]) -> None:
        for number in range(20):
            assert serves.servable is not None
            versions.lost(serves, serves.servable, "was killed by SIGABRT", float(number), by_request=True)
            assert versions.due_at() == float(number)
            load(versions, float(number))
        assert self.die(versions, serves, 20.0) == 1.0  # what is no request's fault is one death more than before

    def test_what_ended_the_latest_version_is_not_passed_on_to_the_one_before(self, versions: Versions[str]) -> None:
        versions.configure(serving(1, 2), disk(1, 2))
        load(versions)
        latest = versions._models["m"][2]
        assert latest.servable is not None
        versions.lost(latest, latest.servable, "was killed by SIGABRT", 0.0, by_request=True)
        with pytest.raises(Refusal, match="Version 2 of model m is being started again: its process was killed by SIGABRT") as refused:
            versions.resolve("m")
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE
        assert versions.resolve("m", 1)[0] == 1  # who asks for it gets it
        load(versions)
        assert versions.resolve("m")[0] == 2
        assert latest.servable is not None
        versions.lost(latest, latest.servable, "was killed by SIGABRT", 1.0, by_request=True)
        versions.configure(serving(1), disk(1, 2))  # nor is it waited for when it is no longer wanted
        assert versions.resolve("m")[0] == 1

    def test_another_version_answers_for_the_latest_meanwhile(self, versions: Versions[str]) -> None:
        versions.configure(serving(1, 2), disk(1, 2))
        load(versions)
        self.die(versions, versions._models["m"][2], 0.0)
        assert versions.resolve("m")[0] == 1
        with pytest.raises(Refusal, match="Version 2 of model m is being started again"):
            versions.resolve("m", 2)

    def test_a_version_that_ended_before_does_not_make_a_restart_a_model_that_is_not_found(self, versions: Versions[str]) -> None:
        """After any switch the old version stays listed as END."""
        for number in (1, 2):
            versions.configure(serving(number), disk(1, 2))
            load(versions)
        self.die(versions, versions._models["m"][2], 0.0)
        with pytest.raises(Refusal) as refused:
            versions.resolve("m")
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE


class TestLabels:
    def test_a_label_moves_only_to_an_available_version_and_a_refused_reload_changes_nothing(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        load(versions)
        versions.configure(serving(1, stable=1), disk(1))
        assert versions.resolve("m", label="stable") == (1, "/models/m/1")
        words = "Request to assign label to version 2 of model m, which is not currently available for inference"
        with pytest.raises(Refusal, match=words) as refused:
            versions.configure(serving(2, stable=2), disk(1, 2))
        assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert versions.resolve("m", label="stable")[0] == 1
        assert (states(versions), versions.config) == ({1: "AVAILABLE"}, serving(1, stable=1))

    def test_a_version_that_is_started_again_is_not_available_for_a_label(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        entry = due(versions)
        versions.loaded(entry, "one", 0.0)
        versions.lost(entry, "one", "ended", 0.0)
        with pytest.raises(Refusal, match="not currently available"):
            versions.configure(serving(1, stable=1), disk(1))

    def test_labels_given_at_the_start_answer_once_their_version_is_available(self, versions: Versions[str]) -> None:
        versions.configure(serving(1, stable=1), disk(1), at_start=True)
        with pytest.raises(Refusal, match=r"Servable not found for request: Specific\(m, 1\)"):
            versions.resolve("m", label="stable")
        versions.configure(serving(1, stable=1), disk(1))  # a reload that keeps the label is no move
        load(versions)
        assert versions.resolve("m", label="stable")[0] == 1

    def test_an_unknown_label_is_refused(self, versions: Versions[str]) -> None:
        versions.configure(serving(1), disk(1))
        for name in ("m", "nobody"):
            with pytest.raises(Refusal, match="Unrecognized servable version label: x") as refused:
                versions.resolve(name, label="x")
            assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT

    def test_a_new_label_may_point_anywhere_when_allowed_but_a_used_one_may_not_move(self) -> None:
        versions: Versions[str] = Versions(POLICY, labels_for_unavailable=True)
        versions.configure(serving(1, stable=1), disk(1, 2))
        with pytest.raises(Refusal):
            versions.configure(serving(1, 2, stable=2), disk(1, 2))
        versions.configure(serving(1, 2, stable=1, canary=2), disk(1, 2))
        load(versions)
        versions.configure(serving(1, 2, stable=2, canary=2), disk(1, 2))
        assert versions.resolve("m", label="stable")[0] == 2

    def test_a_label_that_outlives_its_version_finds_nothing(self, versions: Versions[str]) -> None:
        """T7: the original accepts such a reload."""
        versions.configure(serving(1, 2), disk(1, 2))
        load(versions)
        versions.configure(serving(1, 2, stable=1), disk(1, 2))
        versions.configure(serving(2, stable=1), disk(1, 2))
        with pytest.raises(Refusal, match=r"Servable not found for request: Specific\(m, 1\)"):
            versions.resolve("m", label="stable")


class Anything(RuleBasedStateMachine):
    """Whatever happens in whatever order, what has served once is never without a servable, and each servable is let go at most once."""

    entries: Bundle[Version[str]] = Bundle("entries")
    NUMBERS = st.sets(st.integers(1, 3))

    def __init__(self) -> None:
        super().__init__()
        self.versions: Versions[str] = Versions(POLICY)
        self.now = 0.0
        self.made = (f"servable {number}" for number in itertools.count())
        self.living: set[str] = set()
        self.released: list[str] = []
        self.served = False

    @rule(wanted=NUMBERS, there=NUMBERS)
    def reload(self, wanted: set[int], there: set[int]) -> None:
        self.versions.configure(serving(*sorted(wanted)), disk(*there))

    @rule()
    def drop(self) -> None:
        self.versions.configure(ServerConfig(), {})
        self.served = False

    @rule(there=NUMBERS)
    def look(self, there: set[int]) -> None:
        self.versions.look(disk(*there))

    @rule(target=entries)
    def begin(self) -> Version[str]:
        self.now += 100.0
        entry = self.versions.due(self.now)
        if entry is None:
            return Version("nobody", 0, BASE)
        self.versions.begin(entry)
        return entry

    @rule(entry=consumes(entries))
    def loaded(self, entry: Version[str]) -> None:
        if entry.name == "m":
            servable = next(self.made)
            self.living.add(servable)
            self.versions.loaded(entry, servable, self.now)

    @rule(entry=consumes(entries))
    def failed(self, entry: Version[str]) -> None:
        if entry.name == "m":
            self.versions.failed(entry, "no graph in it", self.now)

    @rule(number=st.integers(1, 3))
    def dies(self, number: int) -> None:
        entry = self.versions._models.get("m", {}).get(number)
        if entry is not None and entry.servable is not None:
            self.living.discard(entry.servable)
            self.versions.lost(entry, entry.servable, "ended", self.now)
            self.served = False

    @invariant()
    def nothing_is_lost_or_let_go_twice(self) -> None:
        self.released += self.versions.released
        self.versions.released.clear()
        assert len(self.released) == len(set(self.released))
        held = [entry.servable for entry in self.versions._models.get("m", {}).values() if entry.servable is not None]
        assert sorted([*held, *(one for one in self.released if one in self.living)]) == sorted(self.living)

    @invariant()
    def what_is_served_stays_served(self) -> None:
        if self.served:
            assert self.versions.resolve("m")
        self.served = any(entry.servable for entry in self.versions._models.get("m", {}).values())

    @invariant()
    def available_is_what_answers(self) -> None:
        for number, state in states(self.versions).items():
            if state == "AVAILABLE":
                assert self.versions.resolve("m", number)[0] == number
            if state == "END":
                with pytest.raises(Refusal):
                    self.versions.resolve("m", number)


Anything.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
test_whatever_happens_nothing_is_lost_and_what_serves_is_served = Anything.TestCase
