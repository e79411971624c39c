"""A ledger whose disk is full says so, and promotes nobody by half: on a file system of its own that is filled up."""

from __future__ import annotations

import errno
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from airflow_mlops.exceptions import LedgerUnavailable
from airflow_mlops.ledger import chain, champions
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.store import Store
from tests.postgresql import USER, PostgresqlServer

SIZE = "24m"


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small file system, which only root can make."""
    path = Path(tempfile.mkdtemp(prefix="airflow-mlops-disk-"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=755", "tmpfs", str(path)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        path.rmdir()
        pytest.skip(f"a file system of its own cannot be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)
    path.rmdir()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, disk: Path) -> Iterator[Store]:
    """A ledger whose tables are on that disk."""
    if request.param == "sqlite":
        opened = Store(f"sqlite:///{disk}/ledger.db")
        yield opened
        opened.close()
        return
    with _on(request.getfixturevalue("postgresql"), disk) as url:
        opened = Store(url)
        yield opened
        opened.close()


@contextmanager
def _on(server: PostgresqlServer, disk: Path) -> Iterator[str]:
    place = disk / "tables"
    place.mkdir()
    shutil.chown(place, USER)
    with server.database() as url:
        name = url.rpartition("/")[2]
        server.run(f"CREATE TABLESPACE small LOCATION '{place}'", f"ALTER DATABASE {name} SET TABLESPACE small")
        yield url
    server.run("DROP TABLESPACE small")


def fill(disk: Path) -> Path:
    """Write until nothing more goes onto the disk; return the file to remove."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return filler


def test_a_full_disk_is_worth_a_retry_and_nobody_is_half_promoted(store: Store, disk: Path) -> None:
    champions.crown(store, Claim("promote:1", "digits", 1, None))
    claim = Claim("promote:2", "digits", 2, 1, details={"why": secrets.token_hex(500_000)})  # its event does not fit into what is there
    filler = fill(disk)
    with pytest.raises(LedgerUnavailable, match=r"did not answer: .*(disk is full|No space left on device).*that the disk is not full") as caught:
        champions.crown(store, claim)
    assert caught.value.retryable
    filler.unlink()
    assert [reign.version for reign in champions.history(store, "digits")] == [1]
    assert [event.subject for event in chain.events(store)] == ["digits@1"]
    assert champions.crown(store, claim).token == 2
    assert chain.verify(chain.lines(store), [chain.head(store)]).number == 2
