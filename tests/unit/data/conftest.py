from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_mlops.data.snapshot import publish_version
from airflow_mlops.ledger.store import Store
from airflow_mlops.results import DatasetVersion

CSV = b"pixel_0,pixel_1,label\n0,1,0\n2,3,1\n4,5,2\n"


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    path = tmp_path / "inbox"
    path.mkdir()
    return path


@pytest.fixture
def version(inbox: Path) -> DatasetVersion:
    """Two CSV files, published and complete."""
    return publish_version({"part-0.csv": CSV, "more/part-1.csv": CSV}, inbox, name="v1", dataset="digits")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty ledger."""
    opened = Store(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()
