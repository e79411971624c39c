"""Git, asked about the directory it is given and about no other, and never waiting for a person."""

from __future__ import annotations

import subprocess

# Where a hook or another Git started this process, these lead to another repository.
_LEADING = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_NAMESPACE")
_GIT = ["env", *(f"--unset={name}" for name in _LEADING), "GIT_TERMINAL_PROMPT=0", "LC_ALL=C", "git"]
_NOT_FOUND = 127  # what env answers for a program that is not there


def run_git(*arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Return how a Git command ended, in English.

    :raises FileNotFoundError: there is no Git.
    :raises subprocess.TimeoutExpired: it did not end within `timeout` seconds.
    """
    answer = subprocess.run([*_GIT, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout)
    if answer.returncode == _NOT_FOUND:
        raise FileNotFoundError("There is no 'git' on the path.")
    return answer
