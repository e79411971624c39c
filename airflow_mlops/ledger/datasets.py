"""Which dataset versions were announced, which validation rejected, and which run works on which: one run per version and purpose."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from airflow_mlops.exceptions import DatasetAlreadyClaimed
from airflow_mlops.ledger import rows
from airflow_mlops.ledger.chain import Event
from airflow_mlops.ledger.store import Store, insert_new, now
from airflow_mlops.ledger.tables import CLAIMS, DATASET_VERSIONS, REJECTIONS
from airflow_mlops.results import DatasetVersion


class Waiting(NamedTuple):
    """The version called `name` was announced at `since` (epoch seconds), and no run has taken it yet."""

    name: str
    since: float


def announce(store: Store, version: DatasetVersion) -> bool:
    """Remember that the complete `version` was announced; return False when it already was."""
    row = {"name": version.name, "uri": version.uri, "digest": version.digest}
    return _remember(store, version.dataset, version.digest, row)


def announce_broken(store: Store, dataset: str, key: str, name: str, problem: str) -> bool:
    """Remember that the version called `name` arrived broken and why; return False when it already was."""
    return _remember(store, dataset, key, {"name": name, "uri": "", "problem": _quoted(problem)})


def announced(store: Store, dataset: str) -> frozenset[str]:
    """Return the keys of all versions of `dataset` that were announced."""
    query = sa.select(DATASET_VERSIONS.c.key).where(DATASET_VERSIONS.c.dataset == dataset)
    with store.transaction() as connection:
        return frozenset(connection.scalars(query))


def is_announced(store: Store, version: DatasetVersion) -> bool:
    """Return whether exactly this version was announced, with this name and digest."""
    row = {"dataset": version.dataset, "key": version.digest, "digest": version.digest, "name": version.name}
    with store.transaction() as connection:
        return connection.scalar(sa.select(DATASET_VERSIONS.c.key).filter_by(**row)) is not None


def waiting(store: Store, dataset: str) -> Waiting | None:
    """Return the complete version announced last of those that no run has taken yet, or None if none waits."""
    version = DATASET_VERSIONS.c
    taken = sa.exists().where(CLAIMS.c.dataset == version.dataset, CLAIMS.c.digest == version.digest)
    query = sa.select(version.name, version.announced_at).where(version.dataset == dataset, version.problem.is_(None), ~taken)
    with store.transaction() as connection:
        row = connection.execute(query.order_by(version.announced_at.desc()).limit(1)).first()
    return Waiting(row.name, row.announced_at.timestamp()) if row else None


def record_verdict(store: Store, version: DatasetVersion, *, rejected_because: str | None) -> None:
    """Remember why validation rejected `version`; None when it did not, which takes an earlier rejection back (its suite was mended)."""
    key = {"dataset": version.dataset, "digest": version.digest}
    with store.transaction() as connection:
        rows.proven(connection, REJECTIONS, **key)
        found = connection.execute(sa.delete(REJECTIONS).filter_by(**key)).rowcount
        if rejected_because is not None:
            insert_new(connection, REJECTIONS, {**key, "reason": _quoted(rejected_because), "rejected_at": now()})
        if found or rejected_because is not None:
            kind = "dataset accepted" if rejected_because is None else "dataset rejected"
            rows.state(connection, Event(kind, _subject(version.dataset), "", {"name": version.name}), (REJECTIONS, key))


def rejected(store: Store, dataset: str) -> dict[str, str]:
    """Return digest -> reason of every version of `dataset` that validation rejected."""
    query = sa.select(REJECTIONS.c.digest, REJECTIONS.c.reason).filter_by(dataset=dataset)
    with store.transaction() as connection:
        return {row.digest: row.reason for row in connection.execute(query)}


def claim(store: Store, version: DatasetVersion, *, purpose: str, run_id: str) -> None:
    """Give `version` to the run `run_id` for `purpose`; claiming again for the same run changes nothing.

    :raises DatasetAlreadyClaimed: another run has it.
    :raises LedgerAltered: who has it is not what the audit trail says.
    """
    key = {"dataset": version.dataset, "digest": version.digest, "purpose": purpose}
    with store.transaction() as connection:
        rows.proven(connection, CLAIMS, dataset=version.dataset, digest=version.digest)
        if insert_new(connection, CLAIMS, {**key, "run_id": run_id, "claimed_at": now()}):
            rows.state(connection, Event("dataset claimed", _subject(version.dataset), purpose, {"name": version.name}), (CLAIMS, key))
        owner = connection.scalar(sa.select(CLAIMS.c.run_id).filter_by(**key))
        if owner != run_id:
            raise DatasetAlreadyClaimed(
                f"{version.dataset} {version.name} ({version.digest[:19]}...) belongs to run {owner!r} of {purpose!r}; expected a version that "
                "no run has worked on. Look at that run and clear its failed tasks, or start a new run with 'repeat' set."
            )


def claimed(store: Store, dataset: str, *, purpose: str) -> dict[str, str]:
    """Return digest -> run id of every version of `dataset` that a run of `purpose` has."""
    query = sa.select(CLAIMS.c.digest, CLAIMS.c.run_id).filter_by(dataset=dataset, purpose=purpose)
    with store.transaction() as connection:
        return {row.digest: row.run_id for row in connection.execute(query)}


def _remember(store: Store, dataset: str, key: str, row: dict[str, str]) -> bool:
    with store.transaction() as connection:
        rows.proven(connection, DATASET_VERSIONS, dataset=dataset, key=key)
        new = insert_new(connection, DATASET_VERSIONS, {"dataset": dataset, "key": key, "announced_at": now(), **row})
        if new:
            event = Event("dataset announced", _subject(dataset), "", {"name": row["name"]})
            rows.state(connection, event, (DATASET_VERSIONS, {"dataset": dataset, "key": key}))
        return new


def _subject(dataset: str) -> str:
    return f"dataset {dataset}"  # a model may have the same name


def _quoted(words: str) -> str:
    """Return `words`, which may quote the data, without NUL, which PostgreSQL keeps in no text."""
    return words.replace("\0", "\\0")
