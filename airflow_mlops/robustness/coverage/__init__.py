"""Coverage criteria: what a campaign calls "new". They guide and describe; nobody should gate on them."""

from __future__ import annotations

from airflow_mlops.robustness.coverage.ann import NearestAnswer
from airflow_mlops.robustness.coverage.base import BitmapCriterion, CoverageOptions, Criterion
from airflow_mlops.robustness.coverage.boundary import NeuronBoundaryCoverage, StrongNeuronActivationCoverage
from airflow_mlops.robustness.coverage.kmnc import KMultisectionNeuronCoverage
from airflow_mlops.robustness.coverage.nc import NeuronCoverage
from airflow_mlops.robustness.coverage.patterns import TopKNeuronPatterns
from airflow_mlops.robustness.coverage.top_k import BottomKNeuronCoverage, TopKNeuronCoverage

__all__ = ["CRITERIA", "BitmapCriterion", "CoverageOptions", "Criterion"]

# Add your own with one entry; a campaign then knows it by that name.
CRITERIA: dict[str, type[Criterion]] = {
    "nc": NeuronCoverage,
    "kmnc": KMultisectionNeuronCoverage,
    "nbc": NeuronBoundaryCoverage,
    "snac": StrongNeuronActivationCoverage,
    "tknc": TopKNeuronCoverage,
    "bknc": BottomKNeuronCoverage,
    "tknp": TopKNeuronPatterns,
    "ann": NearestAnswer,
}
