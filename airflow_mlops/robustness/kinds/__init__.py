"""The kinds of input a campaign can mutate. Each brings its mutators, its legal values, and its rule of how much change is too much."""

from __future__ import annotations

from airflow_mlops.robustness.kinds.base import InputKind
from airflow_mlops.robustness.kinds.images import Images
from airflow_mlops.robustness.kinds.key_points import KeyPoints
from airflow_mlops.robustness.kinds.rows import Column, Rows
from airflow_mlops.robustness.kinds.texts import Texts

__all__ = ["KINDS", "Column", "Images", "InputKind", "KeyPoints", "Rows", "Texts"]

KINDS: dict[str, type[InputKind]] = {"images": Images, "key_points": KeyPoints, "rows": Rows, "texts": Texts}
