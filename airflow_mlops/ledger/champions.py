"""Who is champion of a model, and who was when: the truth that aliases and servers follow.

Model registries offer no compare-and-set, so two promoters who both saw version 1 can both "win" there. Here each reign has a fencing token,
1, 2, 3 and so on, and whoever inserts the next token is champion: the database lets one of them do it. A promoter that was frozen and goes on
later still holds the old token, and is refused; no clock is involved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from airflow_mlops.exceptions import LedgerError, PromotionConflict
from airflow_mlops.ledger import chain, rows
from airflow_mlops.ledger.store import Store, insert_new, now
from airflow_mlops.ledger.tables import AUDIT_EVENTS, REIGNS

CHAMPION_KINDS = ("adopted", "promoted", "taken back", "rolled back")


@dataclass(frozen=True)
class Reign:
    """Version `version` of `model` is champion since `since` (UTC) by the intent `intent`; `digest` is that of its files, if known."""

    model: str
    token: int
    version: int
    previous: int | None
    intent: str
    digest: str | None
    since: datetime


@dataclass(frozen=True)
class Claim:
    """The wish that `version` be champion of `model` in place of `expected` (None: of nobody).

    * `intent`: what makes a repetition the same wish, for instance ``promote:digits:7:<run id>``.
    * `token`: fencing token of the reign that was seen when the version was compared, 0 for none; None compares only the version.
    * `kind`: of the audit event: one of `CHAMPION_KINDS`.
    * `actor` and `details`: who wants it and why, for the audit trail.
    """

    intent: str
    model: str
    version: int
    expected: int | None
    token: int | None = None
    digest: str | None = None
    kind: str = "promoted"
    actor: str = ""
    details: Mapping[str, Any] | None = None


def current(store: Store, model: str) -> Reign | None:
    """Return the reign of now, None if the model never had a champion."""
    with store.transaction() as connection:
        reigns = _reigns(connection, model)
    return reigns[-1] if reigns else None


def history(store: Store, model: str) -> list[Reign]:
    """Return every reign, oldest first."""
    with store.transaction() as connection:
        return _reigns(connection, model)


def models(store: Store) -> list[str]:
    """Return every model that ever had a champion, by name, also one whose reigns are gone from the table."""
    with store.transaction() as connection:
        crowned = connection.scalars(sa.select(AUDIT_EVENTS.c.subject).where(AUDIT_EVENTS.c.kind.in_(CHAMPION_KINDS)).distinct())
        told = {subject.rpartition("@")[0] for subject in crowned}
        return sorted(told | set(connection.scalars(sa.select(REIGNS.c.model).distinct())))


def crown(store: Store, claim: Claim) -> Reign:
    """Make the claimed version champion, with its audit event, or return the reign that this intent, or another, began with it before.

    :raises PromotionConflict: the champion is not the expected one; nothing changed.
    :raises LedgerError: the intent was used for another version.
    """
    while True:
        with store.transaction() as connection:
            _check_intent(connection, claim)
            reigns = _reigns(connection, claim.model)
            if known := [reign for reign in reigns if reign.intent == claim.intent]:
                return known[0]
            reign = reigns[-1] if reigns else None
            if reign is not None and reign.version == claim.version:
                return reign
            _check(claim, reign)
            following = {**_row(claim), "token": (reign.token if reign else 0) + 1, "previous": reign.version if reign else None, "since": now()}
            if insert_new(connection, REIGNS, following):
                rows.state(connection, _event(claim, following), (REIGNS, following))
                return Reign(**following)
        # On PostgreSQL another one inserted between our look and our insert: look again, at what it was.


def _reigns(connection: sa.Connection, model: str) -> list[Reign]:
    """Return every reign, oldest first, each as the audit trail says: who reigns decides what is served."""
    return [Reign(**row) for row in rows.proven(connection, REIGNS, model=model)]


def _check_intent(connection: sa.Connection, claim: Claim) -> None:
    row = connection.execute(sa.select(REIGNS.c.model, REIGNS.c.version).where(REIGNS.c.intent == claim.intent)).first()
    if row is not None and (row.model, row.version) != (claim.model, claim.version):
        raise LedgerError(
            f"The intent {claim.intent!r} made version {row.version} of {row.model!r} champion, and is now used for version {claim.version} of "
            f"{claim.model!r}. One intent is one request: start a new run instead of changing the old one."
        )


def _check(claim: Claim, reign: Reign | None) -> None:
    version, token = (reign.version, reign.token) if reign else (None, 0)
    if version == claim.expected and claim.token in (None, token):
        return
    since = f" since {reign.since:%Y-%m-%d %H:%M:%S} UTC" if reign else ""
    seen = "was to come back in place of" if claim.kind == "rolled back" else "was evaluated against"
    todo = "Check that it is still wanted, and ask again." if claim.kind == "rolled back" else "Evaluate it again, against the present champion."
    raise PromotionConflict(
        f"Champion of {claim.model!r} is {spoken(version)}{since}, but version {claim.version} {seen} {spoken(claim.expected)}"
        f"{f' in reign {claim.token}, and this is reign {token}' if version == claim.expected else ''}. {todo}"
    )


def _row(claim: Claim) -> dict[str, Any]:
    return {"model": claim.model, "version": claim.version, "intent": claim.intent, "digest": claim.digest}


def _event(claim: Claim, row: Mapping[str, Any]) -> chain.Event:
    about = {"token": row["token"], "previous": row["previous"], "digest": claim.digest, "intent": claim.intent, **(claim.details or {})}
    return chain.Event(claim.kind, f"{claim.model}@{claim.version}", claim.actor, about)


def spoken(version: int | None) -> str:
    """Return ``version 7`` or ``nobody``."""
    return "nobody" if version is None else f"version {version}"
