"""The loader with real directories and a real event loop; what it starts is small and misbehaves as the files in a version's directory say."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.embedded import loader as loader_module
from airflow_mlops.serving.embedded import source
from airflow_mlops.serving.embedded.loader import Listings, Loader, LoaderOptions
from airflow_mlops.serving.embedded.model_process import End
from airflow_mlops.serving.embedded.refusal import Refusal, invalid
from airflow_mlops.serving.embedded.versions import RetryPolicy, Version, Versions

POLICY = RetryPolicy(max_load_retries=1, retry_seconds=0.05, max_restart_seconds=0.2)
OPTIONS = LoaderOptions(poll_seconds=0.02, num_load_threads=4)
SECONDS = 10.0  # for what takes milliseconds on a machine with nothing else to do


class Process:
    """Stands for a model's process: it is where it was loaded from, dies when told, and counts how often it was retired."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gone: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self.times_retired = 0

    def retire(self) -> None:
        self.times_retired += 1
        if not self.gone.done():
            self.gone.set_result(End("ended"))


class Starter:
    """Starts a directory; a file ``broken`` in it is an error, ``refused`` a `Refusal`, ``silent`` an error without words, and ``slow`` waits."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.tries: list[str] = []
        self.started: list[Process] = []
        self.now = self.most = 0

    async def __call__(self, entry: Version[Process]) -> Process:
        self.tries.append(entry.path.name)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0)
            if (entry.path / "slow").exists():
                await self.released.wait()
            if (entry.path / "refused").exists():
                raise invalid("no graph in it")
            if (entry.path / "broken").exists():
                raise RuntimeError("nobody foresaw this")
            if (entry.path / "silent").exists():
                raise EOFError
        finally:
            self.now -= 1
        self.started.append(Process(entry.path))
        return self.started[-1]


class Serving:
    """A loader at work and all that it acts on."""

    def __init__(self, options: LoaderOptions, policy: RetryPolicy = POLICY) -> None:
        self.starter = Starter()
        self.versions: Versions[Process] = Versions(policy)
        self.loader = Loader(self.versions, self.starter, options)
        self.configure = self.loader.configure

    def state(self, version: int, name: str = "m") -> str | None:
        with contextlib.suppress(Refusal):
            return self.versions.states(name, version)[0][1]
        return None

    async def until(self, version: int, state: str, name: str = "m") -> None:
        await eventually(lambda: self.state(version, name) == state)


@contextlib.asynccontextmanager
async def loading(options: LoaderOptions = OPTIONS) -> AsyncIterator[Serving]:
    serving = Serving(options)
    running = asyncio.create_task(serving.loader.run())
    try:
        yield serving
        assert not running.done(), running.exception()
    finally:
        serving.loader.stop()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        while any(thread.name.startswith("look ") for thread in threading.enumerate()):  # they answer to this loop
            await asyncio.sleep(0.001)


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    async with loading() as serving:
        yield serving


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "m"


def publish(base: Path, *versions: int | str, kind: str = "good") -> None:
    for version in versions:
        staging = base / f".staging-{version}"
        staging.mkdir(parents=True)
        (staging / kind).touch()
        staging.rename(base / str(version))


def of(base: Path, *versions: int, **labels: int) -> ServerConfig:
    return ServerConfig((ModelConfig("m", str(base), versions, labels),))


async def eventually(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not check():
            await asyncio.sleep(0.002)


async def test_specific_versions_are_loaded_and_the_latest_loaded_answers(serving: Serving, base: Path) -> None:
    publish(base, 1, 2, 3)
    await serving.configure(of(base, 1, 2))
    for version in (1, 2):
        await serving.until(version, "AVAILABLE")
    number, process = serving.versions.resolve("m")
    assert (number, process.path, serving.state(3)) == (2, base / "2", None)


async def test_without_a_policy_the_latest_version_is_served_as_it_appears(serving: Serving, base: Path) -> None:
    publish(base, 1)
    await serving.configure(of(base))
    await serving.until(1, "AVAILABLE")
    publish(base, "0000002", "notes", "-3")
    await serving.until(2, "AVAILABLE")
    await serving.until(1, "END")
    assert serving.versions.resolve("m")[1].path == base / "0000002"


async def test_the_old_version_serves_until_the_new_one_is_available(serving: Serving, base: Path) -> None:
    publish(base, 1)
    await serving.configure(of(base, 1))
    await serving.until(1, "AVAILABLE")
    publish(base, 2, kind="slow")
    await serving.configure(of(base, 2))
    await serving.until(2, "LOADING")
    assert serving.versions.resolve("m")[0] == 1
    serving.starter.released.set()
    await serving.until(1, "END")
    assert serving.versions.resolve("m")[0] == 2


@pytest.mark.parametrize(("kind", "words"), [("refused", "no graph in it"), ("broken", "nobody foresaw this"), ("silent", "EOFError")])
async def test_a_broken_version_ends_with_its_error_after_its_retries_and_the_others_keep_serving(
    serving: Serving, base: Path, kind: str, words: str
) -> None:
    publish(base, 1)
    await serving.configure(of(base, 1))
    await serving.until(1, "AVAILABLE")
    publish(base, 2, kind=kind)
    await serving.configure(of(base, 2))
    await serving.until(2, "END")
    assert serving.versions.states("m", 2) == [(2, "END", words)]
    assert serving.starter.tries.count("2") == 2
    assert serving.versions.resolve("m")[0] == 1


async def test_a_broken_version_does_not_delay_another_model(base: Path, tmp_path: Path) -> None:
    """Not even with room for one load at a time."""
    async with loading(OPTIONS._replace(num_load_threads=1)) as serving:
        publish(base, 9, kind="broken")
        publish(tmp_path / "b", 1)
        await serving.configure(ServerConfig((ModelConfig("m", str(base), (9,)), ModelConfig("b", str(tmp_path / "b"), (1,)))))
        await serving.until(1, "AVAILABLE", "b")
        assert serving.starter.tries[:2] == ["9", "1"]


async def test_a_version_that_failed_is_tried_anew_when_it_is_asked_for_anew(serving: Serving, base: Path) -> None:
    publish(base, 1)
    publish(base, 2, kind="broken")
    await serving.configure(of(base, 1, 2))
    await serving.until(2, "END")
    await serving.configure(of(base, 1))
    (base / "2" / "broken").unlink()
    await serving.configure(of(base, 1, 2))
    assert serving.state(2) != "END"
    await serving.until(2, "AVAILABLE")


async def test_a_refused_reload_changes_nothing_and_neither_starts_nor_ends_anything(serving: Serving, base: Path) -> None:
    publish(base, 1)
    await serving.configure(of(base, 1, stable=1), at_start=True)
    await serving.until(1, "AVAILABLE")
    publish(base, 2)
    with pytest.raises(Refusal, match="not currently available"):
        await serving.configure(of(base, 2, stable=2))
    await asyncio.sleep(0.1)  # five looks at the disk
    assert (serving.state(1), serving.state(2), serving.starter.tries) == ("AVAILABLE", None, ["1"])
    assert serving.versions.resolve("m", label="stable")[0] == 1


async def test_a_missing_base_path_neither_hangs_nor_hinders_and_is_served_once_it_is_there(serving: Serving, base: Path) -> None:
    await serving.configure(of(base, 1))
    assert serving.state(1) is None
    publish(base, 1)
    await serving.until(1, "AVAILABLE")


async def test_a_base_path_that_is_no_directory_hinders_nobody(serving: Serving, base: Path, tmp_path: Path) -> None:
    publish(base, 1)
    (tmp_path / "file").touch()
    await serving.configure(ServerConfig((ModelConfig("file", str(tmp_path / "file")), ModelConfig("m", str(base)))))
    await serving.until(1, "AVAILABLE")


async def test_an_emptied_base_path_takes_nothing_out_of_service(serving: Serving, base: Path) -> None:
    publish(base, 1)
    await serving.configure(of(base))
    await serving.until(1, "AVAILABLE")
    (base / "1").rename(base / "gone")
    await asyncio.sleep(0.1)  # five looks at the disk
    assert serving.versions.resolve("m")[0] == 1
    assert serving.starter.started[0].times_retired == 0


async def test_a_model_that_is_no_longer_configured_is_unloaded_and_its_process_retired(serving: Serving, base: Path) -> None:
    publish(base, 1)
    await serving.configure(of(base, 1))
    await serving.until(1, "AVAILABLE")
    await serving.configure(ServerConfig())
    assert serving.state(1) == "END"
    await eventually(lambda: serving.starter.started[0].times_retired == 1)


async def test_a_load_that_ends_after_its_model_was_dropped_is_retired(serving: Serving, base: Path) -> None:
    publish(base, 1, kind="slow")
    await serving.configure(of(base, 1))
    await serving.until(1, "LOADING")
    await serving.configure(ServerConfig())
    serving.starter.released.set()
    await eventually(lambda: [process.times_retired for process in serving.starter.started] == [1])
    assert serving.state(1) == "END"


async def test_a_changed_base_path_replaces_the_version_of_the_same_number_without_a_gap(serving: Serving, base: Path, tmp_path: Path) -> None:
    publish(base, 1)
    await serving.configure(of(base, 1))
    await serving.until(1, "AVAILABLE")
    publish(tmp_path / "elsewhere", 1)
    await serving.configure(of(tmp_path / "elsewhere", 1))
    await eventually(lambda: serving.versions.resolve("m", 1)[1].path == tmp_path / "elsewhere" / "1")  # resolve raises in a gap
    await eventually(lambda: [process.times_retired for process in serving.starter.started] == [1, 0])


@pytest.mark.parametrize("uri", ["gs://bucket/m", "s3://bucket/m", "file://relative/m"])
async def test_a_base_path_that_is_on_no_disk_of_this_machine_is_refused(serving: Serving, base: Path, uri: str) -> None:
    publish(base, 1)
    await serving.configure(of(base, 1))
    config = ServerConfig((ModelConfig("m", str(base), (1,)), ModelConfig("far", uri)))
    with pytest.raises(Refusal, match=f"base_path of model far is {uri}; this server reads directories of its own machine only"):
        await serving.configure(config)
    assert serving.versions.config == of(base, 1)


async def test_a_file_uri_is_a_base_path(serving: Serving, base: Path) -> None:
    publish(base, 1)
    await serving.configure(ServerConfig((ModelConfig("m", f"file://{base}"),)))
    await serving.until(1, "AVAILABLE")


async def test_requests_never_find_a_gap_while_versions_are_switched_and_each_process_is_retired_once(serving: Serving, base: Path) -> None:
    publish(base, *range(1, 30))
    await serving.configure(of(base, 1))
    await serving.until(1, "AVAILABLE")
    for version in range(2, 30):
        await serving.configure(of(base, version))
        while serving.state(version) != "AVAILABLE":
            process = serving.versions.resolve("m")[1]
            assert process.times_retired == 0
            await asyncio.sleep(0)
    await eventually(lambda: [process.times_retired for process in serving.starter.started] == [1] * 28 + [0])
    assert serving.versions.resolve("m")[0] == 29


@pytest.mark.parametrize("num_load_threads", [1, 3])
async def test_no_more_versions_are_loaded_at_the_same_time_than_there_are_load_threads(base: Path, num_load_threads: int) -> None:
    async with loading(OPTIONS._replace(num_load_threads=num_load_threads)) as serving:
        publish(base, *range(1, 7), kind="slow")
        await serving.configure(of(base, *range(1, 7)))
        await eventually(lambda: serving.starter.now == num_load_threads)
        await asyncio.sleep(0.1)
        assert (serving.starter.now, len(serving.starter.tries)) == (num_load_threads, num_load_threads)
        serving.starter.released.set()
        for version in range(1, 7):
            await serving.until(version, "AVAILABLE")
        assert serving.starter.most == num_load_threads


async def test_no_load_threads_at_all_means_one_load_after_another_as_in_the_original(base: Path) -> None:
    async with loading(OPTIONS._replace(num_load_threads=0)) as serving:
        publish(base, 1)
        await serving.configure(of(base, 1))
        await asyncio.sleep(0.2)
        assert serving.state(1) == "AVAILABLE"


async def test_a_process_that_dies_is_started_again_and_the_dead_one_is_not_retired(serving: Serving, base: Path) -> None:
    publish(base, 1)
    await serving.configure(of(base, 1))
    await serving.until(1, "AVAILABLE")
    (first,) = serving.starter.started
    first.gone.set_result(End("was killed by SIGSEGV"))
    await eventually(lambda: len(serving.starter.started) == 2)
    await serving.until(1, "AVAILABLE")
    assert serving.versions.resolve("m")[1] is serving.starter.started[1]
    assert [process.times_retired for process in serving.starter.started] == [0, 0]


async def test_one_that_dies_again_and_again_waits_longer_and_longer(serving: Serving, base: Path) -> None:
    publish(base, 1)
    await serving.configure(of(base, 1))
    began = []
    for number in range(4):
        await eventually(lambda number=number: len(serving.starter.started) == number + 1)  # type: ignore[misc]
        began.append(asyncio.get_running_loop().time())
        serving.starter.started[number].gone.set_result(End("was killed by SIGABRT"))
    assert began[1] - began[0] < 0.2 <= began[3] - began[2]  # the first time at once, then `max_restart_seconds` here
    await eventually(lambda: serving.versions.states("m") == [(1, "LOADING", "its process was killed by SIGABRT")])


class TestReloads:
    """What a reload waits for; the rest of it, the conformance suite asks of a whole server."""

    async def test_it_waits_for_new_models_alone(self, serving: Serving, base: Path) -> None:
        publish(base, 1)
        await serving.loader.reload(of(base, 1), SECONDS)
        assert serving.state(1) == "AVAILABLE"
        publish(base, 2, kind="slow")
        await serving.loader.reload(of(base, 1, 2), SECONDS)
        assert serving.state(2) != "AVAILABLE"

    async def test_one_available_version_is_enough(self, serving: Serving, base: Path) -> None:
        publish(base, 1)
        publish(base, 2, kind="slow")
        publish(base, 3, kind="refused")
        await serving.loader.reload(of(base, 1, 2, 3), SECONDS)
        assert serving.versions.resolve("m")[0] == 1

    @pytest.mark.parametrize("seconds", [SECONDS, None])
    async def test_a_model_none_of_whose_versions_can_be_loaded_ends_the_wait(self, serving: Serving, base: Path, seconds: float | None) -> None:
        publish(base, 1, 2, kind="refused")
        with pytest.raises(Refusal) as refused:
            await serving.loader.reload(of(base, 1, 2), seconds)
        assert (refused.value.code, str(refused.value)) == (
            grpc.StatusCode.UNKNOWN,
            "1 model(s) did not become available: {{{name: m version: 2} due to error: no graph in it}, }",
        )

    async def test_one_that_cannot_come_is_reported_when_all_others_are_there(self, serving: Serving, base: Path) -> None:
        publish(base, 1, kind="slow")
        publish(base.with_name("n"), 1, kind="refused")
        models = [ModelConfig(name, str(base.with_name(name)), (1,)) for name in ("m", "n")] + [
            ModelConfig("missing", str(base.with_name("missing")))
        ]
        reloading = asyncio.create_task(serving.loader.reload(ServerConfig(tuple(models)), SECONDS))
        await serving.until(1, "END", "n")
        await asyncio.sleep(0.1)
        assert not reloading.done()
        serving.starter.released.set()
        with pytest.raises(Refusal, match=r"^2 model\(s\) did not become available: .*name: missing} .*name: n version: 1}"):
            await reloading
        assert serving.state(1) == "AVAILABLE"

    async def test_it_waits_no_longer_than_it_may(self, serving: Serving, base: Path) -> None:
        publish(base, 1, kind="slow")
        with pytest.raises(Refusal, match="version: 1} due to error: it is LOADING"):
            await serving.loader.reload(of(base, 1), 0.1)
        serving.starter.released.set()
        await serving.until(1, "AVAILABLE")

    async def test_a_model_that_another_reload_drops_is_waited_for_no_longer(self, serving: Serving, base: Path) -> None:
        publish(base, 1, kind="slow")
        waiting = asyncio.create_task(serving.loader.reload(of(base, 1), None))
        await serving.until(1, "LOADING")
        await serving.loader.reload(ServerConfig(), None)
        await asyncio.wait_for(waiting, SECONDS)

    async def test_who_goes_away_stops_the_waiting_and_not_the_loading(self, serving: Serving, base: Path) -> None:
        publish(base, 1, kind="slow")
        waiting = asyncio.create_task(serving.loader.reload(of(base, 1), None))
        await serving.until(1, "LOADING")
        waiting.cancel()
        serving.starter.released.set()
        await serving.until(1, "AVAILABLE")


async def test_the_loader_only_looks_on_a_reload_when_it_is_told_not_to_poll(base: Path) -> None:
    async with loading(OPTIONS._replace(poll_seconds=0.0)) as serving:
        publish(base, 1)
        await serving.configure(of(base))
        await serving.until(1, "AVAILABLE")
        publish(base, 2)
        await asyncio.sleep(0.1)
        assert serving.state(2) is None
        await serving.configure(of(base))
        await serving.until(2, "AVAILABLE")


async def test_a_look_for_which_there_is_no_thread_is_made_again(serving: Serving, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(base, 1)
    await serving.configure(of(base))
    await serving.until(1, "AVAILABLE")
    refused = threading.Event()

    class NoThread(threading.Thread):
        def start(self) -> None:
            refused.set()
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", NoThread)
        publish(base, 2)
        await eventually(refused.is_set)
    await serving.until(2, "AVAILABLE")


class TestAListingThatHangs:
    """A network disk that does not answer: nobody can be made to hang in a directory without one, so the look itself waits here."""

    @pytest.fixture
    def hanging(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
        """Looks under a path that ends in ``hangs`` wait for this event."""
        answers = threading.Event()
        look = source.versions_on_disk

        def versions_on_disk(path: Path) -> dict[int, Path]:
            if path.name == "hangs":
                answers.wait(SECONDS)
            return look(path)

        monkeypatch.setattr(source, "versions_on_disk", versions_on_disk)
        monkeypatch.setattr(loader_module, "_LISTING_SECONDS", 0.05)
        yield answers
        answers.set()

    async def test_it_holds_up_nobody_else_and_is_served_once_it_answers(
        self, hanging: threading.Event, serving: Serving, base: Path, tmp_path: Path
    ) -> None:
        publish(base, 1)
        publish(tmp_path / "hangs", 1)
        await serving.configure(ServerConfig((ModelConfig("stuck", str(tmp_path / "hangs")), ModelConfig("m", str(base)))))
        await serving.until(1, "AVAILABLE")
        publish(base, 2)
        await serving.until(2, "AVAILABLE")
        assert serving.state(1, "stuck") is None
        hanging.set()
        await serving.until(1, "AVAILABLE", "stuck")

    async def test_it_keeps_at_most_one_thread(self, hanging: threading.Event, tmp_path: Path) -> None:
        listings = Listings()
        config = of(tmp_path / "hangs")
        for _ in range(5):
            assert await listings.of(config) == {"m": {}}
        assert [thread.name for thread in threading.enumerate()].count(f"look {tmp_path / 'hangs'}") == 1
        publish(tmp_path / "hangs", 7)
        hanging.set()
        await asyncio.sleep(0.1)
        assert await listings.of(config) == {"m": {7: tmp_path / "hangs" / "7"}}

    async def test_what_served_before_it_hung_serves_on(self, hanging: threading.Event, serving: Serving, tmp_path: Path) -> None:
        publish(tmp_path / "hangs", 1)
        hanging.set()
        await serving.configure(of(tmp_path / "hangs"))
        await serving.until(1, "AVAILABLE")
        hanging.clear()
        await asyncio.sleep(0.2)
        assert serving.versions.resolve("m")[0] == 1
        hanging.set()

    async def test_a_path_that_no_disk_can_have_is_empty_and_does_not_count_as_hanging(self, hanging: threading.Event, tmp_path: Path) -> None:
        listings = Listings()
        assert await listings.of(of(tmp_path / "a\0b")) == {"m": {}}
        assert listings._looking == {}


async def test_two_models_of_one_path_are_looked_at_once(base: Path) -> None:
    publish(base, 1)
    found = await Listings().of(ServerConfig((ModelConfig("a", str(base)), ModelConfig("b", str(base)))))
    assert found == {"a": {1: base / "1"}, "b": {1: base / "1"}}


async def test_no_models_need_no_look() -> None:
    assert await Listings().of(ServerConfig()) == {}


async def test_what_is_wrong_with_a_base_path_is_logged_when_it_begins_changes_and_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, listings = tmp_path / "m", Listings()
    caplog.set_level("INFO", "airflow_mlops.serving.embedded.loader")
    for _ in range(3):
        await listings.of(ServerConfig((ModelConfig("m", str(base)),)))
    base.write_text("a file")
    for _ in range(3):
        await listings.of(ServerConfig((ModelConfig("m", str(base)),)))
    base.unlink()
    (base / "1").mkdir(parents=True)
    for _ in range(3):
        assert await listings.of(ServerConfig((ModelConfig("m", str(base)),))) == {"m": {1: base / "1"}}
    missing, file, again = (record.getMessage() for record in caplog.records)
    assert missing == f"base path {base} does not exist, so nothing changes for its model"
    assert "cannot be listed" in file and "Not a directory" in file
    assert again == f"base path {base} can be listed again"


async def test_a_base_path_that_hangs_is_logged_once(base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    answers = threading.Event()
    monkeypatch.setattr(loader_module, "_LISTING_SECONDS", 0.02)
    monkeypatch.setattr(source, "versions_on_disk", lambda path: answers.wait(SECONDS) and {})
    listings = Listings()
    for _ in range(3):
        await listings.of(of(base))
    answers.set()
    (record,) = caplog.records
    assert record.getMessage() == f"base path {base} does not answer within 0.02 s, so nothing changes for its model"
    await asyncio.gather(*listings._looking.values())


async def test_a_base_path_that_was_left_is_named_again_when_it_comes_back(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    listings = Listings()
    for config in (of(base), of(base), ServerConfig(), of(base)):
        await listings.of(config)
    assert caplog.text.count("does not exist") == 2


async def test_the_loader_itself_says_once_what_is_wrong(serving: Serving, base: Path, caplog: pytest.LogCaptureFixture) -> None:
    await serving.configure(of(base))
    await asyncio.sleep(0.3)  # more than ten looks
    assert caplog.text.count("does not exist") == 1
