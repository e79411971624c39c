"""What the overview shows: of the ledger's newest rows those that the reader may see. A row belongs to the DAG whose run wrote it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple, Protocol

from airflow_mlops.ledger import history, messages
from airflow_mlops.ledger.history import Effect, SeenVersion
from airflow_mlops.ledger.messages import Message
from airflow_mlops.ledger.store import Store
from airflow_mlops.ui.pages import STEPS

MAX_ROWS, MAX_MESSAGES = 50, 20
LOOKED_AT = 1000  # rows of each kind: a reader of few DAGs sees theirs although others wrote more since
NOT_FOR_YOU = "The reason is shown to who may read the DAG that found it."


class Reader(Protocol):
    """Whom the page is for; see `airflow_mlops.ui.access.Access`."""

    def reads(self, dag_id: str | None) -> bool: ...

    def reads_assets(self) -> bool: ...


class Overview(NamedTuple):
    """The rows of the page, the newest first."""

    versions: list[SeenVersion]
    releases: list[Effect]
    messages: list[Message]


def collect(store: Store, reader: Reader) -> Overview:
    """Return what `reader` may see; raise `LedgerUnavailable` when the database does not answer."""
    return Overview(
        list(_versions(history.dataset_versions(store, limit=LOOKED_AT), reader))[:MAX_ROWS],
        [effect for effect in history.effects(store, STEPS, limit=LOOKED_AT) if reader.reads(effect.dag_id)][:MAX_ROWS],
        [message for message in messages.latest(store, limit=LOOKED_AT) if reader.reads(message.dag_id)][:MAX_MESSAGES],
    )


def _versions(found: Iterable[SeenVersion], reader: Reader) -> Iterable[SeenVersion]:
    """Yield each version that arrived, for who may read assets, or that a run of a readable DAG took; with the claims of such DAGs alone."""
    assets = reader.reads_assets()
    for version in found:
        claims = tuple(claim for claim in version.claims if reader.reads(claim.pipeline))
        if not (claims or (assets and version.name is not None)):
            continue
        hidden = bool(version.problem and version.digest and not claims)  # a verdict, which a run reached
        yield replace(version, claims=claims, problem=NOT_FOR_YOU if hidden else version.problem, taken=bool(version.claims))
