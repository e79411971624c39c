"""What a person decides about a campaign, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from airflow_mlops.exceptions import SpecError, unknown_name
from airflow_mlops.robustness.coverage import CRITERIA, CoverageOptions
from airflow_mlops.robustness.kinds import KINDS, Images, InputKind
from airflow_mlops.robustness.oracles import ORACLES
from airflow_mlops.robustness.recipes import kind_of
from airflow_mlops.robustness.schedules import SCHEDULES


@dataclass(frozen=True)
class CampaignConfig:
    """One campaign; raises `SpecError` for impossible values.

    max_mutants: valid mutants of the guided arm. 5,000 digits take seconds and repeat a rate of 5 % within 0.6 points.
    seed: of every random choice; the same seed, configuration, model and inputs give the same result bit for bit on the same machine,
        whatever the batch size and the number of shards.
    batch_size: mutants made at once; bounds memory and changes no result.
    criteria: names in `CRITERIA`, which a schedule may be guided by and the report shows.
    schedule: name in `SCHEDULES`; ``bandit`` finds most, ``unguided`` is the control.
    mutators: names among `kind.mutators`; its default ones if None.
    kind: what the inputs are, with what their mutators must know; images in [0, 1] unless told otherwise.
    coverage: options of the criteria.
    oracles: names in `ORACLES`; any of them makes a defect. ``disagrees`` needs a reference model.
    tolerance: largest difference of a probability from the reference model's that is still agreement; 1 % is the field's habit.
    sample_mutants: size of the unguided arm, the control and the random sample that all rates come from; 4,500 are about 500 per
        operator of nine, +-2 points at a rate of 5 %.
    severity_budget: mean severity per operator (1 being the whole label-preserving range) that the bandit may reach, so that it cannot
        win by drifting to the most destructive end; 0.5 is what unguided mutants spend.
    max_corpus: kept parents at most, which bounds memory.
    num_islands: parts that a campaign always consists of, whoever runs them; the seeds are dealt out to them, and each learns by itself.
        More islands allow more shards, and learn less each. A criterion that cannot be merged needs one island.
    micro_batch: rows of every forward pass, because other batch shapes change the last bits of an answer; chosen by the inputs' size if None.
    """

    max_mutants: int = 5_000
    seed: int = 0
    batch_size: int = 1_024
    criteria: tuple[str, ...] = ("nc", "kmnc")
    schedule: str = "bandit"
    mutators: tuple[str, ...] | None = None
    kind: InputKind = field(default_factory=Images)
    coverage: CoverageOptions = field(default_factory=CoverageOptions)
    oracles: tuple[str, ...] = ("misclassified", "not_finite")
    tolerance: float = 0.01
    sample_mutants: int = 4_500
    severity_budget: float = 0.5
    max_corpus: int = 10_000
    num_islands: int = 4
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_mutants", "batch_size", "sample_mutants", "max_corpus", "num_islands"):
            if not _is_whole(getattr(self, name), 1):
                raise SpecError(f"{name} is {getattr(self, name)!r}; expected a whole number from 1 on.")
        if self.micro_batch is not None and not _is_whole(self.micro_batch, 1):
            raise SpecError(f"micro_batch is {self.micro_batch!r}; expected a whole number from 1 on, or None.")
        if not _is_whole(self.seed, 0):
            raise SpecError(f"seed is {self.seed!r}; expected a whole number from 0 on.")
        if not (_is_number(self.severity_budget) and 0.0 < self.severity_budget <= 1.0):
            raise SpecError(f"severity_budget is {self.severity_budget!r}; expected a mean severity above 0 and up to 1.")
        if not (_is_number(self.tolerance) and 0.0 <= self.tolerance < 1.0):
            raise SpecError(f"tolerance is {self.tolerance!r}; expected a difference of probabilities in [0, 1).")
        if not isinstance(self.kind, InputKind) or not isinstance(self.coverage, CoverageOptions):
            raise SpecError(f"kind is {self.kind!r} and coverage {self.coverage!r}; expected one of {', '.join(KINDS)}, and CoverageOptions.")
        try:
            hash(self.kind)
        except TypeError as error:
            raise SpecError(f"The options of {self.kind.name} cannot be compared ({error}); expected tuples where {self.kind} has lists.") from error
        for name in ("criteria", "oracles", *(["mutators"] if self.mutators is not None else [])):
            if not isinstance(getattr(self, name), tuple) or not all(isinstance(each, str) for each in getattr(self, name)):
                raise SpecError(f"{name} is {getattr(self, name)!r}; expected a tuple of names, as JSON a list.")
        if not isinstance(self.schedule, str):
            raise SpecError(f"schedule is {self.schedule!r}; expected the name of one.")
        _check_names("coverage criterion", "criteria", self.criteria, CRITERIA)
        _check_names("mutator", "mutators", self.mutator_names, self.kind.mutators)
        _check_names("schedule", "schedule", (self.schedule,), SCHEDULES)
        _check_names("oracle", "oracles", self.oracles, ORACLES)
        alone = [name for name in self.criteria if not CRITERIA[name].mergeable]
        if alone and self.num_islands > 1:
            raise SpecError(
                f"Criterion {alone[0]!r} depends on the order of the inputs and cannot be merged over islands; set num_islands=1 "
                f"(which one worker must run), or leave it out. num_islands is {self.num_islands}."
            )

    @property
    def mutator_names(self) -> tuple[str, ...]:
        """The mutators in the order of the kind's dict."""
        if self.mutators is None:
            return self.kind.default
        known = list(self.kind.mutators)
        return tuple(sorted(self.mutators, key=lambda name: known.index(name) if name in known else -1))


def config_of(data: Mapping[str, Any]) -> CampaignConfig:
    """Return the configuration that JSON `data` describes, ``kind`` and ``coverage`` as objects; raise `SpecError` for what does not fit."""
    if not isinstance(data, Mapping):
        raise SpecError(f"The options of a campaign are {data!r}; expected an object with fields of CampaignConfig.")
    known = {field.name for field in fields(CampaignConfig)}
    for name in data:
        if name not in known:
            raise unknown_name("field of CampaignConfig", str(name), known)
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data.items() if name not in ("kind", "coverage")
    }
    kind = kind_of(data["kind"]) if "kind" in data else Images()
    try:
        return CampaignConfig(**plain, kind=kind, coverage=CoverageOptions(**data.get("coverage", {})))
    except TypeError as error:
        raise SpecError(f"These are no options of a campaign: {error}. Use the fields and types that CampaignConfig documents.") from error


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_names(what: str, field: str, names: tuple[str, ...], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise unknown_name(what, name, known)
    if not names or len(set(names)) != len(names):
        raise SpecError(f"{field} is {names}; expected at least one name, each once. Known: {', '.join(sorted(known))}.")
