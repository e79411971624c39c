"""When a stage must end, because its time is over, somebody asks, or it hangs; and where a training goes on."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from airflow_mlops.artifacts import bytes_digest, canonical_json
from airflow_mlops.exceptions import SpecError, TrainingTimeout

if TYPE_CHECKING:
    from airflow_mlops.stages.train import Spec
    from airflow_mlops.training.checkpoints import CheckpointManager

EXIT_CODE = 143  # of a process that ended because of SIGTERM, as shells and Kubernetes have it
HANG_SECONDS = 300.0  # a function that looks for itself may do so only once an epoch
LAST_SECONDS = 30.0  # then it is deaf to signals, too
_held = threading.local()
_STOP_HEARING = b"\0"  # no signal has this number


class Stop:
    """`asked`: SIGTERM came; `timed_out`: `deadline`, in epoch seconds, had passed when `should_stop` was asked."""

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.asked = self.timed_out = False

    def should_stop(self) -> bool:
        """Return whether the training must end now."""
        self.timed_out = self.timed_out or (self.deadline is not None and time.time() >= self.deadline)
        return self.asked or self.timed_out


@contextlib.contextmanager
def ended_when_told() -> Iterator[None]:
    """Let SIGTERM end this process at once with `EXIT_CODE`, whatever it is doing, unless somebody handles it, as a training does.

    The first process of a container dies of no signal that it does not handle, and Python's handlers wait for native code to return, which in a
    worker that waits for the others may take for ever: so a thread hears of the signal, too. Outside the main thread nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ears, mouth = os.pipe()
    os.set_blocking(mouth, False)
    before = signal.signal(signal.SIGTERM, _end), signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    hearing = threading.Thread(target=_hear, args=(ears,), name="sigterm", daemon=True)
    hearing.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before[1])
        signal.signal(signal.SIGTERM, before[0])
        os.write(mouth, _STOP_HEARING)  # closing it would not do: a child that the user's code forked may hold it
        hearing.join()
        os.close(mouth)
        os.close(ears)


def _end(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"The stage was told to stop before it was done.\n")
    os._exit(EXIT_CODE)


def _hear(ears: int) -> None:
    while _STOP_HEARING not in (numbers := os.read(ears, 64)):
        if signal.SIGTERM in numbers and signal.getsignal(signal.SIGTERM) is _end:
            _end(signal.SIGTERM, None)


# A child that the user's code forks dies of SIGTERM as every process does, and its parent does not hear of it: until that is so, it gets none.
def _before_fork() -> None:
    if signal.getsignal(signal.SIGTERM) is _end:
        _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _in_child() -> None:
    if hasattr(_held, "mask"):
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _after_fork()


def _after_fork() -> None:
    if hasattr(_held, "mask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)
        del _held.mask


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


@contextlib.contextmanager
def listening(stop: Stop) -> Iterator[None]:
    """Note SIGTERM in `stop` instead of dying of it, and end what goes on long after the deadline.

    A function that hangs in Python is left by the error below, one that hangs in native code ends with its process, its stacks in the log. Outside
    the main thread, where Python takes no signals, nothing is done.

    :raises TrainingTimeout: `HANG_SECONDS` after the deadline, wherever the body is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        stop.asked = True

    def give_up(_number: int, frame: FrameType | None) -> None:
        where = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}" if frame else "an unknown place"
        raise TrainingTimeout(
            f"The training went on for {HANG_SECONDS:.0f} s after its time was over, at {where}. Look at context.should_stop() in loops of your own, "
            "mend what hangs there, or raise max_seconds."
        )

    handlers = {number: signal.signal(number, handler) for number, handler in ((signal.SIGTERM, note), (signal.SIGALRM, give_up))}
    if stop.deadline is not None:
        left = max(stop.deadline - time.time(), 0.0) + HANG_SECONDS
        signal.setitimer(signal.ITIMER_REAL, left)
        faulthandler.dump_traceback_later(left + LAST_SECONDS, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        faulthandler.cancel_dump_traceback_later()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def checkpoints_of(spec: Spec, origin: Mapping[str, str], out_dir: Path) -> CheckpointManager:
    """Return the checkpoints of this very request: of its dataset, code, seed, champion and split, which `origin` names, and parameters.

    Each request has a directory of its own, so that mended code begins anew and the trials of a search do not meet.

    :raises SpecError: a time is negative.
    """
    from airflow_mlops.training.checkpoints import CheckpointManager

    for name in ("max_seconds", "checkpoint_seconds"):
        if not getattr(spec, name) >= 0:  # also where it is NaN
            raise SpecError(f"{name} is {getattr(spec, name)}; give 0 or more.")
    decisive = {
        **{name: getattr(spec, name) for name in ("function", "retrain", "features", "params", "model_name", "reproducible")},
        **origin,
    }
    identity = bytes_digest(canonical_json(decisive))
    place = Path(spec.checkpoints) if spec.checkpoints else out_dir.parent / "checkpoints"
    return CheckpointManager(place / identity.removeprefix("sha256:")[:12], identity, spec.checkpoint_seconds)


def deadline(max_seconds: float, checkpoints: CheckpointManager) -> float | None:
    """Return when the training's time is over, in epoch seconds, or None; what interrupted attempts have trained counts."""
    if not max_seconds:
        return None
    checkpoint = checkpoints.latest()
    return time.time() + max_seconds - (float(checkpoint.state.get("seconds", 0.0)) if checkpoint else 0.0)
