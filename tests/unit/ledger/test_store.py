"""A ledger that cannot be reached says so, and where it is, and never its password."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import traceback
from pathlib import Path

import pytest

from airflow_mlops.exceptions import LedgerError, LedgerUnavailable, SpecError
from airflow_mlops.gates import ApprovalPolicy
from airflow_mlops.ledger import approvals, chain, champions, datasets, journal, messages, rows
from airflow_mlops.ledger.store import Store, now
from airflow_mlops.ledger.tables import CLAIMS
from tests.fakes import dataset_version


def test_a_missing_directory_is_named_and_worth_a_retry(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match=r"nowhere/ledger\.db did not answer: unable to open database file") as caught:
        Store(f"sqlite:///{tmp_path}/nowhere/ledger.db")
    assert caught.value.retryable


def test_a_database_that_cannot_be_written_is_unavailable(database: Path) -> None:
    Store(f"sqlite:///{database}").close()
    read_only = Store(f"sqlite:///file:{database}?mode=ro&uri=true")
    with pytest.raises(LedgerUnavailable, match=r"ledger\.db.*readonly.*can be written"):
        datasets.announce(read_only, dataset_version())
    read_only.close()


def test_a_file_that_is_no_database_is_refused_by_its_name(database: Path) -> None:
    database.write_bytes(b"some notes, no database" * 100)
    with pytest.raises(LedgerError, match=r"ledger\.db.*not a database") as caught:
        Store(f"sqlite:///{database}")
    assert not caught.value.retryable


@pytest.mark.parametrize("scheme", ["nosuchdatabase", "sqlite", "sqlite+nosuchdriver", "no scheme", "mysql+pymysql", "postgresql+pg8000"])
def test_an_impossible_address_is_an_impossible_request_and_its_password_stays_secret(scheme: str) -> None:
    with pytest.raises(SpecError, match=r"The ledger cannot be (opened|kept)") as caught:
        Store(f"{scheme}://user:s3cret-token@localhost/ledger")
    assert "s3cret-token" not in str(caught.value)


@pytest.mark.parametrize("password", ["s3cret@t0ken", "s3@cret:t0ken", "s3cret@t0/ken"])
def test_a_password_that_tears_its_address_apart_stays_secret_too(password: str) -> None:
    with pytest.raises(SpecError, match=r"its address is no URL.*written as %40") as caught:
        Store(f"postgresql+psycopg2://user:{password}@localhost/ledger")
    assert "t0" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("address", ["user:s3cret-token@127.0.0.1:1/ledger", "127.0.0.1:1/ledger?user=user&password=s3cret-token"])
def test_a_server_that_is_not_there_is_worth_a_retry_and_the_password_stays_secret(address: str) -> None:
    with pytest.raises(LedgerUnavailable, match=r"127\.0\.0\.1:1/ledger did not answer: .*refused") as caught:
        Store(f"postgresql+psycopg2://{address}")
    assert caught.value.retryable
    assert "s3cret-token" not in "".join(traceback.format_exception(caught.value))


def test_a_server_that_takes_a_connection_and_never_answers_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(LedgerUnavailable, match=r"did not answer.*timeout expired"):
        Store(f"postgresql+psycopg2://user@127.0.0.1:{silent.getsockname()[1]}/ledger", patience_seconds=1)


def test_a_transaction_that_fails_leaves_nothing(store: Store) -> None:
    def interrupted() -> None:
        with store.transaction() as connection:
            connection.execute(CLAIMS.insert().values(dataset="d", digest="x", purpose="p", run_id="r", claimed_at=now()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert datasets.claimed(store, "d", purpose="p") == {}


def test_what_was_written_is_there_when_the_ledger_is_opened_again(store: Store, ledger_url: str) -> None:
    datasets.announce(store, dataset_version())
    again = Store(ledger_url)
    assert datasets.announced(again, "digits") == {"sha256:v1"}
    again.close()


def test_a_ledger_that_cannot_be_opened_leaves_no_file_open(database: Path) -> None:
    def open_files() -> list[Path]:
        return [path for path in Path("/proc/self/fd").iterdir() if path.resolve().name.startswith(database.name)]

    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    with pytest.raises(LedgerUnavailable, match="readonly"):
        Store(f"sqlite:///file:{database}?mode=ro&uri=true")
    assert open_files() == []


def test_the_longest_names_that_airflow_and_mlflow_allow_fit_into_every_key(store: Store) -> None:
    model, dag, run, task = (letter * 250 for letter in "mdrt")
    release, subject = f"{dag}/{run}", approvals.Subject(model, 1, None, "tf_serving_default/stable", {})
    assert journal.once(store, f"rollout:{model}:1:{release}:{task}", "switch", {}, lambda: {"done": 1}) == {"done": 1}
    assert champions.crown(store, champions.Claim(f"promote:{model}:1:{dag}:{run}", model, 1, None)).version == 1
    approvals.ask(store, release, subject, ApprovalPolicy(), ())
    approvals.answer(store, release, approvals.Answer("ann", "1", True, now(), "", ()), subject)
    assert messages.add(store, f"notify:{dag}:{run}:{task}:-1:1:{'0' * 71}", "slack_default", "#releases", {})
    assert rows.verify(store, []) == chain.head(store)
