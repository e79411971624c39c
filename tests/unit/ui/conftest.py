"""The plugin's app over a real ledger and workspace in a temporary directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.api_fastapi.core_api.security import get_user
from fastapi.testclient import TestClient

from airflow_mlops.ledger.store import Store
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


@pytest.fixture
def client(anonymous: TestClient) -> Iterator[TestClient]:
    app.dependency_overrides[get_user] = lambda: object()  # any user at all: the pages ask for a login and nothing more
    yield anonymous
    app.dependency_overrides.clear()
