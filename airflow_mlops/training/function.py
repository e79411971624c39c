"""The user's train function: found by name, and its code identified, so that a model can be traced to the code that made it."""

from __future__ import annotations

import difflib
import importlib
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from airflow_mlops.artifacts import bytes_digest, file_digest
from airflow_mlops.exceptions import SpecError
from airflow_mlops.training.code_copy import read_origin
from airflow_mlops.training.git import run_git


def resolve(name: str, code_path: Path) -> Callable[..., Any]:
    """Return the function that ``module:function`` names below the directory `code_path`; raise `SpecError` saying what is wrong.

    `code_path` stays first on ``sys.path``: the function may import its neighbours later. Use it in a process of its own.
    """
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        raise SpecError(f"{name!r} names no train function: expected 'module:function', for instance 'digits_model:train'.")
    module = import_from(code_path.resolve(), module_name)
    function = getattr(module, function_name, None)
    if function is None:
        known = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        near = difflib.get_close_matches(function_name, known, n=3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else f" It has: {', '.join(known) or 'no functions'}."
        raise SpecError(f"Module {module_name!r} ({module.__file__}) has no function {function_name!r}.{hint}")
    if not callable(function):
        raise SpecError(f"{name!r} is a {type(function).__name__}, no function: expected a callable that takes a TrainingContext.")
    return function  # type: ignore[no-any-return]


def import_from(code_path: Path, module_name: str) -> ModuleType:
    """Return a user's module that lies below `code_path`, an absolute directory; raise `SpecError` saying what is wrong."""
    if not code_path.is_dir():
        raise SpecError(f"The code path {code_path} is no directory: give the directory that holds module {module_name!r}.")
    if str(code_path) not in sys.path:
        sys.path.insert(0, str(code_path))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may fail, or exit, in any way
        last_line = traceback.format_exception_only(error)[-1].strip()
        raise SpecError(f"Module {module_name!r} cannot be imported from {code_path}: {last_line}. Mend the module or the code path.") from error
    if not module.__file__ or not Path(module.__file__).resolve().is_relative_to(code_path):
        # Its code version would be that of other code.
        found = module.__file__ or "the interpreter"
        raise SpecError(f"Module {module_name!r} comes from {found}, not from the code path {code_path}. Rename it or correct the code path.")
    return module


def import_all(code_path: Path, module_names: Iterable[str]) -> None:
    """Import a team's modules below `code_path`, because of what they register or add; raise `SpecError` as `import_from` does."""
    for name in module_names:
        import_from(code_path.resolve(), name)


def code_version(code_path: Path) -> str:
    """Return the Git commit that `code_path` is at, with ``+dirty`` if anything below it differs, or a digest of its Python sources.

    The digest (``sha256:...``) stands where Git does not know the directory, unless it is a copy that says from where; raise `SpecError` if there
    is no Python source either.
    """
    commit = _git(code_path, "rev-parse", "--verify", "HEAD")
    if commit and _git(code_path, "ls-files", "--", "."):
        changes = _git(code_path, "status", "--porcelain", "--", ".", ":(exclude,glob)**/__pycache__/**")
        return commit if changes == "" else f"{commit}+dirty"
    origin = read_origin(code_path)
    return origin[0] if origin else sources_digest(code_path)


def sources_digest(code_path: Path) -> str:
    """Return the digest of the Python sources below `code_path`, whatever Git knows of them; raise `SpecError` if there are none."""
    sources = sorted(code_path.rglob("*.py"))
    if not sources:
        raise SpecError(f"{code_path} holds no Python source: give the directory of the train function.")
    lines = "".join(f"{file_digest(source)}  {source.relative_to(code_path).as_posix()}\n" for source in sources)
    return bytes_digest(lines.encode())


def code_authors(code_path: Path) -> tuple[str, ...]:
    """Return who wrote and who committed the last change below `code_path` (``Ann Lee <ann@example.org>``); nobody where Git does not know it."""
    people = _git(code_path, "log", "-1", "--format=%an <%ae>%n%cn <%ce>", "--", ".") or ""
    if not people and (origin := read_origin(code_path)):
        return origin[1]
    return tuple(dict.fromkeys(people.splitlines()))


def _git(directory: Path, *arguments: str) -> str | None:
    """Return the output of a Git command, or None where there is no Git, or it fails or hangs."""
    try:
        answer = run_git("--no-optional-locks", "-C", str(directory), *arguments)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
