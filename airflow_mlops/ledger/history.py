"""What the ledger remembers, newest first, for people to read; nothing here decides anything."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from airflow_mlops.ledger.store import Store
from airflow_mlops.ledger.tables import CLAIMS, DATASET_VERSIONS, EFFECTS, REJECTIONS


@dataclass(frozen=True)
class Claim:
    """The run `run_id` of `pipeline` (a DAG id) works, or worked, on a version since `claimed_at` (UTC)."""

    pipeline: str
    run_id: str
    claimed_at: datetime


@dataclass(frozen=True)
class SeenVersion:
    """One dataset version: announced and perhaps taken by runs, or taken before it was announced (`name` is None).

    `problem` is why it is unusable: validation rejected it, or it arrived broken (`digest` is None). `taken` is whether a run took it, also where
    `claims` does not say which.
    """

    dataset: str
    name: str | None
    digest: str | None
    problem: str | None
    seen_at: datetime
    claims: tuple[Claim, ...]
    taken: bool


@dataclass(frozen=True)
class Effect:
    """One effect on the outside; `result` and `applied_at` (UTC) are None while it is unfinished, or failed for the reason `problem`.

    Its request names the `run` that asked for it.
    """

    kind: str
    request: dict[str, Any]
    result: dict[str, Any] | None
    asked_at: datetime
    applied_at: datetime | None
    problem: str | None = None

    @property
    def dag_id(self) -> str | None:
        """The DAG whose run asked for it; None where a command did."""
        run: str = self.request.get("run") or ""
        return run.partition("/")[0] or None


def dataset_versions(store: Store, *, limit: int = 50) -> list[SeenVersion]:
    """Return the `limit` versions seen last; raise `LedgerUnavailable` when the database does not answer."""
    with store.transaction() as connection:
        rows = connection.execute(_seen().order_by(sa.desc("seen_at"), sa.desc("name")).limit(limit)).all()
        digests = {row.digest for row in rows if row.digest}
        taken = connection.execute(sa.select(CLAIMS).where(CLAIMS.c.digest.in_(digests)).order_by(CLAIMS.c.claimed_at.desc())).all()
    claims = [_claims_of(row, taken) for row in rows]
    return [
        SeenVersion(row.dataset, row.name, row.digest, row.problem, row.seen_at, taken_by, bool(taken_by))
        for row, taken_by in zip(rows, claims, strict=True)
    ]


def effects(store: Store, kinds: Collection[str], *, limit: int | None = 50) -> list[Effect]:
    """Return the `limit` effects of these `kinds` asked for last (None: all); raise `LedgerUnavailable` when the database does not answer."""
    query = sa.select(EFFECTS).where(EFFECTS.c.kind.in_(kinds)).order_by(EFFECTS.c.asked_at.desc(), EFFECTS.c.key).limit(limit)
    with store.transaction() as connection:
        rows = connection.execute(query).all()
    return [Effect(row.kind, row.request, row.result, row.asked_at, row.applied_at, row.problem) for row in rows]


def _seen() -> sa.CompoundSelect[Any]:
    announced = DATASET_VERSIONS.c
    known = sa.exists().where(announced.dataset == CLAIMS.c.dataset, announced.digest == CLAIMS.c.digest)
    nothing = sa.cast(sa.null(), sa.Text)
    problem = sa.func.coalesce(announced.problem, _rejection(announced)).label("problem")
    return sa.union_all(
        sa.select(announced.dataset, announced.name, announced.digest, problem, announced.announced_at.label("seen_at")),
        sa.select(CLAIMS.c.dataset, nothing, CLAIMS.c.digest, _rejection(CLAIMS.c), sa.func.min(CLAIMS.c.claimed_at))
        .where(~known)
        .group_by(CLAIMS.c.dataset, CLAIMS.c.digest),
    )


def _rejection(version: ReadOnlyColumnCollection[str, Any]) -> sa.ScalarSelect[Any]:
    """Return why validation rejected the `version` of the same row, NULL if it did not."""
    same = (REJECTIONS.c.dataset == version.dataset, REJECTIONS.c.digest == version.digest)
    return sa.select(REJECTIONS.c.reason).where(*same).scalar_subquery()


def _claims_of(version: sa.Row[Any], taken: Iterable[sa.Row[Any]]) -> tuple[Claim, ...]:
    """Return who took `version`; the purpose of a repeated run is its pipeline, a slash and its run id."""
    same = [row for row in taken if (row.dataset, row.digest) == (version.dataset, version.digest)]
    return tuple(Claim(row.purpose.removesuffix(f"/{row.run_id}"), row.run_id, row.claimed_at) for row in same)
