"""What a person decides about a campaign, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from airflow_mlops.exceptions import SpecError, unknown_name
from airflow_mlops.robustness.coverage import CRITERIA, CoverageOptions
from airflow_mlops.robustness.mutators import MUTATORS
from airflow_mlops.robustness.mutators.base import ValueRange
from airflow_mlops.robustness.schedules import SCHEDULES


@dataclass(frozen=True)
class CampaignConfig:
    """One campaign; raises `SpecError` for impossible values.

    max_mutants: valid mutants of the guided campaign. 5,000 digits take under a second and repeat a rate of 5 % within 0.6 points.
    seed: of every random choice; the same seed, configuration, model and inputs give the same result bit for bit on the same machine.
    batch_size: mutants per step; larger is faster, smaller reacts sooner to new coverage.
    criteria: names in `CRITERIA`; a correct mutant that is new to any of them becomes a parent.
    schedule: name in `SCHEDULES`.
    mutators: names in `MUTATORS`, all of them if None.
    nc_threshold, kmnc_sections: options of the criteria; 0.75 and 1000 are those of DeepHunter.
    value_range: lowest and highest value an input may have.
    sample_mutants: size of the random, unguided sample that all rates come from; 4,500 are about 500 per operator, +-2 points at a rate of 5 %.
    mutants_per_parent: mutants drawn from a parent each time the schedule chooses it (DeepHunter: 20).
    max_corpus: kept parents at most, which bounds memory.
    """

    max_mutants: int = 5_000
    seed: int = 0
    batch_size: int = 1_024
    criteria: tuple[str, ...] = ("nc", "kmnc")
    schedule: str = "deephunter"
    mutators: tuple[str, ...] | None = None
    nc_threshold: float = 0.75
    kmnc_sections: int = 1_000
    value_range: ValueRange = (0.0, 1.0)
    sample_mutants: int = 4_500
    mutants_per_parent: int = 20
    max_corpus: int = 10_000

    def __post_init__(self) -> None:
        for name in ("max_mutants", "batch_size", "kmnc_sections", "sample_mutants", "mutants_per_parent", "max_corpus"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.seed < 0:
            raise SpecError(f"seed is {self.seed}; expected a whole number from 0 on.")
        if not 0.0 <= self.nc_threshold < 1.0:
            raise SpecError(f"nc_threshold is {self.nc_threshold}; expected a scaled activation in [0, 1), for example 0.75.")
        low, high = self.value_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise SpecError(f"value_range is {self.value_range}; expected two finite numbers, the lower one first, for example (0.0, 1.0).")
        _check_names("coverage criterion", "criteria", self.criteria, CRITERIA)
        _check_names("mutator", "mutators", self.mutator_names, MUTATORS)
        _check_names("schedule", "schedule", (self.schedule,), SCHEDULES)

    @property
    def mutator_names(self) -> tuple[str, ...]:
        """The mutators in the order of `MUTATORS`."""
        if self.mutators is None:
            return tuple(MUTATORS)
        return tuple(sorted(self.mutators, key=lambda name: list(MUTATORS).index(name) if name in MUTATORS else -1))

    @property
    def coverage_options(self) -> CoverageOptions:
        return CoverageOptions(self.nc_threshold, self.kmnc_sections)


def _check_names(kind: str, field: str, names: tuple[str, ...], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)
    if not names or len(set(names)) != len(names):
        raise SpecError(f"{field} is {names}; expected at least one name, each once. Known: {', '.join(sorted(known))}.")
