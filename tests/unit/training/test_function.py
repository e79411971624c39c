"""Finding the user's function, and identifying its code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.exceptions import SpecError
from airflow_mlops.training.function import code_version, resolve
from tests.git import git


@pytest.fixture
def code(tmp_path: Path) -> Iterator[Path]:
    """A directory with user code; afterwards the interpreter forgets it."""
    path, modules = list(sys.path), set(sys.modules)
    (tmp_path / "usercode.py").write_text("SIZE = 3\n\ndef train(context):\n    return 'model'\n")
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_a_function_is_found_by_module_and_name(code: Path) -> None:
    assert resolve("usercode:train", code)(None) == "model"


def test_a_function_may_import_its_neighbours_later(code: Path) -> None:
    (code / "neighbour.py").write_text("ANSWER = 42\n")
    (code / "late.py").write_text("def train(context):\n    import neighbour\n    return neighbour.ANSWER\n")
    assert resolve("late:train", code)(None) == 42


@pytest.mark.parametrize("name", ["usercode", "usercode:", ":train", ""])
def test_a_name_without_module_or_function_says_what_was_expected(code: Path, name: str) -> None:
    with pytest.raises(SpecError, match="expected 'module:function'"):
        resolve(name, code)


def test_an_unknown_function_names_the_near_ones(code: Path) -> None:
    with pytest.raises(SpecError, match=r"has no function 'tarin'\. Did you mean 'train'\?"):
        resolve("usercode:tarin", code)


def test_a_value_that_is_not_callable_is_refused(code: Path) -> None:
    with pytest.raises(SpecError, match="is a int, no function"):
        resolve("usercode:SIZE", code)


@pytest.mark.parametrize(
    ("source", "last_line"),
    [
        ("import no_such_package\n", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("def train(:\n", "SyntaxError"),
        ("raise RuntimeError('no licence')\n", "RuntimeError: no licence"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_shows_the_last_line_of_its_traceback(code: Path, source: str, last_line: str) -> None:
    (code / "broken.py").write_text(source)
    with pytest.raises(SpecError, match=f"'broken' cannot be imported from .*{last_line}"):
        resolve("broken:train", code)


def test_a_module_that_does_not_exist_is_refused(code: Path) -> None:
    with pytest.raises(SpecError, match="No module named 'nowhere'"):
        resolve("nowhere:train", code)


def test_a_module_from_elsewhere_is_refused_because_its_code_version_would_be_wrong(code: Path) -> None:
    with pytest.raises(SpecError, match="not from the code path"):
        resolve("json:dumps", code)


def test_a_code_path_that_is_no_directory_is_refused(code: Path) -> None:
    with pytest.raises(SpecError, match="is no directory"):
        resolve("usercode:train", code / "usercode.py")


def test_outside_git_the_code_version_is_a_digest_of_the_python_sources(code: Path) -> None:
    before = code_version(code)
    assert before.startswith("sha256:")
    (code / "notes.txt").write_text("no code")
    assert code_version(code) == before
    (code / "usercode.py").write_text("def train(context): ...\n")
    assert code_version(code) != before


def test_inside_git_the_code_version_is_the_commit_and_says_when_files_differ(code: Path) -> None:
    git(code, "init", "--quiet")
    assert code_version(code).startswith("sha256:")  # no commit yet
    git(code, "add", "usercode.py")
    git(code, "commit", "--quiet", "--message", "code")
    commit = git(code, "rev-parse", "HEAD")
    (code / "__pycache__").mkdir()
    (code / "__pycache__" / "usercode.pyc").write_bytes(b"compiled")
    assert code_version(code) == commit
    (code / "usercode.py").write_text("def train(context): ...\n")
    assert code_version(code) == f"{commit}+dirty"


def test_code_that_git_does_not_know_is_not_called_by_the_commit_around_it(code: Path) -> None:
    git(code, "init", "--quiet")
    git(code, "add", "usercode.py")
    git(code, "commit", "--quiet", "--message", "code")
    (code / "ignored").mkdir()
    (code / "ignored" / "other.py").write_text("SIZE = 1\n")
    assert code_version(code / "ignored").startswith("sha256:")


def test_a_git_that_hangs_is_as_good_as_none(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert code_version(code).startswith("sha256:")


def test_a_directory_without_python_has_no_code_version(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="holds no Python source"):
        code_version(tmp_path)
