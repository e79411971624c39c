"""The head of the trail as a tag in the registry: what was promoted before cannot be rewritten in the ledger alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from airflow_mlops.cli import main
from airflow_mlops.ledger import chain
from airflow_mlops.ledger.chain import Event
from airflow_mlops.ledger.store import Store
from airflow_mlops.ledger.tables import AUDIT_EVENTS
from airflow_mlops.registry.anchors import anchor, anchors
from airflow_mlops.registry.mlflow import MlflowRegistry


def test_the_first_anchor_of_a_version_stays(registry: MlflowRegistry, store: Store, name: str) -> None:
    first = anchor(store, registry, name, 2)
    assert first == chain.head(store)
    with store.transaction() as connection:
        chain.append(connection, Event("served", f"{name}@2", "a run", {}))
    assert anchor(store, registry, name, 2) == first != chain.head(store)
    second = anchor(store, registry, name, 3)
    assert second == chain.head(store) and {first, second} <= set(anchors(registry))


def test_a_trail_that_was_written_anew_does_not_fit_what_the_registry_says(
    registry: MlflowRegistry, tracking_uri: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = tmp_path / "ledger.db"
    store = Store(f"sqlite:///{ledger}")
    for actor in ("ann", "bob"):
        with store.transaction() as connection:
            chain.append(connection, Event("promoted", f"{name}@1", actor, {}))
    noted = anchor(store, registry, name, 1)
    messages = tmp_path / "messages.json"
    messages.write_text(f'{{"text": "digits serves. Audit trail `{noted}`"}}')
    sources = (["--tracking-uri", tracking_uri], ["--anchors", str(messages)])
    assert main(["audit", "verify", "--ledger", str(ledger), *sources[1]]) == 0
    with store.transaction() as connection:
        connection.execute(sa.delete(AUDIT_EVENTS))
    for actor in ("mallory", "bob"):
        with store.transaction() as connection:
            chain.append(connection, Event("promoted", f"{name}@1", actor, {}))
    store.close()
    assert main(["audit", "verify", "--ledger", str(ledger)]) == 0, "without an anchor it looks whole"
    capsys.readouterr()
    for source in sources:
        assert main(["audit", "verify", "--ledger", str(ledger), *source]) == 1
        assert "was rewritten" in capsys.readouterr().err
