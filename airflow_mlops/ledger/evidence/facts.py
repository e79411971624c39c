"""What is known of a release: the results of its stages, believed only when whole, the events about it, and what is missing, with the reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from airflow_mlops.artifacts import bytes_digest
from airflow_mlops.exceptions import LedgerError, ResultInvalid
from airflow_mlops.ledger.chain import Event
from airflow_mlops.ledger.store import Store
from airflow_mlops.ledger.tables import AUDIT_EVENTS
from airflow_mlops.records import ResultRef, evidence_digest, load, parse_refs
from airflow_mlops.results import EvaluationResult, RobustnessResult, StageResult, TrainingResult, ValidationResult

STAGES: dict[str, type[StageResult]] = {
    "validate": ValidationResult,
    "train": TrainingResult,
    "evaluate": EvaluationResult,
    "robustness": RobustnessResult,
}
UNBUILT = {
    "differential report": "There is no stage yet that compares the model with others on the same inputs.",
    "model-test report": "There is no stage yet that runs tests of the model's behaviour.",
}
NO_AUTHORS = "Git does not know the training code, and code_authors is empty: its authors could not be kept from approving the release."
ROLLED_BACK, PACKED = "rolled back", "evidence"
VOUCHING = ("approval granted", "promoted")
R = TypeVar("R", bound=StageResult)


@dataclass(frozen=True)
class Release:
    """Release of `version` of `model` by `run` (``DAG id/run id``): the version's tags, and the lines of the trail about it, oldest first."""

    model: str
    version: int
    run: str
    tags: Mapping[str, str]
    trail: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """A release with everything behind it: `records` and `results` by stage, `problems` by what is missing."""

    release: Release
    events: tuple[Event, ...]
    refs: Mapping[str, ResultRef]
    records: Mapping[str, bytes]
    results: Mapping[str, StageResult]
    problems: Mapping[str, str]

    def result(self, stage: str, result_type: type[R]) -> R | None:
        """Return what the stage found, None where that is missing."""
        found = self.results.get(stage)
        return found if isinstance(found, result_type) else None

    def last(self, kind: str) -> Event | None:
        """Return the newest event of a kind, or None."""
        return next((event for event in reversed(self.events) if event.kind == kind), None)

    @property
    def approvals(self) -> list[Event]:
        """Every question and answer about the release."""
        return [event for event in self.events if "binding" in event.details]

    @property
    def at(self) -> str:
        """Time of the newest event, in ISO format: the pack has no other clock."""
        return self.events[-1].at


def trail(store: Store, model: str, version: int) -> tuple[str, ...]:
    """Return the lines of the audit trail about a version, and those about going back to any version of the model; oldest first."""
    table = AUDIT_EVENTS.c
    its_own = (table.subject == f"{model}@{version}") & (table.kind != PACKED)  # else a pack would have to hold its own digest
    rollback = (table.kind == ROLLED_BACK) & table.subject.startswith(f"{model}@", autoescape=True)
    with store.transaction() as connection:
        return tuple(connection.scalars(sa.select(table.line).where(its_own | rollback).order_by(table.number)))


def collect(release: Release) -> Facts:
    """Return the facts of a release; a record that is gone or changed is among the problems and not among the results.

    :raises LedgerError: the trail has no event about it.
    """
    if not release.trail:
        raise LedgerError(f"The audit trail says nothing of {release.model}@{release.version}. Promote it first.")
    events = tuple(_event(line) for line in release.trail)
    problems = {**UNBUILT}
    refs: dict[str, ResultRef] = {}
    try:
        refs = _refs(release.tags, events)
    except ResultInvalid as error:
        problems["references"] = str(error)
    records, results = {}, {}
    for stage in sorted({*STAGES, *refs}):
        try:
            records[stage] = _record(stage, refs.get(stage))
            if stage in STAGES:
                results[stage] = load(refs[stage], STAGES[stage])
        except (ResultInvalid, OSError) as error:
            problems[stage] = str(error)
    training = results.get("train")
    if isinstance(training, TrainingResult) and not training.code_authors:
        problems["code authors"] = NO_AUTHORS
    return Facts(release, events, refs, records, results, problems)


def _refs(tags: Mapping[str, str], events: tuple[Event, ...]) -> dict[str, ResultRef]:
    """Return the references in the tag ``evidence``, if they are still those that were registered and approved."""
    if "evidence" not in tags:
        raise ResultInvalid("The version has no tag 'evidence': it was not registered after its gates, or by an older release of this package.")
    refs = parse_refs(tags["evidence"])
    found = evidence_digest(refs)
    said = {"the tag 'evidence_digest'": tags.get("evidence_digest")}
    # Of each kind the newest: a version that was compared anew has new evidence, and older events vouch for the old.
    newest = {event.kind: event for event in events if event.kind in VOUCHING and event.details.get("evidence_digest")}
    said |= {f"event {event.number} ({event.kind})": event.details["evidence_digest"] for event in newest.values()}
    if wrong := {where: digest for where, digest in said.items() if digest != found}:
        where, digest = next(iter(wrong.items()))
        raise ResultInvalid(f"The version's tag 'evidence' names other records than {where} vouches for: expected {digest}, found {found}.")
    return refs


def _record(stage: str, ref: ResultRef | None) -> bytes:
    if ref is None:
        raise ResultInvalid(f"No record of stage {stage!r} belongs to this version.")
    data = Path(ref.uri).read_bytes()
    if (found := bytes_digest(data)) != ref.digest:
        raise ResultInvalid(f"{ref.uri} changed after its stage ended: expected {ref.digest}, found {found}.")
    return data


def _event(line: str) -> Event:
    data: dict[str, Any] = json.loads(line)
    return Event(data["kind"], data["subject"], data["actor"], data["details"], data["number"], data["at"])
