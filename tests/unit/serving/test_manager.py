from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.embedded.manager import LoadPolicy, VersionManager
from airflow_mlops.serving.embedded.refusal import Refusal

FAST = LoadPolicy(poll_seconds=0.02, max_retries=1, retry_seconds=0.05)


class Loader:
    """Loads a directory as its own path; a file ``broken`` in it is an error, a file ``slow`` waits for `released`."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.tries: list[str] = []

    def __call__(self, path: Path) -> Any:
        self.tries.append(path.name)
        if (path / "slow").exists():
            self.released.wait(10)
        if (path / "broken").exists():
            raise RuntimeError("no graph in it")
        return path


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def manager(loader: Loader) -> Iterator[VersionManager]:
    manager = VersionManager(loader, FAST)
    manager.start()
    yield manager
    loader.released.set()
    manager.stop()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "m"


def publish(base: Path, *versions: int, kind: str = "good") -> None:
    for version in versions:
        staging = base / f".staging-{version}"
        staging.mkdir(parents=True)
        (staging / kind).touch()
        staging.rename(base / str(version))


def serving(base: Path, *versions: int, **labels: int) -> ServerConfig:
    return ServerConfig((ModelConfig("m", str(base), versions, labels),))


def eventually(check: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not check():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def state(manager: VersionManager, version: int) -> str | None:
    try:
        return manager.states("m", version)[0][1]
    except Refusal:
        return None


def await_state(manager: VersionManager, version: int, wanted: str) -> None:
    eventually(lambda: state(manager, version) == wanted)


def test_specific_versions_are_loaded_and_the_latest_loaded_answers(manager: VersionManager, base: Path) -> None:
    publish(base, 1, 2, 3)
    manager.configure(serving(base, 1, 2))
    await_state(manager, 1, "AVAILABLE")
    await_state(manager, 2, "AVAILABLE")
    assert manager.resolve("m") == (2, base / "2")
    assert state(manager, 3) is None


def test_without_a_policy_the_latest_version_is_served_as_it_appears(manager: VersionManager, base: Path) -> None:
    publish(base, 1)
    manager.configure(serving(base))
    await_state(manager, 1, "AVAILABLE")
    publish(base, 2)
    await_state(manager, 2, "AVAILABLE")
    await_state(manager, 1, "END")
    assert manager.resolve("m")[0] == 2


def test_the_old_version_serves_until_the_new_one_is_available(manager: VersionManager, loader: Loader, base: Path) -> None:
    publish(base, 1)
    manager.configure(serving(base, 1))
    await_state(manager, 1, "AVAILABLE")
    publish(base, 2, kind="slow")
    manager.configure(serving(base, 2))
    await_state(manager, 2, "LOADING")
    assert manager.resolve("m")[0] == 1
    loader.released.set()
    await_state(manager, 1, "END")
    assert manager.resolve("m")[0] == 2


def test_a_broken_version_ends_with_its_error_after_its_retries_and_the_others_keep_serving(
    manager: VersionManager, loader: Loader, base: Path
) -> None:
    publish(base, 1)
    manager.configure(serving(base, 1))
    await_state(manager, 1, "AVAILABLE")
    publish(base, 2, kind="broken")
    manager.configure(serving(base, 2))
    await_state(manager, 2, "END")
    assert manager.states("m", 2) == [(2, "END", "no graph in it")]
    assert loader.tries.count("2") == 2
    assert manager.resolve("m")[0] == 1  # nothing wanted is available, so the old one stays


def test_a_broken_version_does_not_delay_another_model(manager: VersionManager, base: Path, tmp_path: Path) -> None:
    publish(base, 9, kind="broken")
    publish(tmp_path / "b", 1)
    manager.configure(ServerConfig((ModelConfig("m", str(base), (9,)), ModelConfig("b", str(tmp_path / "b"), (1,)))))
    eventually(lambda: manager.states("b")[0][1] == "AVAILABLE")


def test_a_version_that_failed_is_tried_anew_when_it_is_asked_for_anew(manager: VersionManager, loader: Loader, base: Path) -> None:
    publish(base, 1)
    publish(base, 2, kind="broken")
    manager.configure(serving(base, 1, 2))
    await_state(manager, 2, "END")
    manager.configure(serving(base, 1))
    (base / "2" / "broken").unlink()
    manager.configure(serving(base, 1, 2))
    assert state(manager, 2) != "END"  # at once: who asks now must not read the old error
    await_state(manager, 2, "AVAILABLE")


def test_a_label_moves_only_to_an_available_version_and_a_refused_reload_changes_nothing(manager: VersionManager, base: Path) -> None:
    publish(base, 1)
    manager.configure(serving(base, 1))
    await_state(manager, 1, "AVAILABLE")
    manager.configure(serving(base, 1, stable=1))
    publish(base, 2, kind="broken")
    with pytest.raises(Refusal, match="Request to assign label to version 2 of model m, which is not currently available"):
        manager.configure(serving(base, 2, stable=2))
    assert manager.resolve("m", label="stable")[0] == 1
    assert state(manager, 2) is None


def test_labels_given_at_the_start_answer_once_their_version_is_available(manager: VersionManager, loader: Loader, base: Path) -> None:
    publish(base, 1, kind="slow")
    manager.configure(serving(base, 1, stable=1), at_start=True)
    with pytest.raises(Refusal, match=r"Servable not found for request: Specific\(m, 1\)"):
        manager.resolve("m", label="stable")
    manager.configure(serving(base, 1, stable=1))  # a reload that keeps the label is no move
    loader.released.set()
    await_state(manager, 1, "AVAILABLE")
    assert manager.resolve("m", label="stable")[0] == 1


def test_a_new_label_may_point_anywhere_when_allowed_but_a_used_one_may_not_move(loader: Loader, base: Path) -> None:
    manager = VersionManager(loader, FAST._replace(labels_for_unavailable=True))
    publish(base, 1, 2)
    manager.configure(serving(base, 1, stable=1))
    with pytest.raises(Refusal):
        manager.configure(serving(base, 1, 2, stable=2))


def test_a_missing_base_path_neither_hangs_nor_hinders_and_is_served_once_it_is_there(manager: VersionManager, base: Path) -> None:
    manager.configure(serving(base, 1))
    with pytest.raises(Refusal, match="Could not find any versions of model m"):
        manager.states("m")
    publish(base, 1)
    await_state(manager, 1, "AVAILABLE")


def test_an_emptied_base_path_takes_nothing_out_of_service(manager: VersionManager, base: Path) -> None:
    publish(base, 1)
    manager.configure(serving(base))
    await_state(manager, 1, "AVAILABLE")
    (base / "1").rename(base / "gone")
    time.sleep(0.1)  # five looks at the disk
    assert manager.resolve("m")[0] == 1


def test_a_reload_that_names_only_versions_that_are_not_there_takes_nothing_out_of_service(manager: VersionManager, base: Path) -> None:
    publish(base, 1)
    manager.configure(serving(base, 1))
    await_state(manager, 1, "AVAILABLE")
    manager.configure(serving(base, 2))
    assert manager.resolve("m")[0] == 1
    publish(base, 2)
    await_state(manager, 1, "END")
    assert manager.resolve("m")[0] == 2


def test_a_model_that_is_no_longer_configured_is_unloaded(manager: VersionManager, base: Path) -> None:
    publish(base, 1)
    manager.configure(serving(base, 1))
    await_state(manager, 1, "AVAILABLE")
    manager.configure(ServerConfig())
    assert state(manager, 1) == "END"
    with pytest.raises(Refusal, match=r"Servable not found for request: Latest\(m\)"):
        manager.resolve("m")


def test_a_changed_base_path_replaces_the_version_of_the_same_number_without_a_gap(manager: VersionManager, base: Path, tmp_path: Path) -> None:
    publish(base, 1)
    manager.configure(serving(base, 1))
    await_state(manager, 1, "AVAILABLE")
    publish(tmp_path / "elsewhere", 1)
    manager.configure(serving(tmp_path / "elsewhere", 1))
    assert manager.resolve("m", 1)[0] == 1
    eventually(lambda: manager.resolve("m", 1)[1] == tmp_path / "elsewhere" / "1")  # type: ignore[comparison-overlap]


def test_requests_never_find_a_gap_while_versions_are_switched(manager: VersionManager, base: Path) -> None:
    publish(base, *range(1, 30))
    manager.configure(serving(base, 1))
    await_state(manager, 1, "AVAILABLE")
    for version in range(2, 30):
        manager.configure(serving(base, version))
        while state(manager, version) != "AVAILABLE":
            manager.resolve("m")
    assert manager.resolve("m")[0] == 29
