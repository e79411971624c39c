"""What several stages read: a dataset version as arrays, split for good into rows to learn from and rows to judge by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.results import DatasetVersion

if TYPE_CHECKING:
    from airflow_mlops.data.split import Split


def read_split(version: DatasetVersion, layout: ArrayLayout, held_out_fraction: float) -> Split:
    """Return the rows of `version` as train and held-out arrays; its files are verified while they are read."""
    from airflow_mlops.data.arrays import to_arrays
    from airflow_mlops.data.readers import read_frame
    from airflow_mlops.data.split import split

    return split(to_arrays(read_frame(version), layout), held_out_fraction)
