"""A release whose evidence can be packed: the records of its stages in a directory, its tags, and its events in a ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_mlops.ledger import chain
from airflow_mlops.ledger.chain import Event
from airflow_mlops.ledger.evidence.facts import Release, trail
from airflow_mlops.ledger.evidence.pack import Pack, write
from airflow_mlops.ledger.evidence.score import Statement
from airflow_mlops.ledger.store import Store
from airflow_mlops.records import ResultRef, evidence_digest
from tests import fakes

MODEL, VERSION, RUN = "digits", 7, "digits_release/run 1"
PACKAGES = {"python": "3.11.7", "keras": "3.15.1", "typing-extensions": "4.15.0"}


def tags_of(refs: Mapping[str, ResultRef], **more: str) -> dict[str, str]:
    """Return the tags that a version with these records is registered with."""
    evidence = json.dumps({stage: {"uri": ref.uri, "digest": ref.digest} for stage, ref in refs.items()})
    return {"evidence": evidence, "evidence_digest": evidence_digest(refs), "gate.decision": "released: accuracy 0.9500 >= 0.9", **more}


class Released:
    """Version 7 of ``digits``: change `refs`, the files or the ledger, then `pack`."""

    def __init__(self, home: Path, store: Store, *, training: Mapping[str, Any] = {}, evaluation: Mapping[str, Any] = {}) -> None:
        self.home, self.store = home, store
        trained = fakes.training(home, **{"packages": PACKAGES, **training})
        self.refs = fakes.leave_records(home, trained, fakes.evaluation(**evaluation))
        self.tags = tags_of(self.refs)

    def happened(self, kind: str, version: int = VERSION, actor: str = RUN, **details: Any) -> None:
        """Add an event about a version to the trail."""
        with self.store.transaction() as connection:
            chain.append(connection, Event(kind, f"{MODEL}@{version}", actor, details))

    def promoted(self) -> Released:
        """Let it be approved, served and promoted."""
        digest = {"evidence_digest": self.tags["evidence_digest"]}
        self.happened("approved", actor="ann", binding="sha256:b", comment="<b>fine</b>", **digest)
        self.happened("approval granted", binding="sha256:b", approved_by=["ann"], reason="", **digest)
        self.happened("served", label="stable", previous=6)
        self.happened("promoted", **digest)
        return self

    def release(self) -> Release:
        return Release(MODEL, VERSION, RUN, self.tags, trail(self.store, MODEL, VERSION))

    def pack(self, name: str = "pack", statements: Mapping[str, Statement] = {}) -> Pack:
        return write(self.release(), self.home / "evidence" / name, statements)
