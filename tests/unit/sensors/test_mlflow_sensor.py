"""The sensor in both modes: what it waits for, how it fails, and that both modes say the same."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, TaskDeferred
from airflow.sdk.module_loading import import_string

from airflow_mlops.ledger.store import Store
from airflow_mlops.sensors.mlflow import MlflowModelAliasSensor
from tests.fakes import FakeTaskInstance, context
from tests.servers import free_port
from tests.shelf import Shelf

MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferrable"])


@pytest.fixture
def shelf(request: pytest.FixtureRequest, database: Path, connect: Callable[..., None], ledger: Store) -> Shelf:
    """A model with two versions, in the MLflow that the connection ``mlflow_default`` names."""
    shelf = Shelf(request.node.name, database)
    connect("mlflow_default", "mlflow", host=shelf.uri)
    shelf.register(num=2)
    return shelf


def sensor(shelf: Shelf, deferrable: bool, **fields: Any) -> MlflowModelAliasSensor:
    return MlflowModelAliasSensor(task_id="wait", model=shelf.name, deferrable=deferrable, **{"poke_interval": 0.05, **fields})


def execute(waiting: MlflowModelAliasSensor) -> Any:
    """Run the task as Airflow does, its trigger too if it defers to one."""
    about = context(FakeTaskInstance(task_id="wait"))
    try:
        return waiting.execute(about)
    except TaskDeferred as deferred:
        class_path, fields = json.loads(json.dumps(deferred.trigger.serialize()))
        with ThreadPoolExecutor(1) as triggerer:
            event = triggerer.submit(asyncio.run, _event_of(import_string(class_path)(**fields))).result()
        return waiting.resume_execution(deferred.method_name, {"event": json.loads(json.dumps(event))}, about)


async def _event_of(trigger: Any) -> Any:
    async for event in trigger.run():
        return event.payload
    raise AssertionError("the trigger ended without an event")


@MODES
@pytest.mark.parametrize("version", [None, "", 2, "2"])
def test_an_alias_that_is_where_it_should_be_lets_the_dag_go_on_with_its_version(shelf: Shelf, deferrable: bool, version: Any) -> None:
    shelf.put("champion", 2)
    assert execute(sensor(shelf, deferrable, version=version)) == {"model": shelf.name, "alias": "champion", "version": 2}


@MODES
@pytest.mark.parametrize(("first", "fields"), [(None, {}), (1, {"version": 2}), (1, {"changed": True}), (None, {"changed": True})])
def test_an_alias_that_is_elsewhere_is_waited_for(shelf: Shelf, deferrable: bool, first: int | None, fields: dict[str, Any]) -> None:
    shelf.put("candidate", first)
    moved = threading.Timer(0.5, shelf.put, ["candidate", 2])
    moved.start()
    assert execute(sensor(shelf, deferrable, alias="candidate", **fields))["version"] == 2
    assert moved.finished.is_set()


@MODES
def test_a_model_that_does_not_exist_yet_is_waited_for(shelf: Shelf, deferrable: bool) -> None:
    missing = Shelf(f"no-{shelf.name}", shelf.database)
    with pytest.raises(AirflowSensorTimeout):
        execute(sensor(missing, deferrable, timeout=0.2))


@MODES
def test_a_change_during_a_try_that_died_is_not_missed_by_the_next_one(shelf: Shelf, deferrable: bool) -> None:
    shelf.put("champion", 1)
    with pytest.raises(AirflowSensorTimeout):
        execute(sensor(shelf, deferrable, changed=True, timeout=0.2))
    shelf.put("champion", 2)
    assert execute(sensor(shelf, deferrable, changed=True))["version"] == 2


@MODES
def test_an_mlflow_that_does_not_answer_is_waited_for(shelf: Shelf, deferrable: bool) -> None:
    shelf.put("champion", 2)
    shelf.break_down()
    mended = threading.Timer(0.4, shelf.mend)
    mended.start()
    assert execute(sensor(shelf, deferrable))["version"] == 2
    mended.join()


@MODES
def test_an_mlflow_that_never_answers_is_a_timeout_of_the_sensor(shelf: Shelf, deferrable: bool, connect: Callable[..., None]) -> None:
    connect("mlflow_default", "mlflow", host=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(AirflowSensorTimeout, match="at the deadline MLflow at .* did not answer" if deferrable else "timed out"):
        execute(sensor(shelf, deferrable, timeout=0.2))


@MODES
def test_a_wait_that_is_too_long_says_where_the_alias_is(shelf: Shelf, deferrable: bool) -> None:
    shelf.put("champion", 1)
    words = "alias 'champion' of .* is on version 1; it must be on version 2" if deferrable else "timed out"
    with pytest.raises(AirflowSensorTimeout, match=words):
        execute(sensor(shelf, deferrable, version=2, timeout=0.2))


@MODES
@pytest.mark.parametrize("version", ["latest", -1, True])
def test_a_version_that_is_none_fails_for_good(shelf: Shelf, deferrable: bool, version: Any) -> None:
    with pytest.raises(AirflowFailException, match=r"version is .*; expected a whole number, or nothing"):
        execute(sensor(shelf, deferrable, version=version))


@MODES
def test_a_connection_that_is_wrong_fails_for_good(shelf: Shelf, deferrable: bool, connect: Callable[..., None]) -> None:
    connect("bare", "mlflow")
    with pytest.raises(AirflowFailException, match="Connection 'bare' has no host"):
        execute(sensor(shelf, deferrable, mlflow_conn_id="bare"))


def test_its_fields_are_templates_and_what_airflow_polls_is_what_the_trigger_polls(shelf: Shelf) -> None:
    waiting = sensor(shelf, True, version="{{ params.version }}", changed=True, poke_interval=3, timeout=60, ledger_conn_id="other")
    waiting.render_template_fields({"params": {"version": "7"}})
    before = time.time()
    with pytest.raises(TaskDeferred) as deferred:
        waiting.execute(context(FakeTaskInstance(dag_id="d", run_id="r", task_id="wait")))
    fields = deferred.value.trigger.serialize()[1]
    assert before + 60 <= fields.pop("deadline") <= time.time() + 60
    assert fields == {
        "model": shelf.name,
        "alias": "champion",
        "version": "7",
        "since": "alias-seen:d:r:wait:-1",
        "mlflow_conn_id": "mlflow_default",
        "ledger_conn_id": "other",
        "poll_interval_seconds": 3.0,
    }
