"""Git for the repositories of the tests' users."""

from __future__ import annotations

import subprocess
from pathlib import Path

AUTHOR = "Ann Lee <ann@example.org>"
PERSON = ["-c", "user.name=Ann Lee", "-c", "user.email=ann@example.org"]


def git(place: Path, *arguments: str) -> str:
    """Return what a Git command says in the directory `place`, where `AUTHOR` commits."""
    return subprocess.run(["git", "-C", str(place), *PERSON, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def commit_all(place: Path, message: str = "code") -> str:
    """Commit all that is in the directory `place`, a repository from now on, and return the commit."""
    git(place, "init", "--quiet")
    git(place, "add", ".")
    git(place, "commit", "--quiet", "--message", message)
    return git(place, "rev-parse", "HEAD")
