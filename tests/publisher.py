"""Publishers that are killed: ``python -m tests.publisher`` reads one order per line, publishes in a process of its own, and says how it ended.

An order is the arguments of `publish_saved_model` as JSON, and `kill_at`, the file operation before which the process kills itself. The answer
is the exit status and, of one that was not killed, the number of file operations it took.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

OPERATIONS = ("open", "os.", "shutil.", "fcntl.")


def main() -> None:
    from airflow_mlops.serving import object_store, publish  # noqa: F401  # imported once, for all that are forked

    for line in sys.stdin:
        order = json.loads(line)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            operations = _obey(order)
            os.write(writing, str(operations).encode())
            os._exit(0)
        os.close(writing)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with os.fdopen(reading) as answer:
            print(json.dumps([status, answer.read()]), flush=True)


def _obey(order: dict[str, Any]) -> int:
    from airflow_mlops.serving.publish import publish_saved_model

    counter, kill_at = itertools.count(), order.pop("kill_at", None)
    paths = {name: Path(order.pop(name)) for name in ("source", "golden") if name in order}
    if "storage_options" in order:  # so that the server knows whom it may kill
        order["storage_options"]["config_kwargs"] = {"user_agent_extra": f"publisher/{os.getpid()}"}

    def count(event: str, _: Any) -> None:
        if event.startswith(OPERATIONS) and next(counter) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    publish_saved_model(**paths, **order)
    return next(counter)


class Publishers:
    """The running process; each call publishes in a process of its own, which leaves its temporary files in `scratch`."""

    def __init__(self, scratch: Path) -> None:
        self._env = {**os.environ, "TMPDIR": str(scratch)}

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.publisher"]
        self._process = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], env=self._env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.communicate(timeout=20)

    def publish(self, **order: Any) -> tuple[int, str]:
        """Return the exit status, -9 of one that was killed, and the number of its file operations."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps(order, default=str), file=self._process.stdin, flush=True)
        status, operations = json.loads(self._process.stdout.readline())
        return status, operations


if __name__ == "__main__":
    main()
