"""What must not be done twice to a deployment is done by one process at a time; the system releases its lock however that process ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from airflow_mlops.exceptions import MlopsError


@contextlib.contextmanager
def only_one(home: Path, what: str, *, where: str = "") -> Iterator[None]:
    """Hold the lock `what` of the deployment in `home`, which is made if it is not there.

    :param where: added to the error that another one gets, after who has the lock.
    :raises MlopsError: another process has it; the message says which, and where to look.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = home / f"{what}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MlopsError(f"{_holder(path)} of {home}, and one can at a time. {where}Wait until it has ended, or stop it: make stop.") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "what": what}).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        return f"Process {holder['pid']} does the {holder['what']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun, and has not written yet
        return f"Another process does the {path.stem}"
