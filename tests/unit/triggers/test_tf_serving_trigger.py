"""The trigger that waits for a version: one event, whatever the replicas do meanwhile."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.module_loading import import_string

from airflow_mlops import serving
from airflow_mlops.serving import rollout
from airflow_mlops.serving.availability import VersionStatus
from airflow_mlops.triggers.tf_serving import TFServingModelAvailableTrigger, TFServingRolloutTrigger
from tests.replicas import AVAILABLE, LOADING, REFUSED, UNAVAILABLE, Replica, nobody, replica, seconds

FOUND = {"reason": None, "timed_out": False}
Connect = Callable[..., None]


@pytest.fixture
def served(connect: Connect) -> Iterator[list[Replica]]:
    """Two replicas, which the connection ``tf_serving_default`` names."""
    with replica(versions={7: AVAILABLE}) as first, replica(versions={7: AVAILABLE}) as second:
        connect("tf_serving_default", "tf_serving", extra={"replicas": [first.addresses, second.addresses], "deadline_seconds": 1})
        yield [first, second]


def waiting(version: Any = 7, timeout_seconds: float = 20.0, **fields: Any) -> TFServingModelAvailableTrigger:
    deadline = time.time() + timeout_seconds
    return TFServingModelAvailableTrigger(**{"model": "m", "version": version, "deadline": deadline, "poll_interval_seconds": 0.05, **fields})


async def event_of(trigger: TFServingModelAvailableTrigger) -> dict[str, Any]:
    """Return the trigger's only event, after the journey through Airflow's database."""
    class_path, fields = json.loads(json.dumps(trigger.serialize()))
    [event] = [event.payload async for event in import_string(class_path)(**fields).run()]
    return dict(event)


def test_a_trigger_survives_the_database_and_carries_no_client() -> None:
    fields = {
        "model": "m",
        "version": "7",
        "deadline": 100.5,
        "tf_serving_conn_id": "mine",
        "poll_interval_seconds": 2.0,
        "fail_on_load_error": False,
    }
    trigger = TFServingModelAvailableTrigger(**fields)
    assert trigger.serialize() == ("airflow_mlops.triggers.tf_serving.TFServingModelAvailableTrigger", fields)
    class_path, read = json.loads(json.dumps(trigger.serialize()))
    assert import_string(class_path)(**read).serialize() == trigger.serialize()


@pytest.mark.parametrize("version", [7, "7"])
async def test_a_version_that_serves_everywhere_is_told_at_once(served: list[Replica], version: Any) -> None:
    assert await event_of(waiting(version)) == FOUND
    assert [replica.calls["GetModelStatus"] for replica in served] == [1, 1]


async def test_the_last_replica_is_waited_for(served: list[Replica]) -> None:
    served[1].versions = {}
    event = asyncio.create_task(event_of(waiting()))
    for versions in ({6: AVAILABLE}, {7: LOADING}):
        await asyncio.sleep(0.15)
        assert not event.done()
        served[1].versions = versions
    await asyncio.sleep(0.15)
    assert not event.done()
    served[1].versions[7] = AVAILABLE
    assert await event == FOUND


async def test_a_replica_that_comes_and_goes_is_waited_for(served: list[Replica]) -> None:
    served[0].failures["GetModelStatus"] = [UNAVAILABLE] * 6  # more than the client asks in one look
    assert await event_of(waiting()) == FOUND
    assert served[0].calls["GetModelStatus"] == 7


async def test_a_replica_that_could_not_load_it_ends_the_wait_at_once_with_its_words(served: list[Replica]) -> None:
    served[1].versions[7] = VersionStatus("END", "no graph")
    reason = f"replica {served[1].grpc_address} could not load version 7: no graph"
    assert await event_of(waiting()) == {"reason": reason, "timed_out": False}


async def test_a_replica_that_could_not_load_it_may_be_given_until_the_deadline(served: list[Replica]) -> None:
    served[1].versions[7] = VersionStatus("END", "no graph")
    event = await event_of(waiting(timeout_seconds=0.3, fail_on_load_error=False))
    assert event["timed_out"]
    assert f"END on {served[1].grpc_address} (no graph)" in event["reason"]


async def test_the_wait_ends_at_its_deadline_and_not_a_poll_later(served: list[Replica]) -> None:
    served[1].versions[7] = LOADING
    with seconds() as taken:
        event = await event_of(waiting(timeout_seconds=0.6, poll_interval_seconds=60.0))
    reason = f"at the deadline version 7 is not AVAILABLE on every replica: LOADING on {served[1].grpc_address}"
    assert event == {"reason": reason, "timed_out": True}
    assert 0.5 < taken[0] < 0.9
    assert [replica.calls["GetModelStatus"] for replica in served] == [2, 2]


async def test_a_replica_that_is_down_is_named_at_the_deadline(served: list[Replica], connect: Connect) -> None:
    down = nobody()
    connect("tf_serving_default", "tf_serving", extra={"replicas": [served[0].addresses, down.addresses], "deadline_seconds": 0.2})
    event = await event_of(waiting(timeout_seconds=0.4))
    assert event["timed_out"]
    assert event["reason"].endswith(f"no answer from {down.grpc_address}")


async def test_a_slow_replica_does_not_hold_up_the_event_loop(served: list[Replica], connect: Connect) -> None:
    connect("tf_serving_default", "tf_serving", extra={"replicas": [replica.addresses for replica in served], "deadline_seconds": 0.4})
    served[1].delay_seconds = 30.0
    event = asyncio.create_task(event_of(waiting(timeout_seconds=0.3)))
    ticks = 0
    while not event.done():
        await asyncio.sleep(0.02)
        ticks += 1
    assert (await event)["reason"].endswith(f"no answer from {served[1].grpc_address}")
    assert ticks > 10


async def test_the_event_loop_does_not_wait_for_an_import(monkeypatch: pytest.MonkeyPatch, connect: Connect, tmp_path: Path) -> None:
    class Finder:
        """Finds nothing, and notes who asks."""

        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            asked[name] = threading.current_thread()

    asked: dict[str, threading.Thread] = {}
    monkeypatch.delitem(sys.modules, "airflow_mlops.serving.rollout")
    monkeypatch.delattr(serving, "rollout")
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    connect("tf_serving_default", "tf_serving", extra={"replicas": [nobody().addresses], "deadline_seconds": 0.2})
    plan = rollout.Plan("m", 7, None, "/models/m", str(tmp_path / "models.config"), deadline=0.0)
    [event] = [event.payload async for event in TFServingRolloutTrigger(plan._asdict(), "tf_serving_default").run()]
    assert event["plan"] == plan._asdict() and "at the deadline version 7 is not AVAILABLE" in event["reason"]
    assert asked["airflow_mlops.serving.rollout"] is not threading.current_thread()


@pytest.mark.parametrize(
    ("version", "conn_id", "words"),
    [("latest", "tf_serving_default", "version is 'latest'; expected a whole number"), (7, "bare", "Connection 'bare' has no host")],
)
async def test_what_no_wait_can_help_is_an_event_and_no_dead_trigger(
    served: list[Replica], connect: Connect, version: Any, conn_id: str, words: str
) -> None:
    connect("bare", "tf_serving")
    event = await event_of(waiting(version, tf_serving_conn_id=conn_id))
    assert words in event["reason"]
    assert not event["timed_out"]


async def test_a_server_that_refuses_to_say_is_an_event_too(served: list[Replica]) -> None:
    served[0].failures["GetModelStatus"] = [REFUSED]
    event = await event_of(waiting())
    assert f"at {served[0].grpc_address} refused the status of model 'm'" in event["reason"]
