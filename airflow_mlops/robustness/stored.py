"""Arrays in one .npz file, written so that nobody ever reads half of it."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airflow_mlops.artifacts import write_atomically

# Whatever a cut or altered file makes of the zip and the arrays in it.
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, RuntimeError, MemoryError, struct.error, zipfile.BadZipFile)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write `arrays` by name as one uncompressed file; raise `OSError`, and leave what was there, if the disk refuses.

    Raises `ValueError` for arrays of objects, which could not be read back.
    """
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    write_atomically(path, stream.getvalue())


def part_of(state: Mapping[str, npt.NDArray[Any]], part: str) -> dict[str, npt.NDArray[Any]]:
    """Return one part of an arm's state: ``corpus``, ``schedule``, ``defects`` or ``criteria.<name>``."""
    return {name.removeprefix(f"{part}/"): array for name, array in state.items() if name.startswith(f"{part}/")}
