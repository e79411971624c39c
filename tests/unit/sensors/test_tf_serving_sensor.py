"""The sensor in both modes: what it waits for, how it fails, and that both modes say the same."""

from __future__ import annotations

import asyncio
import json
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, AirflowSkipException, TaskDeferred
from airflow.sdk.module_loading import import_string

from airflow_mlops.sensors.tf_serving import TFServingModelAvailableSensor
from airflow_mlops.serving.availability import VersionStatus
from tests.fakes import context
from tests.replicas import AVAILABLE, LOADING, Replica, nobody, replica

MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["poke", "deferrable"])


@pytest.fixture
def served(connect: Callable[..., None]) -> Iterator[list[Replica]]:
    """Two replicas, which the connection ``tf_serving_default`` names."""
    with replica(versions={7: AVAILABLE}) as first, replica(versions={7: AVAILABLE}) as second:
        connect("tf_serving_default", "tf_serving", extra={"replicas": [first.addresses, second.addresses], "deadline_seconds": 1})
        yield [first, second]


def sensor(deferrable: bool, version: Any = 7, **fields: Any) -> TFServingModelAvailableSensor:
    return TFServingModelAvailableSensor(task_id="wait", model="m", version=version, deferrable=deferrable, **{"poke_interval": 0.05, **fields})


def execute(waiting: TFServingModelAvailableSensor) -> Any:
    """Run the task as Airflow does, its trigger too if it defers to one."""
    try:
        return waiting.execute(context())
    except TaskDeferred as deferred:
        class_path, fields = json.loads(json.dumps(deferred.trigger.serialize()))
        with ThreadPoolExecutor(1) as triggerer:
            event = triggerer.submit(asyncio.run, _event_of(import_string(class_path)(**fields))).result()
        return waiting.resume_execution(deferred.method_name, {"event": json.loads(json.dumps(event))}, context())


async def _event_of(trigger: Any) -> Any:
    async for event in trigger.run():
        return event.payload
    raise AssertionError("the trigger ended without an event")


@MODES
@pytest.mark.parametrize("version", [7, "7"])
def test_a_version_that_serves_on_every_replica_lets_the_dag_go_on(served: list[Replica], deferrable: bool, version: Any) -> None:
    execute(sensor(deferrable, version))
    assert [replica.calls["GetModelStatus"] for replica in served] == [1, 1]


class Loading(dict[int, VersionStatus]):
    """Version 7, which is loaded once it was asked for three times."""

    def items(self) -> Any:
        self.looks = getattr(self, "looks", 0) + 1
        return [(7, AVAILABLE if self.looks > 3 else LOADING)]


@MODES
def test_the_last_replica_is_waited_for(served: list[Replica], deferrable: bool) -> None:
    served[1].versions = loading = Loading({7: LOADING})
    execute(sensor(deferrable))
    assert loading.looks == 4
    assert served[0].calls["GetModelStatus"] >= 4


@MODES
def test_a_replica_that_could_not_load_it_fails_the_task_at_once_with_its_words(served: list[Replica], deferrable: bool) -> None:
    served[1].versions[7] = VersionStatus("END", "no graph")
    words = f"ServingError: replica {served[1].grpc_address} could not load version 7: no graph"
    with pytest.raises(AirflowFailException, match=words):
        execute(sensor(deferrable))


@MODES
def test_a_version_that_is_repaired_is_found_when_load_errors_are_waited_out(served: list[Replica], deferrable: bool) -> None:
    served[1].versions[7] = VersionStatus("END", "no graph")
    repaired = threading.Timer(0.2, served[1].versions.update, [{7: AVAILABLE}])
    repaired.start()
    execute(sensor(deferrable, fail_on_load_error=False))
    repaired.join()


@MODES
def test_a_wait_that_is_too_long_is_a_timeout_of_the_sensor(served: list[Replica], deferrable: bool) -> None:
    served[1].versions = {}
    with pytest.raises(AirflowSensorTimeout, match=f"unknown to {served[1].grpc_address}" if deferrable else "timed out"):
        execute(sensor(deferrable, timeout=0.3))


@MODES
@pytest.mark.parametrize("versions", [{}, {7: VersionStatus("END", "no graph")}], ids=["timeout", "error"])
def test_a_soft_failure_skips_the_task_in_both_modes(served: list[Replica], deferrable: bool, versions: dict[int, VersionStatus]) -> None:
    served[1].versions = versions
    with pytest.raises(AirflowSkipException):
        execute(sensor(deferrable, timeout=0.2, soft_fail=True))


@MODES
@pytest.mark.parametrize("version", ["latest", -1, ""])
def test_a_version_that_is_none_fails_for_good(served: list[Replica], deferrable: bool, version: Any) -> None:
    with pytest.raises(AirflowFailException, match=r"version is .*; expected a whole number"):
        execute(sensor(deferrable, version))


@MODES
def test_a_connection_that_is_wrong_fails_for_good(connect: Callable[..., None], deferrable: bool) -> None:
    connect("bare", "tf_serving", host="h", port=99999, extra={"rest_url": "http://h:8501"})
    with pytest.raises(AirflowFailException, match="Connection 'bare': host and port is 'h:99999'"):
        execute(sensor(deferrable, tf_serving_conn_id="bare"))


def test_a_poke_says_what_it_waits_for(served: list[Replica], connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    down = nobody()
    connect("tf_serving_default", "tf_serving", extra={"replicas": [served[0].addresses, down.addresses], "deadline_seconds": 0.2})
    waiting, said = sensor(False), list[str]()
    monkeypatch.setattr(waiting.log, "info", lambda message, *values: said.append(message % values))
    assert waiting.poke(context()) is False
    assert said == [f"Waiting: version 7 is not AVAILABLE on every replica: no answer from {down.grpc_address}."]


def test_its_fields_are_templates_and_what_airflow_polls_is_what_the_trigger_polls(served: list[Replica]) -> None:
    waiting = sensor(True, "{{ params.version }}", poke_interval=3, timeout=60, fail_on_load_error=False, tf_serving_conn_id="other")
    waiting.render_template_fields({"params": {"version": "7"}})
    before = time.time()
    with pytest.raises(TaskDeferred) as deferred:
        waiting.execute(context())
    fields = deferred.value.trigger.serialize()[1]
    assert before + 60 <= fields.pop("deadline") <= time.time() + 60
    assert fields == {"model": "m", "version": "7", "tf_serving_conn_id": "other", "poll_interval_seconds": 3.0, "fail_on_load_error": False}
    assert not served[0].calls


@pytest.mark.parametrize("setting", ["True", "False"])
def test_whether_it_defers_is_airflows_setting_unless_it_is_told(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", setting)
    made_anew = runpy.run_path(sys.modules[TFServingModelAvailableSensor.__module__].__file__ or "")["TFServingModelAvailableSensor"]
    assert made_anew(task_id="wait", model="m", version=7).deferrable == (setting == "True")
    assert made_anew(task_id="told", model="m", version=7, deferrable=setting == "False").deferrable == (setting == "False")
