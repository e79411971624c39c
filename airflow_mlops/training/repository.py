"""User code from a repository of its own: exactly one commit, as a clean tree, wherever a stage runs.

A bare clone is kept, so that the next try fetches only what is new. No hooks and no submodules take part, and nobody is asked for a password.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from airflow_mlops.exceptions import RepositoryUnavailable, SpecError
from airflow_mlops.training.git import run_git

FETCH_SECONDS = 600.0  # a large repository over a slow line; without an end a stage would wait for ever
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_NAMED = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_UNKNOWN = re.compile(r"not our ref|couldn't find remote ref|no such remote ref|unadvertised object", re.IGNORECASE)
_REFUSED = re.compile(
    r"authentication failed|could not read (username|password)|permission denied|not found|does not appear to be a git", re.IGNORECASE
)


def checkout(repository: str, commit: str, into: Path, *, cache: Path) -> Path:
    """Write the files of `commit`, a full hash, of `repository`, a URL or a path that Git understands, to the directory `into`; return it.

    `into` is a worktree of the bare clone in the directory `cache`, which several processes may share, so that `code_version` and `code_authors`
    know it; what is there already is removed. A clone of an earlier try that does not do, because a killed process left half of it, is made anew.

    Raises `SpecError` if there is no such commit, or access is refused; `RepositoryUnavailable`, worth a retry, if the repository does not answer.
    """
    if not _COMMIT.fullmatch(commit):
        raise SpecError(f"commit is {commit!r}; expected the full hash of 40 hexadecimal digits: branches and tags move. Ask 'git rev-parse' for it.")
    if not repository or repository.startswith("-"):
        raise SpecError(f"repository is {repository!r}; expected a URL or a path.")
    with _clone(cache, repository) as bare:
        if bare.exists():
            with contextlib.suppress(_Failed, RepositoryUnavailable, SpecError):  # whatever it was: said again by a new clone, unless this was half
                return _bring(repository, commit, bare, into)
            shutil.rmtree(bare)
        try:
            return _bring(repository, commit, bare, into)
        except _Failed as error:
            said = _said(str(error), repository)
            raise RepositoryUnavailable(f"Git cannot check {commit} out to {into}: {said}. Make room, and run the stage again.") from error


def without_credentials(text: str) -> str:
    """Return `text` without what stands before the ``@`` of the URLs in it."""
    return re.sub(r"(?<=://)[^/\s]+@", "", text)


class _Failed(Exception):
    """A command on the clone itself failed, which needs no network."""


def _bring(repository: str, commit: str, bare: Path, into: Path) -> Path:
    if not (bare / "HEAD").exists():
        _local("init", "--quiet", "--bare", "--template=", str(bare))
    if _git(bare, "cat-file", "-e", f"{commit}^{{tree}}").returncode:
        _fetch(repository, commit, bare)
    if into.exists():  # of an earlier try, which may have been cut off or written to
        shutil.rmtree(into)
    into.parent.mkdir(parents=True, exist_ok=True)
    _local(f"--git-dir={bare}", "worktree", "prune")
    _local(f"--git-dir={bare}", "worktree", "add", "--quiet", "--force", "--detach", str(into.absolute()), commit)
    return into


def _fetch(repository: str, commit: str, bare: Path) -> None:
    """Bring every branch and tag into the clone, and the commit itself where none of them leads to it."""
    fetching = ("fetch", "--quiet", "--prune", "--no-recurse-submodules", "--no-auto-gc", repository)
    answer = _git(bare, *fetching, *_NAMED)
    if answer.returncode == 0 and _git(bare, "cat-file", "-e", f"{commit}^{{tree}}").returncode:
        answer = _git(bare, *fetching, commit)
        if _UNKNOWN.search(answer.stderr):
            raise SpecError(f"There is no commit {commit} in {without_credentials(repository)}. Push it, or correct the spec.")
    if answer.returncode == 0:
        return
    said, shown = _said(answer.stderr, repository), without_credentials(repository)
    if _REFUSED.search(answer.stderr):
        raise SpecError(f"Git has no access to {shown}: {said}. Correct its place, or give the machine that runs the stage a key to read it.")
    raise RepositoryUnavailable(f"The repository {shown} did not answer: {said}. Run the stage again when it does.")


def _local(*arguments: str) -> None:
    answer = _run(*arguments)
    if answer.returncode:
        raise _Failed(answer.stderr)


def _git(bare: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _run(f"--git-dir={bare}", *arguments)


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return run_git("-c", "core.hooksPath=/dev/null", *arguments, timeout=FETCH_SECONDS)
    except FileNotFoundError as error:
        raise SpecError("There is no 'git' where the stage runs, and the spec names a repository: install it there, or in the image.") from error
    except subprocess.TimeoutExpired as error:
        raise RepositoryUnavailable(f"Git did not come to an end within {FETCH_SECONDS:.0f} s. Run the stage again.") from error


def _said(stderr: str, repository: str) -> str:
    """Return the end of what Git said, without credentials."""
    return without_credentials(" ".join(stderr.split()).replace(repository, without_credentials(repository)))[-500:].rstrip(".") or "it said nothing"


@contextlib.contextmanager
def _clone(cache: Path, repository: str) -> Iterator[Path]:
    """Yield where the bare clone of a repository is, or is to be; nobody else works on it meanwhile, and a killed process holds nothing."""
    cache.mkdir(parents=True, exist_ok=True)
    place = cache / hashlib.sha256(without_credentials(repository).encode()).hexdigest()[:32]
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield place
