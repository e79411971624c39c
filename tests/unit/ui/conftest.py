"""The plugin's app over a real ledger and workspace in a temporary directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.api_fastapi.core_api.security import get_user
from fastapi.testclient import TestClient

from airflow_mlops.ledger.store import Store
from airflow_mlops.ui.access import access_of
from airflow_mlops.ui.app import app


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "workspace" / "runs").mkdir(parents=True)
    monkeypatch.setenv("AIRFLOW__MLOPS__WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("AIRFLOW__MLOPS__INBOX", "/srv/inbox")
    monkeypatch.setenv("AIRFLOW_CONN_MLOPS_LEDGER_DEFAULT", f'{{"conn_type": "mlops_ledger", "schema": "{tmp_path}/ledger.db"}}')
    return tmp_path


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{home}/ledger.db")
    yield store
    store.close()


@pytest.fixture
def anonymous(home: Path) -> TestClient:
    return TestClient(app)


class Reader:
    """A user who may read and edit the DAGs named, None among them for rows without a DAG; without names every one."""

    def __init__(self) -> None:
        self.readable: set[str | None] | None = None
        self.editable: set[str] | None = None
        self.assets = True

    def reads(self, dag_id: str | None) -> bool:
        return self.readable is None or dag_id in self.readable

    def edits(self, dag_id: str) -> bool:
        return self.editable is None or dag_id in self.editable

    def reads_assets(self) -> bool:
        return self.assets

    def reads_anything(self) -> bool:
        return self.readable is None or bool(self.readable)


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def client(anonymous: TestClient, reader: Reader) -> Iterator[TestClient]:
    app.dependency_overrides.update({get_user: lambda: object(), access_of: lambda: reader})
    yield anonymous
    app.dependency_overrides.clear()
