"""Schedules: which kept mutant is fuzzed next, and how. A user adds one by a subclass of `Schedule` and an entry here."""

from __future__ import annotations

from airflow_mlops.robustness.schedules.bandit import Bandit
from airflow_mlops.robustness.schedules.base import Schedule
from airflow_mlops.robustness.schedules.classic import DeepHunter, DeepTest, TensorFuzz, Unguided, Uniform

__all__ = ["SCHEDULES", "Schedule"]

SCHEDULES: dict[str, type[Schedule]] = {
    "bandit": Bandit,
    "deephunter": DeepHunter,
    "uniform": Uniform,
    "tensorfuzz": TensorFuzz,
    "deeptest": DeepTest,
    "unguided": Unguided,
}
