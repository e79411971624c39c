"""A stage's process: heard while it runs, believed by its record alone, and never outliving whoever waits for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from airflow_mlops.artifacts import canonical_json
from airflow_mlops.exceptions import DatasetNotFound, ResultInvalid, StageError, StageKilled, StageStopped
from airflow_mlops.records import SCHEMA_VERSION, Record, result_of
from airflow_mlops.results import to_data
from airflow_mlops.stages.process import StageProcess
from airflow_mlops.stages.runner import spec_digest
from tests.processes import alive, wait_until

DEATH_SECONDS = 20.0  # a dead process is seen at once; a busy machine may take its time


class Scripted:
    """Starts the scripted stage in `out_dir` and keeps what it says."""

    def __init__(self, module: ModuleType, out_dir: Path) -> None:
        self.module, self.out_dir, self.said = module, out_dir, list[str]()

    def process(self, action: str, text: str = "", number: float = 0.0) -> StageProcess:
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        return StageProcess("scripted", self.module.Spec(action, text, number), self.out_dir, env=env)

    def run(self, action: str, text: str = "", number: float = 0.0) -> Record:
        return self.process(action, text, number).run(self.said.append)

    def record(self, action: str, **changes: Any) -> str:
        """Return a whole record of the request for `action`, or of another one."""
        record = Record(SCHEMA_VERSION, "scripted", spec_digest(self.module.Spec(action)), result={"number": 0.0})
        return canonical_json({**to_data(record), **changes}).decode()

    def pids(self) -> list[int]:
        path = self.out_dir / "pids.json"
        wait_until(path.exists)
        return list(json.loads(path.read_bytes()))


@pytest.fixture
def stage(scripted: ModuleType, tmp_path: Path) -> Scripted:
    return Scripted(scripted, tmp_path)


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """Processes that the test ends after itself, whatever happens."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_the_log_is_heard_line_by_line_while_the_stage_runs(stage: Scripted, tmp_path: Path) -> None:
    heard = tmp_path / "heard"

    def log_line(line: str) -> None:
        stage.said.append(line)
        if line == "first":
            heard.touch()

    record = stage.process("talk", str(heard)).run(log_line)
    assert record.result is not None
    assert stage.said == ["first", "second", "Result"]


def test_a_stage_that_is_killed_is_worth_a_retry_and_its_last_words_are_kept(stage: Scripted) -> None:
    with pytest.raises(StageKilled, match=r"'scripted' was killed by SIGKILL.*ran out of memory") as caught:
        stage.run("kill_itself")
    assert caught.value.retryable
    assert stage.said == ["the last words"]


@pytest.mark.parametrize("code", [0, 1])
def test_a_stage_without_a_record_did_nothing_whatever_its_exit_code(stage: Scripted, code: int) -> None:
    with pytest.raises(StageKilled, match=f"ended with exit code {code} and left no result record"):
        stage.run("leave_silently", number=code)


def test_the_record_of_an_earlier_run_is_not_taken_for_this_one(stage: Scripted, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(stage.record("leave_silently"))
    with pytest.raises(StageKilled, match="left no result record"):
        stage.run("leave_silently")


def test_a_half_written_record_is_refused(stage: Scripted) -> None:
    with pytest.raises(ResultInvalid, match="not a whole JSON document"):
        stage.run("leave_text", stage.record("leave_text")[:-20])


def test_the_record_of_another_request_is_refused(stage: Scripted) -> None:
    with pytest.raises(ResultInvalid, match="result of another request"):
        stage.run("leave_text", stage.record("talk"))


def test_a_result_with_a_bad_exit_code_is_not_trusted(stage: Scripted) -> None:
    with pytest.raises(ResultInvalid, match="left a result but ended with exit code 3"):
        stage.run("crash_at_exit")


def test_an_error_in_the_stage_comes_out_as_the_same_error(stage: Scripted) -> None:
    record = stage.run("fail_for_now")
    assert record.error is not None
    error = record.error.exception()
    assert (type(error), str(error), error.retryable) == (DatasetNotFound, "not there yet", True)


def test_an_unexpected_error_leaves_its_traceback_in_the_log(stage: Scripted) -> None:
    record = stage.run("raise_something", "pixel_99")
    assert record.error is not None
    assert type(record.error.exception()) is StageError
    assert record.error.message == "KeyError: 'pixel_99'"
    assert any(line.startswith("Traceback") for line in stage.said)


def test_a_result_that_is_no_number_is_an_error_that_names_the_field(stage: Scripted) -> None:
    record = stage.run("answer_nan")
    assert record.error is not None
    assert "result of stage 'scripted' is not a Result: number: Input should be a finite number" in record.error.message


def test_an_artefact_is_believed_by_its_digest(stage: Scripted) -> None:
    result = result_of(stage.run("leave_file"), stage.module.Result)
    assert result.file.path.read_text() == "weights"
    with pytest.raises(ResultInvalid, match="model changed after it was recorded"):
        result_of(stage.run("spoil_file"), stage.module.Result)


def test_garbage_in_the_log_disturbs_nothing(stage: Scripted) -> None:
    assert stage.run("write_garbage").result is not None
    assert "after ä" in stage.said
    assert stage.said[-1] == "\ufffdResult"


def test_what_a_stage_leaves_running_ends_with_it(stage: Scripted) -> None:
    assert stage.run("start_child").result is not None
    wait_until(lambda: not any(map(alive, stage.pids())))


def test_a_daemon_that_keeps_the_output_open_does_not_hold_up_the_run(stage: Scripted, ended: list[int]) -> None:
    assert stage.run("daemonise").result is not None
    ended += stage.pids()
    assert alive(ended[0])  # it left the group and never stops writing: not ours to end, and not waited for


def test_kill_ends_the_stage_and_its_children(stage: Scripted) -> None:
    process = stage.process("start_child_and_wait")
    killed: list[BaseException] = []

    def run() -> None:
        try:
            process.run(stage.said.append)
        except StageKilled as error:
            killed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    pids = stage.pids()
    process.kill()
    thread.join(DEATH_SECONDS)
    assert not thread.is_alive()
    assert len(killed) == 1
    wait_until(lambda: not any(map(alive, pids)))
    process.kill()  # a second time is no error


@pytest.mark.parametrize(
    ("action", "grace_seconds", "end"),
    [
        ("start_child_and_wait", 60.0, "told to stop"),
        ("wait_in_native_code", 60.0, "told to stop"),
        ("lose_the_wakeup", 60.0, "told to stop"),
        ("ignore_termination", 0.3, "SIGKILL"),
    ],
)
def test_stop_ends_the_stage_and_its_children_at_once_or_after_the_grace(stage: Scripted, action: str, grace_seconds: float, end: str) -> None:
    process, ends = stage.process(action), list[BaseException]()

    def run() -> None:
        try:
            process.run(stage.said.append)
        except StageError as error:
            ends.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    pids = stage.pids()
    process.stop(grace_seconds)
    thread.join(DEATH_SECONDS)
    assert not thread.is_alive()
    assert end in str(ends[0])
    wait_until(lambda: not any(map(alive, pids)))
    process.stop(grace_seconds)  # a second time is no error


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a namespace of processes")
@pytest.mark.parametrize("action", ["start_child_and_wait", "wait_in_native_code"])
def test_the_first_process_of_a_container_ends_when_it_is_told_to(stage: Scripted, action: str) -> None:
    spec = stage.out_dir / "spec.json"
    spec.write_bytes(canonical_json(stage.module.Spec(action)._asdict()))
    words = [sys.executable, "-m", "airflow_mlops", "stage", "scripted", "--spec", spec, "--result", stage.out_dir / "result.json"]
    with subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *words]) as outside:
        try:
            assert stage.pids()[0] == 1, "the first process of its namespace"
            (first,) = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()
            os.kill(int(first), signal.SIGTERM)
            assert outside.wait(DEATH_SECONDS) == 143
        finally:
            outside.kill()  # and with it, what did not end
    assert not (stage.out_dir / "result.json").exists()


def test_a_child_that_the_users_code_forked_and_ended_ends_alone(stage: Scripted) -> None:
    assert stage.run("fork_and_wait").error is None


def test_a_stage_that_ended_because_it_was_told_to_says_that_it_goes_on(stage: Scripted) -> None:
    with pytest.raises(StageStopped, match="goes on from its last checkpoint") as caught:
        stage.run("leave_silently", number=143)
    assert caught.value.retryable


def test_a_crash_in_native_code_is_not_taken_for_too_little_memory(stage: Scripted) -> None:
    with pytest.raises(StageKilled, match=r"killed by SIGSEGV.*crashed in native code"):
        stage.run("crash")


def test_an_error_while_logging_ends_the_stage(stage: Scripted) -> None:
    def log_line(_: str) -> None:
        raise InterruptedError("the task was told to stop")

    with pytest.raises(InterruptedError):
        stage.process("start_child_and_wait").run(log_line)
    assert stage.pids()
    wait_until(lambda: not any(map(alive, stage.pids())))


def test_a_stage_and_its_children_die_with_whoever_started_them(stage: Scripted, ended: list[int]) -> None:
    program = (
        "import sys, os, pathlib, sitecustomize, scripted_stage\n"
        "from airflow_mlops.stages.process import StageProcess\n"
        "spec = scripted_stage.Spec('start_child_and_wait')\n"
        "StageProcess('scripted', spec, pathlib.Path(sys.argv[1]), env=os.environ).run(print)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(stage.out_dir)], stdout=subprocess.DEVNULL)
    ended.append(parent.pid)
    pids = stage.pids()
    ended += pids
    assert all(map(alive, pids))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not any(map(alive, pids)))


def test_a_run_leaves_no_open_file_behind(stage: Scripted) -> None:
    stage.run("leave_file")
    before = sorted(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        stage.run("leave_file")
    assert sorted(Path("/proc/self/fd").iterdir()) == before
