"""The sensor takes the oldest complete version that no run of its DAG has, and waits for one otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlops.data.reading import Digests
from airflow_mlops.data.snapshot import publish_version
from airflow_mlops.exceptions import DatasetNotFound, LedgerUnavailable
from airflow_mlops.ledger import datasets
from airflow_mlops.ledger.store import Store
from airflow_mlops.results import DatasetVersion, to_data
from airflow_mlops.sensors.dataset import DatasetVersionSensor
from tests.fakes import FakeTaskInstance, context

FIRST, SECOND = FakeTaskInstance(run_id="run 1"), FakeTaskInstance(run_id="run 2")


@pytest.fixture
def inbox(tmp_path: Path, ledger: Store) -> Path:
    path = tmp_path / "inbox"
    path.mkdir()
    return path


def publish(inbox: Path, name: str, dataset: str = "digits") -> DatasetVersion:
    return publish_version({"a.csv": f"x,label\n1,{name}\n".encode()}, inbox, name=name, dataset=dataset)


def poke(inbox: Path, ti: FakeTaskInstance = FIRST) -> Any:
    """Return the version that the sensor found, or None."""
    answer = DatasetVersionSensor(task_id="wait", dataset="digits", inbox=str(inbox)).poke(context(ti))
    return json.loads(json.dumps(answer.xcom_value)) if answer else None


def test_an_empty_inbox_and_half_written_and_other_versions_are_waited_at(inbox: Path) -> None:
    publish(inbox, "letters", dataset="letters")
    half = Path(publish(inbox, "half").uri)
    (half / "a.csv").write_bytes(b"x,")
    (inbox / "uploading").mkdir()
    assert poke(inbox) is None


def test_runs_take_the_versions_in_the_order_they_came_and_each_but_once(inbox: Path) -> None:
    older = publish(inbox, "b")
    assert poke(inbox, FIRST) == to_data(older)
    newer = publish(inbox, "a")
    assert poke(inbox, FIRST) == to_data(older)
    assert poke(inbox, SECOND) == to_data(newer)
    assert poke(inbox, FakeTaskInstance(run_id="run 3")) is None


def test_a_rejected_version_is_left_alone_but_by_the_run_that_has_it(inbox: Path, ledger: Store) -> None:
    versions = [publish(inbox, name) for name in ("v1", "v2")]
    assert poke(inbox, FIRST) == to_data(versions[0])
    for version in versions:
        datasets.record_verdict(ledger, version, rejected_because="x is negative")
    assert poke(inbox, SECOND) is None
    assert poke(inbox, FIRST) == to_data(versions[0])


def test_files_of_taken_versions_and_of_newer_ones_are_not_read(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    for name in ("v1", "v2", "v3"):
        publish(inbox, name)
    poke(inbox, FIRST)
    real = Digests.__call__
    monkeypatch.setattr(Digests, "__call__", lambda self, path, deadline: read.append(path.parent.name) or real(self, path, deadline))
    assert poke(inbox, SECOND)["name"] == "v2"
    assert read == ["v2"]


def test_a_version_that_another_run_takes_at_the_same_moment_is_left_to_it(inbox: Path, ledger: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    version = publish(inbox, "v1")
    look = datasets.claimed

    def looked_too_early(*args: Any, **kwargs: Any) -> dict[str, str]:
        owners = look(*args, **kwargs)
        datasets.claim(ledger, version, purpose=SECOND.dag_id, run_id=SECOND.run_id)
        return owners

    monkeypatch.setattr(datasets, "claimed", looked_too_early)
    assert poke(inbox, FIRST) is None


def test_an_inbox_that_is_not_there_yet_is_worth_a_retry(inbox: Path) -> None:
    with pytest.raises(DatasetNotFound, match="does not exist") as caught:
        poke(inbox / "missing")
    assert caught.value.retryable


def test_a_ledger_that_does_not_answer_is_worth_a_retry(inbox: Path, connect: Callable[..., None]) -> None:
    connect("mlops_ledger_default", "mlops_ledger", schema="/nowhere/at/all/ledger.db")
    with pytest.raises(LedgerUnavailable):
        poke(inbox)


def test_a_ledger_that_no_retry_can_open_fails_at_once(inbox: Path, connect: Callable[..., None]) -> None:
    connect("mlops_ledger_default", "mlops_ledger")
    with pytest.raises(AirflowFailException, match="has no schema"):
        poke(inbox)


def test_its_fields_are_templates() -> None:
    sensor = DatasetVersionSensor(task_id="wait", dataset="{{ params.d }}", inbox="{{ params.i }}", ledger_conn_id="other")
    assert (sensor.dataset, sensor.ledger_conn_id) == ("{{ params.d }}", "other")
    sensor.render_template_fields({"params": {"d": "digits", "i": "/inbox"}})
    assert (sensor.dataset, sensor.inbox) == ("digits", "/inbox")
