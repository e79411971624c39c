"""A stage as a local process: its own process group, its log line by line, and never an orphan.

The process holds the reading end of a pipe, its *lifeline*. When whoever started it dies, even by ``kill -9``, the pipe ends and the
process kills its whole group: no training goes on that nobody waits for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from airflow_mlops.artifacts import canonical_json, write_atomically
from airflow_mlops.exceptions import ResultInvalid, StageKilled
from airflow_mlops.records import Record, read_record
from airflow_mlops.stages.runner import spec_data, spec_digest


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
        self._process: subprocess.Popen[str] | None = None

    def run(self, log_line: Callable[[str], None]) -> Record:
        """Run the stage to its end and return its verified record, which may hold an error.

        :raises StageKilled: the process died by a signal, or left no record.
        :raises ResultInvalid: the record is half-written or answers another request.
        """
        spec_path = self.out_dir / "spec.json"
        self.result_path.unlink(missing_ok=True)
        write_atomically(spec_path, canonical_json(spec_data(self.spec)))
        code = self._run([sys.executable, "-m", "airflow_mlops", "stage", self.name, "--spec", str(spec_path)], log_line)
        if code < 0:
            raise StageKilled(
                f"Stage {self.name!r} was killed by {signal.Signals(-code).name}; expected it to end by itself. "
                "If nobody killed it, the machine ran out of memory: give it less data at a time, or more memory."
            )
        if not self.result_path.exists():
            raise StageKilled(f"Stage {self.name!r} ended with exit code {code} and left no result record. Its log above says why; run it again.")
        record = read_record(self.result_path, stage=self.name, spec_digest=spec_digest(self.spec))
        if record.result is not None and code != 0:
            raise ResultInvalid(f"Stage {self.name!r} left a result but ended with exit code {code}: it is not to be trusted. Run it again.")
        return record

    def kill(self) -> None:
        """Kill the stage and everything it started."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):  # already gone
                os.killpg(process.pid, signal.SIGKILL)

    def _run(self, command: list[str], log_line: Callable[[str], None]) -> int:
        lifeline, holder = os.pipe()
        try:
            self._process = process = subprocess.Popen(
                [*command, "--result", str(self.result_path), "--lifeline", str(lifeline)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=dict(self.env),
                start_new_session=True,
                pass_fds=(lifeline,),
            )
            os.close(lifeline)
            # What the stage leaves running would hold its output open for ever: the group ends with its leader.
            reaper = threading.Thread(target=self._wait_and_kill_group, args=(process,), daemon=True)
            reaper.start()
            for line in process.stdout or ():
                log_line(line.rstrip("\n"))
            reaper.join()
            return process.returncode
        finally:
            self.kill()
            os.close(holder)

    def _wait_and_kill_group(self, process: subprocess.Popen[str]) -> None:
        process.wait()
        self.kill()


def die_with_parent(lifeline: int) -> None:
    """Kill this process's whole group as soon as the other end of the pipe `lifeline` closes."""

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()
