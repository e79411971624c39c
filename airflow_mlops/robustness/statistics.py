"""Exact intervals for defect rates: a handful of defects must not look like a certainty."""

from __future__ import annotations

from scipy.stats import beta

from airflow_mlops.results import DefectRate


def defect_rate(num_defects: int, num_mutants: int, *, confidence: float = 0.95) -> DefectRate:
    """Return the rate with its exact two-sided Clopper-Pearson interval (Biometrika 26, 1934); nothing observed gives [0, 1]."""
    tail = (1.0 - confidence) / 2.0
    low = float(beta.ppf(tail, num_defects, num_mutants - num_defects + 1)) if num_defects else 0.0
    high = float(beta.ppf(1.0 - tail, num_defects + 1, num_mutants - num_defects)) if num_defects < num_mutants else 1.0
    return DefectRate(num_mutants, num_defects, num_defects / num_mutants if num_mutants else 0.0, low, high)
