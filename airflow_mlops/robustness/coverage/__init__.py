"""Coverage criteria: what a campaign calls "new". They guide and describe; nobody should gate on them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from airflow_mlops.robustness.coverage.base import BitmapCriterion, CoverageOptions
from airflow_mlops.robustness.coverage.kmnc import KMultisectionNeuronCoverage
from airflow_mlops.robustness.coverage.nc import NeuronCoverage

__all__ = ["CRITERIA", "BitmapCriterion", "CoverageOptions"]

CRITERIA: Mapping[str, type[BitmapCriterion]] = MappingProxyType({"nc": NeuronCoverage, "kmnc": KMultisectionNeuronCoverage})
