"""What the ledger knows of a registered version: tags in the registry can be edited, the trail's event of the registration cannot.

Whoever releases a version reads its digests, its authors and the records behind it from here, and the policy is applied again to those records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from airflow_mlops.exceptions import RegistryError, SpecError
from airflow_mlops.gates import GateDecision, ReleasePolicy, decide
from airflow_mlops.ledger import chain
from airflow_mlops.ledger.store import Store
from airflow_mlops.ledger.tables import AUDIT_EVENTS
from airflow_mlops.records import ResultRef, load, parse_refs
from airflow_mlops.registry.base import ModelVersion
from airflow_mlops.results import EvaluationResult, RobustnessResult, TrainingResult, ValidationResult

REGISTERED = "registered"
AUTHORS = "authors"


@dataclass(frozen=True)
class Evidence:
    """The results behind a version, each verified with all it names."""

    validation: ValidationResult
    training: TrainingResult
    evaluation: EvaluationResult
    robustness: RobustnessResult

    @classmethod
    def of(cls, refs: Mapping[str, ResultRef]) -> Evidence:
        """Load the records; raise `ResultInvalid` if one is missing, changed, or about other data than the others."""
        missing = [stage for stage in ("validate", "train", "evaluate", "robustness") if stage not in refs]
        if missing:
            raise SpecError(f"There is no result of {', '.join(missing)} behind this model. Expected one of each stage: run them all.")
        return cls(
            load(refs["validate"], ValidationResult),
            load(refs["train"], TrainingResult),
            load(refs["evaluate"], EvaluationResult),
            load(refs["robustness"], RobustnessResult),
        )

    def decision(self, policy: ReleasePolicy) -> GateDecision:
        """Return what the policy says of them."""
        return decide(policy, self.evaluation, self.robustness)


def note(store: Store, name: str, version: int, run: str, tags: Mapping[str, str]) -> None:
    """Write into the trail with which tags `run` registers a version, unless the last registration said the same."""
    if tags == _last(store, name, version):
        return
    with store.transaction() as connection:
        chain.append(connection, chain.Event(REGISTERED, f"{name}@{version}", run, {"tags": dict(tags)}))


def registered(store: Store, name: str, version: int) -> dict[str, str]:
    """Return the tags with which a version was registered last, by the trail.

    :raises SpecError: no pipeline registered it.
    """
    if (tags := _last(store, name, version)) is None:
        raise SpecError(
            f"{name} version {version} is not to be released: the ledger knows of no registration, so no pipeline registered it after its gates. "
            "Choose a version that one registered, or let its run register it again: clear 'register'."
        )
    return tags


def is_registered(store: Store, name: str, version: int) -> bool:
    """Return whether the trail knows of a registration of this version."""
    return _last(store, name, version) is not None


def verified(store: Store, version: ModelVersion) -> dict[str, str]:
    """Return what `registered` does; raise `RegistryError` if the registry says something else of the version by now."""
    tags = registered(store, version.name, version.version)
    for name, value in tags.items():
        if (found := version.tags.get(name)) != value:
            raise RegistryError(
                f"The tag {name!r} of {version.name} version {version.version} is {found!r}; expected {value!r}, with which it was registered. "
                "It was changed in the registry: find out by whom, and clear 'register' of its run, which sets the tags again."
            )
    return tags


def authors_before(store: Store, name: str, tags: Mapping[str, str]) -> frozenset[str]:
    """Return everybody who was an author at an earlier registration of the same training, or by the same run, as `tags` say."""
    same, found = ("mlflow_run", "airflow_run"), set[str]()
    for event in chain.events(store, model=name, kinds=[REGISTERED]):
        before = event.details["tags"]
        if any(before.get(key) == tags[key] for key in same):
            found.update(before[AUTHORS].splitlines())
    return frozenset(found)


def evidence_of(tags: Mapping[str, str]) -> Evidence:
    """Return the results behind a version with these tags."""
    return Evidence.of(parse_refs(tags.get("evidence", "{}")))


def _last(store: Store, name: str, version: int) -> dict[str, str] | None:
    subject, table = f"{name}@{version}", AUDIT_EVENTS.c
    query = sa.select(table.line).where(table.subject == subject, table.kind == REGISTERED).order_by(table.number)
    with store.transaction() as connection:
        found = [chain.parsed(line) for line in connection.scalars(query)]
    told = [event for event in found if (event.kind, event.subject) == (REGISTERED, subject)]  # columns say where to look, lines what was written
    return dict(told[-1].details["tags"]) if told else None
