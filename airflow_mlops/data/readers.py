"""Data files to frames, one reader per suffix. Imports pandas at the top: for stages only."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from airflow_mlops.data.snapshot import contents
from airflow_mlops.exceptions import DatasetError
from airflow_mlops.results import DatasetVersion


def read_csv(data: bytes) -> pd.DataFrame:
    """Return the rows of a CSV file with a header line."""
    return pd.read_csv(io.BytesIO(data))


def read_parquet(data: bytes) -> pd.DataFrame:
    """Return the rows of a Parquet file."""
    return pd.read_parquet(io.BytesIO(data))


def read_npz(data: bytes) -> pd.DataFrame:
    """Return a NumPy archive as columns: ``name`` for an array of shape (N,), ``name_0 .. name_K-1`` for (N, ...) flattened to (N, K).

    Pickled objects are refused, because reading them would run them.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        # In the byte order of this machine: files of other programs have the other one, for which pandas has no operations.
        arrays = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in archive.items()}
    lengths = {name: array.shape[0] if array.ndim else None for name, array in arrays.items()}
    if None in lengths.values() or len(set(lengths.values())) > 1:
        raise ValueError(f"its arrays must have one common first dimension, and have {lengths}")
    return pd.concat([_columns(name, array) for name, array in arrays.items()], axis="columns") if arrays else pd.DataFrame()


READERS: dict[str, Callable[[bytes], pd.DataFrame]] = {".csv": read_csv, ".parquet": read_parquet, ".npz": read_npz}


def read_frame(version: DatasetVersion) -> pd.DataFrame:
    """Return all rows of a version, its files concatenated in the order of their paths; every byte is verified while it is read.

    Raises `DatasetError` naming the file for an unknown suffix, unreadable content or other columns than the first file's, and for no rows
    at all; `ManifestMismatch` if the content is no longer that of the version.
    """
    frames: list[pd.DataFrame] = []
    for path, data in contents(version):
        frame = _read(f"{version.uri}/{path}", data)
        if frames and set(frame.columns) != set(frames[0].columns):
            differ = sorted(set(frame.columns) ^ set(frames[0].columns))
            raise DatasetError(
                f"{version.uri}/{path} has other columns than the first file of the version: {', '.join(differ[:10])} stand in one of both only. "
                "Publish files with the same columns."
            )
        frames.append(frame)
    # A part without rows has columns of objects, and would make objects of all numbers.
    rows = pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)
    if rows.empty:
        raise DatasetError(f"{version.uri} has no rows in {len(frames)} files: expected at least one. Publish a version with data.")
    return rows


def _read(name: str, data: bytes) -> pd.DataFrame:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in READERS:
        raise DatasetError(f"{name} has the suffix {suffix!r}: expected one of {', '.join(READERS)}. Publish data files only, or add a reader.")
    try:
        frame = READERS[suffix](data)
    except (ValueError, OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{name} is no readable {suffix} file: {error}. Write it again and publish a new version.") from error
    frame.columns = frame.columns.map(str)  # those of a bare array are numbers in Parquet, and layouts and suites name them by texts
    if not frame.columns.is_unique:
        repeated = sorted(set(frame.columns[frame.columns.duplicated()]))
        raise DatasetError(f"{name} has columns more than once: {', '.join(repeated)}. Publish every column once.")
    return frame


def _columns(name: str, array: np.ndarray) -> pd.DataFrame:
    if array.ndim == 1:
        return pd.DataFrame({name: array})
    flat = array.reshape(len(array), math.prod(array.shape[1:]))  # not -1, which is undefined for no rows
    return pd.DataFrame(flat, columns=[f"{name}_{index}" for index in range(flat.shape[1])])
