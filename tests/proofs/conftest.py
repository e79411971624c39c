from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgresql import PostgresqlServer


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """A PostgreSQL server that writes as in production."""
    with PostgresqlServer(fsync=True) as server:
        yield server
