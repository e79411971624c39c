"""Git, asked about the directory it is given and about no other, and never waiting for a person."""

from __future__ import annotations

import os
import subprocess

# Where a hook or another Git started this process, these lead to another repository.
_LEADING = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_NAMESPACE")


def run_git(*arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Return how a Git command ended, in English.

    :raises FileNotFoundError: there is no Git.
    :raises subprocess.TimeoutExpired: it did not end within `timeout` seconds.
    """
    env = {name: value for name, value in os.environ.items() if name not in _LEADING} | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    return subprocess.run(["git", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout, env=env)
