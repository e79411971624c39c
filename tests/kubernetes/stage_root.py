"""What the image of a stage holds, as a plain directory: filled by the image's own install script, with the package as this checkout has it.

The dependencies are installed once per machine and lock, into the user's cache; that takes a minute and a half. Each use gets them as hard links,
in a second, and the package anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DOCKER = Path(__file__).parents[2] / "docker"
SCRIPT, LOCK = DOCKER / "install-stage.sh", DOCKER / "stage-cpu.lock"


@contextmanager
def stage_root() -> Iterator[Path]:
    """Yield a virtual environment of what the image ``cpu`` holds, and delete it in the end."""
    done = _dependencies()
    with tempfile.TemporaryDirectory(prefix="stage-", dir=done.parent) as name:
        root = Path(name) / "root"
        shutil.copytree(done, root, symlinks=True, copy_function=os.link)
        _install(root, "package")
        yield root


def _dependencies() -> Path:
    """Return the directory of everything but the package; two who ask at once install once."""
    recipe = hashlib.sha256(SCRIPT.read_bytes() + LOCK.read_bytes() + sys.version.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "airflow-mlops"
    done = cache / f"stage-{recipe}"
    cache.mkdir(parents=True, exist_ok=True)
    with done.with_name(f"{done.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.is_dir():
            work = done.with_name(f"{done.name}.filling")  # the lock's holder is alone: what stands there is of one who was killed
            shutil.rmtree(work, ignore_errors=True)
            _install(work, "framework", "dependencies")
            work.rename(done)
    return done


def _install(prefix: Path, *parts: str) -> None:
    subprocess.run([SCRIPT, prefix, "cpu", *parts], check=True, env={**os.environ, "PYTHON": sys.executable})
