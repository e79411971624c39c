"""One event per complete version: not for half of one, not twice after a restart, and again only if Airflow never stored the first."""

from __future__ import annotations

import asyncio
import importlib
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from airflow.triggers.shared_stream import AdvanceItem, AdvanceOutcome

from airflow_mlops.data.snapshot import publish_version, write_manifest
from airflow_mlops.exceptions import LedgerError
from airflow_mlops.ledger import datasets
from airflow_mlops.ledger.store import Store
from airflow_mlops.results import DatasetVersion, to_data
from airflow_mlops.triggers.dataset import DatasetInbox, DatasetVersionTrigger, version_of

STORED, LOST = AdvanceOutcome(acked=1, failed=0), AdvanceOutcome(acked=0, failed=1)
SILENCE_SECONDS = 0.3


@pytest.fixture
def inbox(tmp_path: Path, ledger: Store) -> Path:
    path = tmp_path / "inbox"
    path.mkdir()
    return path


def publish(inbox: Path, name: str, dataset: str = "digits") -> DatasetVersion:
    return publish_version({"a.csv": f"x,label\n1,{name}\n".encode()}, inbox, name=name, dataset=dataset)


def make(inbox: Path, **settings: Any) -> DatasetVersionTrigger:
    return DatasetVersionTrigger(dataset="digits", inbox=str(inbox), poll_interval_seconds=0.02, **settings)


def restarted(trigger: DatasetVersionTrigger) -> DatasetVersionTrigger:
    """Return the trigger as a new triggerer makes it: from what the metadata database holds."""
    classpath, kwargs = trigger.serialize()
    module, _, name = classpath.rpartition(".")
    again: DatasetVersionTrigger = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(kwargs)))
    return again


def producer(trigger: DatasetVersionTrigger) -> DatasetInbox:
    made = trigger.create_shared_stream_producer(trigger.serialize()[1])
    assert isinstance(made, DatasetInbox)
    return made


def take(store: Store, version: DatasetVersion) -> None:
    """Do what the run does that an event starts."""
    datasets.claim(store, version, purpose="dag", run_id=f"run of {version.name}")


async def heard(stream: AsyncIterator[Any]) -> Any:
    return await asyncio.wait_for(anext(stream), 10)


async def silent(stream: AsyncIterator[Any]) -> bool:
    try:
        await asyncio.wait_for(anext(stream), SILENCE_SECONDS)
    except TimeoutError:
        return True
    return False


def test_a_trigger_is_the_same_after_a_restart(inbox: Path) -> None:
    trigger = make(inbox, settle_seconds=5, ledger_conn_id="other")
    again = restarted(trigger)
    assert again.serialize() == trigger.serialize()
    assert again.shared_stream_key() == trigger.shared_stream_key()
    assert hash(trigger.shared_stream_key()) != hash(make(inbox / "other").shared_stream_key())


async def test_a_complete_version_is_announced_with_its_description(inbox: Path) -> None:
    events = restarted(make(inbox)).run()
    waiting = asyncio.ensure_future(heard(events))
    await asyncio.sleep(0.1)
    version = publish(inbox, "v1")
    payload = (await waiting).payload
    assert json.loads(json.dumps(payload)) == to_data(version)
    assert version_of(payload) == version


async def test_a_version_is_announced_once_also_by_the_trigger_after_it(inbox: Path, ledger: Store) -> None:
    v1 = publish(inbox, "v1")
    events = make(inbox).run()
    assert (await heard(events)).payload == to_data(v1)
    assert await silent(events)  # asked for more, so it has remembered the first
    take(ledger, v1)
    again = restarted(make(inbox)).run()
    v2 = publish(inbox, "v2")
    assert (await heard(again)).payload == to_data(v2)


async def test_half_a_version_and_that_of_another_dataset_are_not_announced(inbox: Path) -> None:
    publish(inbox, "letters", dataset="letters")
    whole = publish(inbox, "v1")
    data = Path(whole.uri) / "a.csv"
    content = data.read_bytes()
    data.write_bytes(content[:-2])
    (inbox / "uploading").mkdir()
    (inbox / "uploading" / "a.csv").write_bytes(content)
    waiting = asyncio.ensure_future(heard(make(inbox).run()))
    await asyncio.sleep(SILENCE_SECONDS)
    assert not waiting.done()
    data.write_bytes(content)
    assert (await waiting).payload == to_data(whole)


async def test_an_event_that_airflow_stored_is_never_sent_again(inbox: Path, ledger: Store) -> None:
    v1 = publish(inbox, "v1")
    first = producer(make(inbox))
    payload, key = await heard(first.open_stream())
    assert (payload, key) == (to_data(v1), v1.digest)
    assert datasets.announced(ledger, "digits") == frozenset()
    await first.advance([AdvanceItem(key, STORED)])
    await first.aclose()
    assert datasets.announced(ledger, "digits") == {v1.digest}
    take(ledger, v1)
    assert await silent(producer(restarted(make(inbox))).open_stream())


async def test_an_event_lost_with_the_triggerer_is_sent_again_after_its_restart(inbox: Path) -> None:
    v1 = publish(inbox, "v1")
    for _ in range(2):  # the first one dies before advance
        assert await heard(producer(make(inbox)).open_stream()) == (to_data(v1), v1.digest)


async def test_an_event_that_airflow_could_not_store_is_sent_again_by_the_same_triggerer(inbox: Path) -> None:
    v1 = publish(inbox, "v1")
    running = producer(make(inbox))
    stream = running.open_stream()
    _, key = await heard(stream)
    await running.advance([AdvanceItem(key, LOST)])
    assert await heard(stream) == (to_data(v1), v1.digest)
    await running.advance([AdvanceItem(key, STORED)])
    assert await silent(stream)


async def test_the_next_version_waits_until_a_run_has_taken_the_one_before(inbox: Path, ledger: Store) -> None:
    v1, v2 = publish(inbox, "v1"), publish(inbox, "v2")
    running = producer(make(inbox))
    stream = running.open_stream()
    _, key = await heard(stream)
    assert key == v1.digest
    waiting = asyncio.ensure_future(heard(stream))
    await running.advance([AdvanceItem(key, STORED)])
    await asyncio.sleep(SILENCE_SECONDS)
    assert not waiting.done()
    take(ledger, v1)
    assert (await waiting)[1] == v2.digest


async def test_what_is_held_and_why_is_said_once(inbox: Path, ledger: Store, caplog: pytest.LogCaptureFixture) -> None:
    v1, v2 = publish(inbox, "v1"), publish(inbox, "v2")
    datasets.announce(ledger, v1)
    stream = producer(make(inbox)).open_stream()
    waiting = asyncio.ensure_future(heard(stream))
    with caplog.at_level("INFO", "airflow_mlops.triggers.dataset"):
        while not any("is held" in record.getMessage() for record in caplog.records):
            await asyncio.sleep(0.02)
        await asyncio.sleep(SILENCE_SECONDS)  # some ten more looks
        assert not waiting.done()
        said = [record.getMessage() for record in caplog.records if "is held" in record.getMessage()]
    assert len(said) == 1
    assert "digits v2 has arrived and is held until the run of v1 has begun" in said[0]
    take(ledger, v1)
    assert (await waiting)[1] == v2.digest


async def test_every_subscriber_of_the_stream_hears_the_version(inbox: Path) -> None:
    async def stream() -> AsyncIterator[dict[str, Any]]:
        yield {"dataset": "digits"}

    assert [event.payload async for event in make(inbox).filter_shared_stream(stream())] == [{"dataset": "digits"}]


async def test_a_broken_version_is_remembered_with_its_problem_and_its_repair_is_announced(inbox: Path, ledger: Store, tmp_path: Path) -> None:
    broken = Path(publish(inbox, "v1").uri)
    (broken / "a.csv").write_bytes(b"x,label\n2,v1\n")
    stream = producer(make(inbox, settle_seconds=0.1)).open_stream()
    waiting = asyncio.ensure_future(heard(stream))
    while not datasets.announced(ledger, "digits"):
        await asyncio.sleep(0.02)
        assert not waiting.done()
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        assert "a.csv was altered" in connection.execute("SELECT problem FROM dataset_versions").fetchone()[0]
    write_manifest(broken, "digits")
    payload, _ = await waiting
    assert payload["name"] == "v1"


@pytest.mark.parametrize("missing", ["inbox", "ledger"])
async def test_an_inbox_or_a_ledger_that_comes_back_is_waited_for(inbox: Path, tmp_path: Path, connect: Any, missing: str) -> None:
    v1 = publish(inbox, "v1")
    connect("mlops_ledger_default", "mlops_ledger", schema=str(tmp_path / "ledger" / "ledger.db"))
    (tmp_path / "ledger").mkdir()
    (tmp_path / missing).rename(tmp_path / "away")
    waiting = asyncio.ensure_future(heard(producer(make(inbox)).open_stream()))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    (tmp_path / "away").rename(tmp_path / missing)
    assert (await waiting)[1] == v1.digest


async def test_a_plain_trigger_that_ends_closes_its_ledger(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Store] = []
    close = Store.close
    monkeypatch.setattr(Store, "close", lambda store: (closed.append(store), close(store)))
    publish(inbox, "v1")
    events: Any = make(inbox).run()
    await heard(events)
    await events.aclose()
    assert len(closed) == 1


async def test_a_ledger_that_is_none_ends_the_trigger(inbox: Path, tmp_path: Path, connect: Any) -> None:
    (tmp_path / "notes.txt").write_text("no database" * 100)
    connect("mlops_ledger_default", "mlops_ledger", schema=str(tmp_path / "notes.txt"))
    with pytest.raises(LedgerError, match="not a database"):
        await heard(producer(make(inbox)).open_stream())
