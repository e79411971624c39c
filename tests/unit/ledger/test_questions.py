"""Auditors' questions, asked by the command line as they would."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_mlops.cli import main
from airflow_mlops.exceptions import LedgerError, SpecError
from airflow_mlops.ledger import chain, champions, questions
from airflow_mlops.ledger.chain import Event
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.store import Store

START = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def store(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Version 1 is champion at 12:00 and version 2 at 12:20; from 12:10 on rollouts are noted: 1 at 12:10, 2 at 12:19."""

    def happens(minute: int) -> None:
        monkeypatch.setattr(chain, "now", lambda: START + timedelta(minutes=minute))

    def serves(version: int) -> None:
        with store.transaction() as connection:
            chain.append(connection, Event("served", f"digits@{version}", "release/run", {"label": "stable"}))

    happens(0)
    champions.crown(
        store, Claim("one", "digits", 1, None, actor="release/run 1", details={"gate.evaluation": "accuracy 0.97", "dataset": "digits v1"})
    )
    happens(10)
    serves(1)
    happens(19)
    serves(2)
    happens(20)
    champions.crown(store, Claim("two", "digits", 2, 1, digest="sha256:2", actor="release/run 2", details={"gate.evaluation": "accuracy 0.99"}))
    return store


def at(minute: int) -> datetime:
    return START + timedelta(minutes=minute)


@pytest.mark.parametrize(("minute", "version", "until"), [(0, 1, 2), (5, 1, 2), (10, 1, 2), (18, 1, 2), (19, 2, None), (500, 2, None)])
def test_who_served_is_who_was_seen_serving_and_before_that_the_champion(store: Store, minute: int, version: int, until: int | None) -> None:
    answer = questions.who_served(store, "digits", at(minute))
    assert answer.since.subject == f"digits@{version}"
    assert (answer.until.subject if answer.until else None) == (f"digits@{until}" if until else None)


def test_before_the_first_nobody_served(store: Store) -> None:
    with pytest.raises(LedgerError, match=r"no version of 'digits' that served at 2026-11-24T11:59.*the first is digits@1 at 2026-11-24T12:00"):
        questions.who_served(store, "digits", at(-1))
    with pytest.raises(LedgerError, match="no version of 'letters' that served"):
        questions.who_served(store, "letters", at(0))


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    with pytest.raises(SpecError, match=r"has no zone; expected for instance 2026-11-24T12:00:00\+00:00"):
        questions.who_served(store, "digits", datetime(2026, 11, 24, 12))


def test_why_tells_all_of_one_version(store: Store, ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "why", "digits@2", "--ledger", ledger_url.removeprefix("sqlite:///")]) == 0
    shown = capsys.readouterr().out
    assert "event 3: served by release/run\n    label: stable" in shown
    assert "event 4: promoted by release/run 2" in shown and "gate.evaluation: accuracy 0.99" in shown and "digest: sha256:2" in shown
    assert "0.97" not in shown


def test_who_served_is_told_in_a_sentence(store: Store, ledger_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "who-served", "digits", "--at", "2026-11-24T13:15:00+01:00", "--ledger", ledger_url]) == 0
    assert capsys.readouterr().out == (
        "digits@1 served, since 2026-11-24T12:10:00+00:00 until 2026-11-24T12:19:00+00:00, when digits@2 followed (event 2, served by release/run)\n"
    )


def test_an_exported_trail_is_verified_against_its_anchor(store: Store, ledger_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trail = tmp_path / "trail.jsonl"
    assert main(["audit", "export", "--ledger", ledger_url, "--out", str(trail)]) == 0
    anchor = capsys.readouterr().out.splitlines()[-1]
    assert anchor == str(chain.head(store))
    for where in (["--trail", str(trail)], ["--ledger", ledger_url]):
        assert main(["audit", "verify", *where, "--anchor", anchor]) == 0
        assert "4 events, each as it was written; events up to 4 are vouched for" in capsys.readouterr().out
    trail.write_bytes(b"".join(trail.read_bytes().splitlines(keepends=True)[:-1]))
    assert main(["audit", "verify", "--trail", str(trail)]) == 0
    assert "without an anchor a trail that was cut off or rewritten looks whole" in capsys.readouterr().out
    assert main(["audit", "verify", "--trail", str(trail), "--anchor", anchor]) == 1
    assert "The trail ends after event 3; the anchor names event 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["why", "digits", "--ledger", "LEDGER"], "'digits' is no version; expected MODEL@VERSION"),
        (["why", "digits@9", "--ledger", "LEDGER"], "The trail says nothing of digits@9"),
        (["why", "digits@1", "--ledger", "nowhere.db"], "nowhere.db does not exist"),
        (["why", "digits@1", "--ledger", "sqlite:///nowhere.db"], "nowhere.db does not exist"),
        (["export", "--ledger", "LEDGER", "--out", "/nowhere/trail.jsonl"], "/nowhere/trail.jsonl cannot be written: No such file or directory"),
        (["who-served", "digits", "--at", "yesterday", "--ledger", "LEDGER"], "--at is 'yesterday'; expected a time"),
        (["verify"], "Give either --trail FILE or --ledger URL"),
        (["verify", "--trail", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["verify", "--ledger", "LEDGER", "--anchor", "4"], "'4' is no anchor"),
        (["verify", "--ledger", "LEDGER", "--anchors", __file__], "holds no anchor; expected NUMBER:HASH"),
        (["verify", "--ledger", "LEDGER", "--anchors", "missing.txt"], "missing.txt cannot be read: No such file"),
    ],
)
def test_a_question_that_cannot_be_answered_is_one_sentence(
    store: Store, ledger_url: str, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["audit", *(ledger_url if argument == "LEDGER" else argument for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1
    assert not Path("nowhere.db").exists()
