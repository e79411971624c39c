"""Members of the families, a team's own among them: what they return is checked where it comes in, and a campaign knows their code.

A mistake in a function somebody added is then told by its name, and not by NumPy ten calls later.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airflow_mlops.artifacts import file_digest
from airflow_mlops.exceptions import RobustnessError

KINDS = {"b": "booleans", "iu": "whole numbers", "fiu": "numbers"}


def returned(member: str, what: str, value: Any, *, shape: tuple[int, ...], kinds: str) -> npt.NDArray[Any]:
    """Return `value` as an array; raise `RobustnessError` unless it has this shape and its type is one of `KINDS`."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise RobustnessError(f"{member} returned {what} that are no array ({error}); expected {KINDS[kinds]} of shape {shape}. Mend it.") from error
    if array.shape != shape or array.dtype.kind not in kinds:
        raise RobustnessError(
            f"{member} returned {what} of type {array.dtype} and shape {array.shape}; expected {KINDS[kinds]} of shape {shape}. "
            "Mend it, and start the campaign again."
        )
    return array


def code_digest(member: Callable[..., Any]) -> str:
    """Return the name of a function or class with the digest of the file that defines it: a campaign that was begun with other code is another."""
    module, name = (str(getattr(member, attribute, None)) for attribute in ("__module__", "__qualname__"))
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    return f"{module}.{name} {file_digest(file) if file.is_file() else ''}"
