"""Connections become clients; a field that is missing is named, and a token stays where it belongs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.exceptions import SpecError
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.hooks.tf_serving import TFServingHook
from airflow_mlops.hooks.workspace import report_url, try_directory, workspace
from airflow_mlops.ledger import datasets
from airflow_mlops.ledger.store import Store
from tests.fakes import FakeTaskInstance, context, dataset_version
from tests.servers import free_port

Connect = Callable[..., None]


def test_the_ledger_hook_opens_the_file_that_the_connection_names(ledger: Store) -> None:
    datasets.announce(ledger, dataset_version())
    opened = MlopsLedgerHook().get_conn()
    assert datasets.announced(opened, "digits") == {"sha256:v1"}
    opened.close()
    assert MlopsLedgerHook().test_connection() == (True, "The ledger can be written.")


async def test_the_ledger_hook_opens_it_in_an_event_loop_too(ledger: Store) -> None:
    opened = await MlopsLedgerHook().aget_conn()
    assert datasets.announce(opened, dataset_version())
    opened.close()


def test_sqlite_is_the_ledgers_driver_unless_the_connection_says_otherwise(connect: Connect, tmp_path: Path) -> None:
    connect("my_ledger", "mlops_ledger", schema=str(tmp_path / "other.db"))
    MlopsLedgerHook("my_ledger").get_conn().close()
    assert (tmp_path / "other.db").exists()


def test_a_ledger_without_a_name_is_not_kept_in_memory(connect: Connect) -> None:
    connect("my_ledger", "mlops_ledger", extra={"driver": "sqlite"})
    with pytest.raises(SpecError, match="'my_ledger' has no schema"):
        MlopsLedgerHook("my_ledger").get_conn()
    answers, said = MlopsLedgerHook("my_ledger").test_connection()
    assert not answers
    assert "no schema" in said


def test_a_ledger_that_can_not_be_opened_is_said_without_its_password(connect: Connect) -> None:
    connect("my_ledger", "mlops_ledger", schema="ledger", host="db", login="u", password="s3cret-token", extra={"driver": "nosuchdatabase"})
    answers, said = MlopsLedgerHook("my_ledger").test_connection()
    assert not answers
    assert "nosuchdatabase" in said
    assert "s3cret-token" not in said


def test_the_tracking_uri_is_the_connections_host(connect: Connect) -> None:
    connect("mlflow_default", "mlflow", host="http://mlflow:5000", password="s3cret-token")
    assert MlflowHook().tracking_uri == "http://mlflow:5000"


def test_mlflows_token_is_handed_on_in_the_environment_alone(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "to be restored after the test")
    connect("mlflow_default", "mlflow", host=f"http://127.0.0.1:{free_port()}", password="s3cret-token")
    hook = MlflowHook()
    assert hook.environment() == {"MLFLOW_TRACKING_TOKEN": "s3cret-token"}
    assert "s3cret-token" not in hook.tracking_uri
    answers, said = hook.test_connection()
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "s3cret-token"
    assert not answers
    assert "did not answer" in said
    assert "s3cret-token" not in said


def test_without_a_token_nothing_is_put_into_the_environment(connect: Connect) -> None:
    connect("mlflow_default", "mlflow", host="http://mlflow:5000")
    assert MlflowHook().environment() == {}


def test_an_mlflow_connection_without_a_host_is_named(connect: Connect) -> None:
    connect("my_mlflow", "mlflow", password="s3cret-token")
    with pytest.raises(SpecError, match="'my_mlflow' has no host; put the tracking URI there"):
        MlflowHook("my_mlflow").get_conn()
    answers, said = MlflowHook("my_mlflow").test_connection()
    assert not answers
    assert "has no host" in said


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"port": 8500, "extra": {"rest_url": "http://h:8501"}}, "host"),
        ({"host": "h", "extra": {"rest_url": "http://h:8501"}}, "port"),
        ({"host": "h", "port": 8500}, "extra 'rest_url'"),
    ],
    ids=["host", "port", "rest_url"],
)
def test_what_a_serving_connection_lacks_is_named(connect: Connect, fields: dict[str, Any], missing: str) -> None:
    connect("tf_serving_default", "tf_serving", **fields)
    with pytest.raises(SpecError, match=f"'tf_serving_default' has no {missing}"):
        TFServingHook().get_conn()


def test_a_required_extra_is_returned_or_named(connect: Connect) -> None:
    connect("tf_serving_default", "tf_serving", host="h", port=1, extra={"base_path": "/models"})
    assert TFServingHook().extra("base_path") == "/models"
    with pytest.raises(SpecError, match="has no extra 'config_path'"):
        TFServingHook().extra("config_path")


async def test_a_serving_client_has_the_deadline_of_its_connection(connect: Connect) -> None:
    connect("tf_serving_default", "tf_serving", host="h", port=8500, extra={"rest_url": "http://h:8501", "deadline_seconds": 0.2})
    with TFServingHook().get_conn() as client, await TFServingHook().aget_conn() as other:
        assert client.deadline_seconds == other.deadline_seconds == 0.2


def test_each_try_of_each_mapped_task_has_a_directory_of_its_own(workspace: Path) -> None:
    instances = [FakeTaskInstance(), FakeTaskInstance(try_number=2), FakeTaskInstance(map_index=0), FakeTaskInstance(run_id="other")]
    paths = [try_directory(context(ti)) for ti in instances]
    assert len(set(paths)) == 4
    assert all(path.is_relative_to(workspace) for path in paths)


def test_a_run_id_can_not_lead_out_of_the_workspace(workspace: Path) -> None:
    path = try_directory(context(FakeTaskInstance(run_id="../../etc/x:y")))
    assert path.relative_to(workspace / "runs").parts[1] == ".._.._etc_x_y"


@pytest.mark.parametrize(
    ("base_url", "prefix"), [(None, ""), ("http://localhost:8080", ""), ("https://host/", ""), ("https://host/team/airflow/", "/team/airflow")]
)
def test_a_report_is_shown_below_the_plugins_address(monkeypatch: pytest.MonkeyPatch, base_url: str | None, prefix: str) -> None:
    if base_url:
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    page = workspace() / "runs" / "a b" / "index.html"
    assert report_url(page) == f"{prefix}/mlops/reports/runs/a%20b/index.html"
