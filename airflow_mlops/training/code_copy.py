"""A copy of the user's code where Git is not: which files it consists of, and from which commit it came."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from airflow_mlops.artifacts import file_digest, tree_digest, write_atomically
from airflow_mlops.exceptions import SpecError
from airflow_mlops.training.git import run_git

MAX_FILES, MAX_BYTES = 20_000, 512 * 2**20
ORIGIN_FILE = ".code-origin.json"  # hidden, so that it is no part of the code it describes
_CACHES = {"__pycache__", "node_modules"}


def code_files(code_path: Path) -> list[str]:
    """Return the relative paths of what a copy of `code_path` needs: what Git knows or would add, without Git everything that is not hidden.

    :raises SpecError: more than `MAX_FILES` files or `MAX_BYTES` bytes, which is no code; or there is no such directory.
    """
    if not code_path.is_dir():
        raise SpecError(f"The code path {code_path} is no directory. Give the one of the user's code.")
    found = [path for path in _known_to_git(code_path) or _visible(code_path) if (code_path / path).is_file()]
    size = sum((code_path / path).stat().st_size for path in found)
    if len(found) > MAX_FILES or size > MAX_BYTES:
        raise SpecError(
            f"The code path {code_path} holds {len(found)} files with {size} bytes; expected at most {MAX_FILES} with {MAX_BYTES} bytes, for they "
            "are sent to every pod. Give the code a directory of its own, or have Git ignore the rest."
        )
    return sorted(found)


def write_origin(code_path: Path, version: str, authors: tuple[str, ...]) -> None:
    """Note in a copy from which version of the code, by which authors, it was made; it counts as long as the copy is not altered."""
    origin = {"version": version, "authors": list(authors), "digest": _digest(code_path)}
    write_atomically(code_path / ORIGIN_FILE, json.dumps(origin).encode())


def read_origin(code_path: Path) -> tuple[str, tuple[str, ...]] | None:
    """Return version and authors of the code that this directory is an unaltered copy of; None if it is not known to be one."""
    path = code_path / ORIGIN_FILE
    if not path.is_file():
        return None
    origin = json.loads(path.read_bytes())
    return (origin["version"], tuple(origin["authors"])) if origin["digest"] == _digest(code_path) else None


def _digest(code_path: Path) -> str:
    return tree_digest({path: file_digest(code_path / path) for path in _visible(code_path)})


def _visible(code_path: Path) -> list[str]:
    relative = [path.relative_to(code_path) for path in code_path.rglob("*") if path.is_file()]
    return [path.as_posix() for path in relative if not any(part.startswith(".") or part in _CACHES for part in path.parts)]


def _known_to_git(code_path: Path) -> list[str]:
    """Return what Git tracks or would add below a directory, nothing where there is no Git."""
    try:
        answer = run_git("--no-optional-locks", "-C", str(code_path), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", ".")
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    return list(dict.fromkeys(answer.stdout.split("\0")[:-1])) if answer.returncode == 0 else []
