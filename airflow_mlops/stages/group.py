"""Run one training as several processes of this machine, as a cluster runs it as several pods; when one dies, all end.

A worker that is alone would wait for the others for ever, so the group never leaves one behind.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from airflow_mlops.exceptions import SpecError, StageKilled, StageStopped
from airflow_mlops.records import Record
from airflow_mlops.stages.process import StageProcess

_AGAIN_SECONDS = 0.2  # a process that was just being started when the group ended is killed at the next look


class StageGroup:
    """One run of a stage by `num_workers` processes, of which worker 0 leaves the result record; used as `StageProcess` is.

    :param name: the stage, which joins the others by ``TF_CONFIG``.
    :param out_dir: an empty directory of this try, worker 0's own; those of the others are beside it, so that all find the same checkpoints.
    :param env: the whole environment of every process, to which ``TF_CONFIG`` is added.
    """

    def __init__(self, name: str, spec: Any, out_dir: Path, *, env: Mapping[str, str], num_workers: int) -> None:
        self.name, self.spec, self.out_dir, self.env, self.num_workers = name, spec, out_dir, env, num_workers
        self.result_path = out_dir / "result.json"
        self._processes: Sequence[StageProcess] = ()
        self._killed = False

    def run(self, log_line: Callable[[str], None]) -> Record:
        """Run all workers to their end and return worker 0's record, or the one in which the first of them that failed says why.

        Lines of the others begin with their number.

        :raises SpecError: there are not two workers or more.
        :raises StageKilled: a worker died by a signal or without a record; the others were killed.
        :raises ResultInvalid: a record is half-written or answers another request.
        """
        self._processes = [self._worker(index, config) for index, config in enumerate(tf_configs(_free_addresses(self.num_workers)))]
        with ThreadPoolExecutor(self.num_workers) as pool:
            running = [pool.submit(process.run, partial(_told, log_line, index)) for index, process in enumerate(self._processes)]
            try:
                failed = self._first_failure(running)
            finally:
                self._end(running)
        return (failed or running[0]).result()

    def stop(self, grace_seconds: float) -> None:
        """Tell all workers to end after a checkpoint, and kill those that have not ended `grace_seconds` later."""
        with ThreadPoolExecutor(self.num_workers) as pool:
            for process in self._processes:
                pool.submit(process.stop, grace_seconds)

    def kill(self) -> None:
        """Kill all workers and everything they started."""
        self._killed = True
        for process in self._processes:
            process.kill()

    def _worker(self, index: int, config: str) -> StageProcess:
        out_dir = self.out_dir.with_name(f"{self.out_dir.name}-worker-{index}") if index else self.out_dir
        out_dir.mkdir(parents=True, exist_ok=True)
        return StageProcess(self.name, self.spec, out_dir, env={**self.env, "TF_CONFIG": config})

    def _first_failure(self, running: Sequence[Future[Record]]) -> Future[Record] | None:
        """Wait until all workers are done, or one failed: that one is returned."""
        waiting = set(running)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for one in done:
                error = one.exception()
                if isinstance(error, StageStopped):  # as all were told to; the chief may still write its checkpoint
                    continue
                if error is not None or one.result().error is not None:
                    return one
            if self._killed:
                raise StageKilled(f"Stage {self.name!r} was killed with all its {self.num_workers} workers. Run it again.")
        return None

    def _end(self, running: Sequence[Future[Record]]) -> None:
        """Kill what still runs, and wait until it is gone."""
        waiting = set(running)
        while waiting:
            for process in self._processes:
                process.kill()
            _, waiting = wait(waiting, timeout=_AGAIN_SECONDS)


def tf_configs(addresses: Sequence[str]) -> list[str]:
    """Return the ``TF_CONFIG`` of each worker at `addresses`, ``host:port``; raise `SpecError` for fewer than two."""
    if len(addresses) < 2:
        raise SpecError(f"num_workers is {len(addresses)}; several that train together are two or more.")
    return [json.dumps({"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}}) for index in range(len(addresses))]


def _free_addresses(number: int) -> list[str]:
    with contextlib.ExitStack() as stack:  # all are held until the last one is found, so that no two are the same
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def _told(log_line: Callable[[str], None], index: int, line: str) -> None:
    log_line(f"[{index}] {line}" if index else line)
