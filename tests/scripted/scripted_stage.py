"""A stage that behaves as its spec says, and misbehaves in every way a stage can; light, so that a test can run it in a real process."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from airflow_mlops.artifacts import Artifact
from airflow_mlops.exceptions import DatasetNotFound
from airflow_mlops.results import STRICT, StageResult
from airflow_mlops.stages import stop
from airflow_mlops.training.progress import Progress


class Spec(NamedTuple):
    """`action` is one of `ACTIONS`; `text` is what it may need."""

    action: str
    text: str = ""
    number: float = 0.0


@STRICT
@dataclass(frozen=True)
class Result(StageResult):
    """The file that the action left, if any."""

    number: float = 0.0
    file: Artifact | None = None


def run(spec: Spec, out_dir: Path) -> Result:
    return ACTIONS[spec.action](spec, out_dir) or Result(spec.number)


def talk(spec: Spec, _: Path) -> None:
    """Say a line, go on only when somebody has heard it, say another."""
    print("first")
    end = time.monotonic() + 20
    while not Path(spec.text).exists():
        if time.monotonic() > end:
            raise TimeoutError("nobody heard the first line")
        time.sleep(0.005)
    print("second")


def kill_itself(_: Spec, __: Path) -> None:
    print("the last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def leave_silently(spec: Spec, _: Path) -> None:
    os._exit(int(spec.number))


def leave_text(spec: Spec, out_dir: Path) -> None:
    """Write `text` as the result record and leave as if all were well."""
    (out_dir / "result.json").write_text(spec.text)
    os._exit(0)


def crash_at_exit(_: Spec, __: Path) -> None:
    atexit.register(os._exit, 3)


def fail_for_now(_: Spec, __: Path) -> None:
    raise DatasetNotFound("not there yet")


def raise_something(spec: Spec, _: Path) -> None:
    raise KeyError(spec.text)


def answer_nan(_: Spec, __: Path) -> Result:
    return Result(float("nan"))


def leave_file(_: Spec, out_dir: Path) -> Result:
    (out_dir / "model").write_text("weights")
    return Result(file=Artifact.of(out_dir / "model"))


def spoil_file(spec: Spec, out_dir: Path) -> Result:
    """Change the file after its digest was taken."""
    result = leave_file(spec, out_dir)
    (out_dir / "model").write_text("wEights")
    return result


def show_environment(_: Spec, out_dir: Path) -> None:
    (out_dir / "environment.json").write_text(json.dumps(dict(os.environ)))


def write_garbage(_: Spec, __: Path) -> None:
    os.write(1, bytes(range(256)) * 1000 + "\nafter ä\r\n".encode() + b"\xc3")


def start_child(_: Spec, out_dir: Path) -> None:
    child = subprocess.Popen(["sleep", "100"])
    note_pids(out_dir, os.getpid(), child.pid)


def start_child_and_wait(spec: Spec, out_dir: Path) -> None:
    start_child(spec, out_dir)
    print("waiting", flush=True)
    time.sleep(100)


def wait_in_native_code(spec: Spec, out_dir: Path) -> None:
    """Wait for ever where Python handles no signal, as a worker does whose colleagues do not come."""
    lock = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(lock)
    note_pids(out_dir, os.getpid())
    ctypes.CDLL(None).pthread_mutex_lock(lock)


def lose_the_wakeup(spec: Spec, out_dir: Path) -> None:
    """Wait when the signals' wake-up is somebody else's, as an event loop makes it."""
    signal.set_wakeup_fd(-1)
    start_child_and_wait(spec, out_dir)


def fork_and_wait(spec: Spec, out_dir: Path) -> None:
    """Have a child by fork, end it, and go on."""
    if not (child := os.fork()):
        time.sleep(100)
    os.kill(child, signal.SIGTERM)
    left = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert left == -signal.SIGTERM, left


def ignore_termination(spec: Spec, out_dir: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start_child_and_wait(spec, out_dir)


def crash(_: Spec, __: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def daemonise(_: Spec, out_dir: Path) -> None:
    """Leave a process in a session of its own that holds the output open and writes to it."""
    program = "import time\nwhile True:\n    print('x' * 100, flush=True)\n    time.sleep(0.001)"
    daemon = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    note_pids(out_dir, daemon.pid)


def fill(spec: Spec, out_dir: Path) -> Result:
    """Write `number` bytes into the directory that `text` names below the stage's own."""
    (out_dir / spec.text / "model").write_bytes(bytes(int(spec.number)))
    return Result(file=Artifact.of(out_dir / spec.text / "model"))


def hang(spec: Spec, _: Path) -> None:
    """Listen to nobody, as a train function may, for longer than the `number` of seconds that it has."""
    stop.HANG_SECONDS = spec.number
    with stop.listening(stop.Stop(time.time())):
        time.sleep(60)


def tell_progress(_: Spec, __: Path) -> None:
    for step in range(3):
        print(Progress(step, 3, step, loss=1.0 / (step + 1)).line())


def talk_of_progress(spec: Spec, out_dir: Path) -> None:
    """Tell of one epoch, go on only when somebody has heard of it, tell of two more."""
    for step in range(1, 4):
        print(Progress(step, 3, step, loss=1.0 / step).line())
        if step == 1:
            talk(spec, out_dir)


def tell_lines(spec: Spec, out_dir: Path) -> None:
    """Print `number` numbered lines, and between every hundred of them as many seconds as `text` says."""
    (out_dir / "ready").touch()
    for number in range(int(spec.number)):
        print(f"numbered {number}")
        if number % 100 == 0 and spec.text:
            sys.stdout.flush()
            time.sleep(float(spec.text))


def tell_much(spec: Spec, _: Path) -> None:
    """Print `number` numbered lines of `text` bytes each, as fast as they are taken."""
    for number in range(int(spec.number)):
        print(f"numbered {number} ".ljust(int(spec.text) - 1, "x"))


def save_when_told(_: Spec, out_dir: Path) -> None:
    """Work until ``enough`` lies in the workspace; told to stop, save and leave without a result, as a training does."""

    def save(*_: object) -> None:
        (out_dir / "saved").write_text("checkpoint")
        os._exit(143)

    signal.signal(signal.SIGTERM, save)
    (out_dir / "ready").touch()
    while not (out_dir.parents[4] / "enough").exists():
        time.sleep(0.01)


def note_pids(out_dir: Path, *pids: int) -> None:
    (out_dir / "pids.part").write_text(json.dumps(pids))
    (out_dir / "pids.part").rename(out_dir / "pids.json")


ACTIONS: dict[str, Callable[[Spec, Path], Result | None]] = {
    action.__name__: action
    for action in (
        talk,
        kill_itself,
        leave_silently,
        leave_text,
        crash_at_exit,
        fail_for_now,
        raise_something,
        answer_nan,
        leave_file,
        spoil_file,
        show_environment,
        write_garbage,
        start_child,
        start_child_and_wait,
        wait_in_native_code,
        lose_the_wakeup,
        fork_and_wait,
        ignore_termination,
        crash,
        daemonise,
        save_when_told,
        tell_progress,
        talk_of_progress,
        tell_lines,
        tell_much,
        fill,
        hang,
    )
}
