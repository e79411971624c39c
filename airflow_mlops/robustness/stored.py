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
    """Write `arrays` by name as one uncompressed file; raise `OSError`, and leave what was there, if the disk refuses."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    write_atomically(path, stream.getvalue())
