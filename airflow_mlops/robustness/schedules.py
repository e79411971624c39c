"""Schedules: which kept mutant is fuzzed next. Each is a function of one signature that returns unnormalised selection weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from airflow_mlops.robustness.mutators.base import Floats, Ints

Schedule: TypeAlias = Callable[[Ints, Ints], Floats]
BETA, GAMMA, P_MIN = 0.8, 5.0, 0.3


def deephunter(times_fuzzed: Ints, depth: Ints) -> Floats:
    """P(s) = max(p_min, beta - f(s) / gamma): fresh entries first, and none is ever forgotten (DeepHunter, section 3.3)."""
    return np.maximum(P_MIN, BETA - times_fuzzed / GAMMA)


def uniform(times_fuzzed: Ints, depth: Ints) -> Floats:
    """Every entry alike."""
    return np.ones(len(depth))


def unguided(times_fuzzed: Ints, depth: Ints) -> Floats:
    """Only the seeds, every seed alike: coverage has no say. This is the control that every guided campaign is compared with."""
    return np.equal(depth, 0).astype(np.float64)


SCHEDULES: Mapping[str, Schedule] = MappingProxyType({"deephunter": deephunter, "uniform": uniform, "unguided": unguided})
