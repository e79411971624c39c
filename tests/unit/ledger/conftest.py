from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_mlops.ledger.store import Store


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The file of a ledger on SQLite."""
    return tmp_path / "ledger.db"


@pytest.fixture
def store(ledger_url: str) -> Iterator[Store]:
    """An empty ledger, on SQLite and on PostgreSQL."""
    opened = Store(ledger_url)
    yield opened
    opened.close()
