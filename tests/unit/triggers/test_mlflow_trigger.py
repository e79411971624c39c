"""One event per move of an alias: in order, not twice after a restart, and again only if Airflow never stored the first."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset, AssetWatcher
from airflow.sdk.module_loading import import_string
from airflow.triggers.shared_stream import AdvanceItem, AdvanceOutcome

from airflow_mlops.exceptions import SpecError
from airflow_mlops.hooks.mlflow import TOKEN, MlflowHook
from airflow_mlops.ledger.store import Store
from airflow_mlops.triggers.mlflow import AliasChanges, MlflowModelAliasEventTrigger, MlflowModelAliasTrigger
from tests.shelf import Shelf

STORED, LOST = AdvanceOutcome(acked=1, failed=0), AdvanceOutcome(acked=0, failed=1)
SILENCE_SECONDS = 0.4
PATIENCE_SECONDS = 30.0


@pytest.fixture
def shelf(request: pytest.FixtureRequest, database: Path, connect: Callable[..., None], ledger: Store) -> Shelf:
    """A model with three versions, the first of which is champion, in the MLflow that the connection ``mlflow_default`` names."""
    shelf = Shelf(request.node.name, database)
    connect("mlflow_default", "mlflow", host=shelf.uri)
    shelf.register(num=3)
    shelf.put("champion", 1)
    return shelf


def make(shelf: Shelf, **settings: Any) -> MlflowModelAliasEventTrigger:
    return MlflowModelAliasEventTrigger(model=shelf.name, poll_interval_seconds=0.02, **settings)


def restarted(trigger: Any) -> Any:
    """Return the trigger as a new triggerer makes it: from what the metadata database holds."""
    class_path, fields = json.loads(json.dumps(trigger.serialize()))
    return import_string(class_path)(**fields)


def producer(trigger: MlflowModelAliasEventTrigger) -> AliasChanges:
    made = restarted(trigger).create_shared_stream_producer(trigger.serialize()[1])
    assert isinstance(made, AliasChanges)
    return made


def told(shelf: Shelf, change: int, previous: int | None, version: int | None) -> dict[str, Any]:
    return {"model": shelf.name, "alias": "champion", "version": version, "previous": previous, "change": change}


LOOKS: list[object] = []


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep in `LOOKS` what each look found."""
    look = AliasChanges._look

    async def noted(changes: AliasChanges) -> Any:
        found = await look(changes)
        LOOKS.append(found)
        return found

    monkeypatch.setattr(AliasChanges, "_look", noted)


async def looked() -> None:
    """Return when the trigger has looked twice more, however long that takes on a busy machine."""
    wanted, end = len(LOOKS) + 2, time.monotonic() + PATIENCE_SECONDS
    while len(LOOKS) < wanted:
        assert time.monotonic() < end, "the trigger does not look"
        await asyncio.sleep(0.01)


async def heard(stream: AsyncIterator[Any]) -> Any:
    return await asyncio.wait_for(anext(stream), PATIENCE_SECONDS)


async def silent(stream: AsyncIterator[Any]) -> bool:
    """Return whether the next two looks yield nothing."""
    waiting, looking = asyncio.ensure_future(anext(stream)), asyncio.ensure_future(looked())
    await asyncio.wait((waiting, looking), return_when=asyncio.FIRST_COMPLETED)
    for task in (waiting, looking):
        task.cancel()
    await asyncio.gather(waiting, looking, return_exceptions=True)
    return waiting.cancelled()


def test_triggers_are_the_same_after_a_restart_and_a_watcher_takes_the_one(shelf: Shelf) -> None:
    trigger = make(shelf, alias="candidate", mlflow_conn_id="m", ledger_conn_id="l")
    assert restarted(trigger).serialize() == trigger.serialize()
    assert restarted(trigger).shared_stream_key() == trigger.shared_stream_key()
    assert hash(trigger.shared_stream_key()) != hash(make(shelf).shared_stream_key())
    assert AssetWatcher(name="aliases", trigger=trigger).trigger is trigger
    assert Asset("champion", watchers=[AssetWatcher(name="aliases", trigger=trigger)]).watchers
    waiting = MlflowModelAliasTrigger("m", "champion", "7", "intent", 100.5, "mine", "my_ledger", 2.0)
    assert restarted(waiting).serialize() == waiting.serialize()


async def test_where_the_alias_is_at_the_first_look_is_no_change_and_each_move_after_it_is_one(shelf: Shelf) -> None:
    events = restarted(make(shelf)).run()
    waiting = asyncio.ensure_future(heard(events))
    await looked()
    assert not waiting.done()
    shelf.put("champion", 3)
    assert (await waiting).payload == told(shelf, 1, 1, 3)
    waiting = asyncio.ensure_future(heard(events))
    for change, (previous, version) in enumerate([(3, 1), (1, None), (None, 2)], 2):
        shelf.put("champion", version)
        assert (await waiting).payload == told(shelf, change, previous, version)
        waiting = asyncio.ensure_future(heard(events))
    await looked()
    assert not waiting.done()
    waiting.cancel()


async def test_a_move_while_no_triggerer_ran_is_told_by_the_next_one_once(shelf: Shelf) -> None:
    assert await silent(producer(make(shelf)).open_stream())
    shelf.put("champion", 2)
    after_restart = producer(make(shelf))
    payload, change = await heard(after_restart.open_stream())
    assert payload == told(shelf, 1, 1, 2)
    await after_restart.advance([AdvanceItem(change, STORED)])
    await after_restart.aclose()
    assert await silent(producer(make(shelf)).open_stream())


async def test_a_change_lost_with_the_triggerer_is_told_again_as_the_same(shelf: Shelf) -> None:
    assert await silent(producer(make(shelf)).open_stream())
    shelf.put("champion", 2)
    for _ in range(2):  # the first one dies before Airflow has stored its event
        assert (await heard(producer(make(shelf)).open_stream()))[0] == told(shelf, 1, 1, 2)


async def test_a_change_that_airflow_could_not_store_is_told_again_and_the_next_one_waits_for_it(shelf: Shelf) -> None:
    running = producer(make(shelf))
    stream = running.open_stream()
    waiting = asyncio.ensure_future(heard(stream))
    await looked()
    shelf.put("champion", 2)
    _, change = await waiting
    waiting = asyncio.ensure_future(heard(stream))
    shelf.put("champion", 3)
    await asyncio.sleep(SILENCE_SECONDS)
    assert not waiting.done()
    await running.advance([AdvanceItem(change, LOST)])
    payload, change = await waiting
    assert payload == told(shelf, 1, 1, 3)
    await running.advance([AdvanceItem(change, STORED)])
    assert await silent(stream)


async def test_every_subscriber_of_the_stream_hears_the_change(shelf: Shelf) -> None:
    async def stream() -> AsyncIterator[dict[str, Any]]:
        yield {"version": 2}

    assert [event.payload async for event in make(shelf).filter_shared_stream(stream())] == [{"version": 2}]


async def test_triggers_that_differ_do_not_take_each_others_changes(shelf: Shelf) -> None:
    triggers = [make(shelf), MlflowModelAliasEventTrigger(shelf.name, poll_interval_seconds=0.03)]
    for trigger in triggers:
        assert await silent(producer(trigger).open_stream())
    shelf.put("champion", 2)
    for trigger in triggers:
        assert (await heard(trigger.run())).payload == told(shelf, 1, 1, 2)


@pytest.mark.parametrize("missing", ["mlflow", "ledger"])
async def test_an_mlflow_or_a_ledger_that_comes_back_is_waited_for(shelf: Shelf, tmp_path: Path, connect: Callable[..., None], missing: str) -> None:
    (tmp_path / "ledger").mkdir()
    connect("mlops_ledger_default", "mlops_ledger", schema=str(tmp_path / "ledger" / "ledger.db"))
    assert await silent(producer(make(shelf)).open_stream())
    shelf.put("champion", 2)
    shelf.break_down() if missing == "mlflow" else (tmp_path / "ledger").rename(tmp_path / "away")
    waiting = asyncio.ensure_future(heard(producer(make(shelf)).open_stream()))
    await looked()
    assert not waiting.done()
    shelf.mend() if missing == "mlflow" else (tmp_path / "away").rename(tmp_path / "ledger")
    assert (await waiting)[0] == told(shelf, 1, 1, 2)


async def test_a_connection_that_is_wrong_ends_the_trigger(shelf: Shelf, connect: Callable[..., None]) -> None:
    connect("bare", "mlflow")
    with pytest.raises(SpecError, match="Connection 'bare' has no host"):
        await heard(producer(make(shelf, mlflow_conn_id="bare")).open_stream())


async def test_each_look_has_the_token_of_its_own_connection(shelf: Shelf, connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is a variable of the whole process, and a triggerer runs triggers of several connections."""
    seen: set[tuple[str, str | None]] = set()
    look = MlflowHook.open

    def noting(connection: Any) -> Any:
        opened = look(connection)
        time.sleep(0.02)  # in which another thread would put its own token there
        seen.add((connection.conn_id, os.environ.get(TOKEN)))
        return opened

    monkeypatch.setattr(MlflowHook, "open", noting)
    connect("ann", "mlflow", host=shelf.uri, password="of ann")
    connect("bob", "mlflow", host=shelf.uri, password="of bob")
    streams = [producer(make(shelf, mlflow_conn_id=conn_id)).open_stream() for conn_id in ("ann", "bob", "mlflow_default")]
    assert await asyncio.gather(*map(silent, streams)) == [True] * 3
    assert seen == {("ann", "of ann"), ("bob", "of bob"), ("mlflow_default", None)}


def test_parsing_a_dag_that_waits_or_watches_does_not_import_mlflow() -> None:
    script = "import sys, airflow_mlops.sensors.mlflow, airflow_mlops.triggers.mlflow; print(sorted(sys.modules.keys() & {'mlflow'}))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
