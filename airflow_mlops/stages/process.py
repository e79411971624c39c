"""A stage as a local process: its own process group, its log line by line, and never an orphan.

The process holds the reading end of a pipe, its *lifeline*. When whoever started it dies, even by ``kill -9``, the pipe ends and the
process kills its whole group: no training goes on that nobody waits for.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

from airflow_mlops.artifacts import canonical_json, write_atomically
from airflow_mlops.exceptions import ResultInvalid, StageKilled, StageStopped
from airflow_mlops.records import Record, read_record
from airflow_mlops.stages.output import lines
from airflow_mlops.stages.runner import spec_data, spec_digest
from airflow_mlops.stages.stop import EXIT_CODE


class StageProcess:
    """One run of a stage in a process group of its own.

    :param name: the stage.
    :param spec: its typed spec.
    :param out_dir: an empty directory of this try; the spec, the result record and every artefact go there.
    :param env: the whole environment of the process.
    """

    def __init__(self, name: str, spec: Any, out_dir: Path, *, env: Mapping[str, str]) -> None:
        self.name, self.spec, self.out_dir, self.env = name, spec, out_dir, env
        self.result_path = out_dir / "result.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()

    def run(self, log_line: Callable[[str], None]) -> Record:
        """Run the stage to its end and return its record, which may hold an error; `result_of` verifies the artefacts.

        :raises StageKilled: the process died by a signal, or left no record.
        :raises StageStopped: it was told to stop, and did.
        :raises ResultInvalid: the record is half-written or answers another request.
        """
        spec_path = self.out_dir / "spec.json"
        self.result_path.unlink(missing_ok=True)
        write_atomically(spec_path, canonical_json(spec_data(self.spec)))
        code = self._run([sys.executable, "-m", "airflow_mlops", "stage", self.name, "--spec", str(spec_path)], log_line)
        if code < 0:
            memory = "If nobody killed it, the machine ran out of memory: give it less data at a time, or more memory."
            crash = "It crashed in native code: see its log above, and whether drivers and libraries fit each other."
            raise StageKilled(
                f"Stage {self.name!r} was killed by {signal.Signals(-code).name}; expected it to end by itself. "
                + (memory if -code in (signal.SIGKILL, signal.SIGTERM) else crash)
            )
        if code == EXIT_CODE:
            raise StageStopped(f"Stage {self.name!r} was told to stop before it was done. Run it again: it goes on from its last checkpoint.")
        if not self.result_path.exists():
            raise StageKilled(f"Stage {self.name!r} ended with exit code {code} and left no result record. Its log above says why; run it again.")
        record = read_record(self.result_path, stage=self.name, spec_digest=spec_digest(self.spec))
        if record.result is not None and code != 0:
            raise ResultInvalid(f"Stage {self.name!r} left a result but ended with exit code {code}: it is not to be trusted. Run it again.")
        return record

    def stop(self, grace_seconds: float) -> None:
        """Tell the stage to end after a checkpoint, and kill it and everything it started when it has not ended `grace_seconds` later."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # already gone
                os.kill(process.pid, signal.SIGTERM)
            self._ended.wait(grace_seconds)
        self.kill()

    def kill(self) -> None:
        """Kill the stage and everything it started."""
        process = self._process
        if process is not None and process.returncode is None:  # afterwards its number may be another's
            with contextlib.suppress(ProcessLookupError):  # already gone
                os.killpg(process.pid, signal.SIGKILL)

    def _run(self, command: list[str], log_line: Callable[[str], None]) -> int:
        lifeline, holder = _pipe()
        ended, end = _pipe()
        with lifeline, holder, ended, end:
            self._process = process = subprocess.Popen(
                [*command, "--result", str(self.result_path), "--lifeline", str(lifeline.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(self.env),
                start_new_session=True,
                pass_fds=(lifeline.fileno(),),
            )
            lifeline.close()
            reaper = threading.Thread(target=self._reap, args=(process, end), daemon=True)
            reaper.start()
            output = cast(IO[bytes], process.stdout)  # it is a pipe, see above
            try:
                for line in lines(output.fileno(), ended.fileno()):
                    log_line(line)
                reaper.join()
            finally:
                self.kill()
                reaper.join()
                output.close()
            return process.returncode

    def _reap(self, process: subprocess.Popen[bytes], end: io.FileIO) -> None:
        """Wait for the stage, end what it leaves running, and say so by closing `end`."""
        with end:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet, so that its group's number stays its own
            self.kill()
            process.wait()
            self._ended.set()


def _pipe() -> tuple[io.FileIO, io.FileIO]:
    reader, writer = os.pipe()
    return io.FileIO(reader), io.FileIO(writer, "w")


def die_with_parent(lifeline: int) -> None:
    """Kill this process's whole group as soon as the other end of the pipe `lifeline` closes."""

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()
