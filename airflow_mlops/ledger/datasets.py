"""Which dataset versions were seen, announced and rejected, in which order, and which run works on which: one run per version and purpose.

An announced version has its turn when the run that its event started begins, in each pipeline that follows the dataset's events. Runs by hand
and by night claim versions, too, and take no run's turn: the event of a version that such a run has is still under way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from airflow_mlops.exceptions import DatasetAlreadyClaimed, MlopsError
from airflow_mlops.ledger import rows
from airflow_mlops.ledger.chain import Event
from airflow_mlops.ledger.store import Store, insert_new, now
from airflow_mlops.ledger.tables import CLAIMS, DATASET_VERSIONS, OFFERS, ORDER, REJECTIONS, TURNS
from airflow_mlops.names import shown
from airflow_mlops.results import DatasetVersion

MAX_TEXT = 4000  # characters of a problem or a reason: more than a person reads


class Waiting(NamedTuple):
    """The announced `version` waits for its turn: announced at `since`, and offered last at `offered_at`, both epoch seconds."""

    version: DatasetVersion
    since: float
    offered_at: float


def see(store: Store, dataset: str, digests: Iterable[str]) -> dict[str, int]:
    """Give each of the `digests` that has none the next number, in this order, and return digest -> number of all versions of `dataset`.

    A number never changes: whatever happens to a version's files later, its age is that of the ledger's first look at it.

    :raises LedgerAltered: the order is not what the audit trail says.
    """
    wanted, order = list(dict.fromkeys(digests)), numbers(store, dataset)
    while any(digest not in order for digest in wanted):
        with store.transaction() as connection:
            if not order:
                old = _complete(connection, dataset)
                _number(connection, dataset, [row.digest for row in old], 1 - len(old))
            known = {row["digest"]: row["number"] for row in rows.proven(connection, ORDER, dataset=dataset)}
            _number(connection, dataset, [digest for digest in wanted if digest not in known], max([0, *known.values()]) + 1)
        order = numbers(store, dataset)  # on PostgreSQL another process may have taken a number at the same moment: then again
    return order


def numbers(store: Store, dataset: str) -> dict[str, int]:
    """Return digest -> number of all versions of `dataset` that were seen: the higher, the newer; raise `LedgerAltered` as `see` does."""
    with store.transaction() as connection:
        return {row["digest"]: row["number"] for row in rows.proven(connection, ORDER, dataset=dataset)}


def announce(store: Store, version: DatasetVersion) -> bool:
    """Remember that the complete `version` was announced; when it already was, that it was offered again, and return False."""
    see(store, version.dataset, [version.digest])
    row = {"name": version.name, "uri": version.uri, "digest": version.digest}
    if _remember(store, version.dataset, version.digest, row):
        return True
    key = {"dataset": version.dataset, "digest": version.digest}
    with store.transaction() as connection:
        rows.proven(connection, OFFERS, **key)
        connection.execute(sa.delete(OFFERS).filter_by(**key))
        connection.execute(OFFERS.insert().values(**key, offered_at=now()))
        rows.state(connection, Event("dataset offered again", _subject(version.dataset), "", {"name": version.name}), (OFFERS, key))
    return False


def announce_broken(store: Store, dataset: str, key: str, name: str, problem: str) -> bool:
    """Remember that the version called `name` arrived broken and why; return False when it already was."""
    return _remember(store, dataset, key, {"name": shown(name), "uri": "", "problem": shown(problem, MAX_TEXT)})


def announced(store: Store, dataset: str) -> frozenset[str]:
    """Return the keys of all versions of `dataset` that were announced."""
    query = sa.select(DATASET_VERSIONS.c.key).where(DATASET_VERSIONS.c.dataset == dataset)
    with store.transaction() as connection:
        return frozenset(connection.scalars(query))


def waiting(store: Store, dataset: str) -> tuple[Waiting, ...]:
    """Return the announced complete versions that have not had their turn, the oldest first.

    A version has had it when a run of its event has begun in some pipeline, and in each that took the version announced before it: one that
    is gone or stalled is waited for once, not with every version.
    """
    with store.transaction() as connection:
        complete = _complete(connection, dataset)
        turns = connection.execute(sa.select(TURNS.c.digest, TURNS.c.purpose).filter_by(dataset=dataset)).all()
        offered = {row.digest: row.offered_at for row in connection.execute(sa.select(OFFERS).filter_by(dataset=dataset))}
        ordered = set(connection.scalars(sa.select(ORDER.c.digest).where(ORDER.c.dataset == dataset, ORDER.c.number >= 1)))
    takers: dict[str, set[str]] = {}
    for turn in turns:
        takers.setdefault(turn.digest, set()).add(turn.purpose)
    found, before = [], set[str]()
    for row in complete:
        own = takers.get(row.digest, set())
        if row.digest in ordered and (not own or before - own):
            arrived = DatasetVersion(dataset, row.name, row.digest, row.uri)
            found.append(Waiting(arrived, row.announced_at.timestamp(), offered.get(row.digest, row.announced_at).timestamp()))
        before = own
    return tuple(found)


def announced_as(store: Store, version: DatasetVersion) -> str | None:
    """Return the name under which the complete version with this digest was announced, or None if it was not."""
    query = sa.select(DATASET_VERSIONS.c.name).filter_by(dataset=version.dataset, key=version.digest)
    with store.transaction() as connection:
        name: str | None = connection.scalar(query)
    return name


@contextlib.contextmanager
def turn_even_if_refused(store: Store, version: DatasetVersion, *, purpose: str, run_id: str) -> Iterator[None]:
    """Note that a version had its turn when what is inside refuses it, if it was announced exactly so: an event that is refused holds up no other.

    One that the ledger did not announce takes no turn, and the version that it pretends to be keeps its own.
    """
    try:
        yield
    except MlopsError:
        same = sa.select(DATASET_VERSIONS.c.key).filter_by(dataset=version.dataset, key=version.digest, name=version.name, uri=version.uri)
        with store.transaction() as connection:
            if connection.scalar(same) is not None:
                _take_turn(connection, version, purpose, run_id)
        raise


def record_verdict(store: Store, version: DatasetVersion, *, rejected_because: str | None) -> None:
    """Remember why validation rejected `version`; None when it did not, which takes an earlier rejection back (its suite was mended)."""
    key = {"dataset": version.dataset, "digest": version.digest}
    with store.transaction() as connection:
        rows.proven(connection, REJECTIONS, **key)
        found = connection.execute(sa.delete(REJECTIONS).filter_by(**key)).rowcount
        if rejected_because is not None:
            insert_new(connection, REJECTIONS, {**key, "reason": shown(rejected_because, MAX_TEXT), "rejected_at": now()})
        if found or rejected_because is not None:
            kind = "dataset accepted" if rejected_because is None else "dataset rejected"
            rows.state(connection, Event(kind, _subject(version.dataset), "", {"name": version.name}), (REJECTIONS, key))


def rejected(store: Store, dataset: str) -> dict[str, str]:
    """Return digest -> reason of every version of `dataset` that validation rejected."""
    query = sa.select(REJECTIONS.c.digest, REJECTIONS.c.reason).filter_by(dataset=dataset)
    with store.transaction() as connection:
        return {row.digest: row.reason for row in connection.execute(query)}


def claim(store: Store, version: DatasetVersion, *, purpose: str, run_id: str, of_event: bool = True) -> None:
    """Give `version` to the run `run_id` for `purpose`; claiming again for the same run changes nothing.

    :param of_event: whether the run was started by the version's event, which has had its turn then, also where another run has the version.
    :raises DatasetAlreadyClaimed: another run has it.
    :raises LedgerAltered: who has it is not what the audit trail says.
    """
    key = {"dataset": version.dataset, "digest": version.digest, "purpose": purpose}
    with store.transaction() as connection:
        if of_event:
            _take_turn(connection, version, purpose.removesuffix(f"/{run_id}"), run_id)  # that of a repeated run is more than its pipeline
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


def _take_turn(connection: sa.Connection, version: DatasetVersion, pipeline: str, run_id: str) -> None:
    key = {"dataset": version.dataset, "digest": version.digest, "purpose": pipeline}
    rows.proven(connection, TURNS, dataset=version.dataset, digest=version.digest)
    if insert_new(connection, TURNS, {**key, "run_id": run_id, "taken_at": now()}):
        rows.state(connection, Event("dataset turn", _subject(version.dataset), pipeline, {"name": version.name, "run": run_id}), (TURNS, key))


def _number(connection: sa.Connection, dataset: str, digests: Iterable[str], first: int) -> None:
    new = []
    for number, digest in enumerate(digests, first):
        if not insert_new(connection, ORDER, {"dataset": dataset, "digest": digest, "number": number}):
            break  # another process has the number, or the version
        new.append((ORDER, {"dataset": dataset, "digest": digest}))
    if new:
        rows.state(connection, Event("dataset seen", _subject(dataset), "", {}), *new)


def _complete(connection: sa.Connection, dataset: str) -> Sequence[sa.Row[Any]]:
    """Return the complete versions that were announced, in the order of their announcements."""
    version = DATASET_VERSIONS.c
    query = sa.select(DATASET_VERSIONS).where(version.dataset == dataset, version.problem.is_(None))
    return connection.execute(query.order_by(version.announced_at, version.name)).all()


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
