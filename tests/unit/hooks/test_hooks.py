"""Connections become clients; a field that is missing is named, and a token stays where it belongs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import sqlalchemy as sa
from airflow.sdk.log import redact

from airflow_mlops.exceptions import SpecError
from airflow_mlops.get_provider_info import get_provider_info
from airflow_mlops.hooks.ledger import MlopsLedgerHook
from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.hooks.tf_serving import TFServingHook
from airflow_mlops.hooks.workspace import evidence_directory, report_url, try_directory, workspace
from airflow_mlops.ledger import datasets
from airflow_mlops.ledger.store import Store
from airflow_mlops.ledger.tables import METADATA
from tests.certificates import Authority
from tests.fakes import FakeTaskInstance, context, dataset_version
from tests.replicas import ServerTls, nobody, replica
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


def test_a_ledger_with_a_host_is_looked_for_on_postgresql(connect: Connect) -> None:
    connect("my_ledger", "mlops_ledger", host="127.0.0.1", port=free_port(), schema="mlops")
    answers, said = MlopsLedgerHook("my_ledger").test_connection()
    assert not answers
    assert "postgresql+psycopg2://127.0.0.1" in said and "did not answer" in said


def test_a_ledger_that_can_only_be_read_fails_its_test_which_leaves_nothing_behind(ledger: Store) -> None:
    assert MlopsLedgerHook().test_connection()[0]
    with ledger.transaction() as connection:
        for table in METADATA.sorted_tables:
            assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() == 0, table.name
        connection.exec_driver_sql("CREATE TRIGGER refused BEFORE INSERT ON messages BEGIN SELECT RAISE(ABORT, 'read only'); END")
    answers, said = MlopsLedgerHook().test_connection()
    assert not answers
    assert "read only" in said


@pytest.mark.parametrize(
    ("hook", "module"), [(MlflowHook, "mlflow"), (TFServingHook, "grpc"), (MlopsLedgerHook, "sqlalchemy")], ids=["mlflow", "tf_serving", "ledger"]
)
def test_a_button_in_an_api_server_that_lacks_a_client_says_what_to_install(hook: type[Any], module: str) -> None:
    code = f"""if True:
        import importlib, os, sys
        from airflow.sdk import BaseHook
        os.environ["AIRFLOW_CONN_C"] = '{{"conn_type": "x", "host": "h", "port": 1, "schema": "s"}}'
        hook = importlib.import_module({hook.__module__!r}).{hook.__name__}("c")
        BaseHook.get_connection("c")
        sys.modules[{module!r}] = None
        print(hook.test_connection())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "(False, " in done.stdout, done.stderr
    assert "pip install 'airflow-mlops[webserver]'" in done.stdout


def test_a_ledger_without_a_name_is_not_kept_in_memory(connect: Connect) -> None:
    connect("my_ledger", "mlops_ledger", extra={"driver": "sqlite"})
    with pytest.raises(SpecError, match="'my_ledger' has no schema"):
        MlopsLedgerHook("my_ledger").get_conn()
    answers, said = MlopsLedgerHook("my_ledger").test_connection()
    assert not answers
    assert "no schema" in said


def test_a_ledger_that_cannot_be_opened_is_said_without_its_password(connect: Connect) -> None:
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


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("mlflow://http://mlflow:5000", "http://mlflow:5000"),
        ("mlflow://mlflow:5000", "http://mlflow:5000"),
        ("mlflow://https://mlflow.example.org/team", "https://mlflow.example.org/team"),
        ('{"conn_type": "mlflow", "host": "http://mlflow", "port": 5000}', "http://mlflow:5000"),
        ('{"conn_type": "mlflow", "host": "mlflow.example.org", "schema": "https"}', "https://mlflow.example.org"),
        ('{"conn_type": "mlflow", "host": "sqlite:////srv/mlflow.db"}', "sqlite:////srv/mlflow.db"),
        ('{"conn_type": "mlflow", "host": "https://mlflow.example.org:8443/team"}', "https://mlflow.example.org:8443/team"),
    ],
)
def test_the_tracking_uri_is_whole_however_the_connection_is_written(monkeypatch: pytest.MonkeyPatch, written: str, expected: str) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", written)
    assert MlflowHook().tracking_uri == expected


def test_a_user_and_a_password_are_for_basic_authentication(connect: Connect) -> None:
    connect("mlflow_default", "mlflow", host="http://mlflow:5000", login="ann", password="s3cret-word")
    assert MlflowHook().environment() == {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "s3cret-word"}


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
    ],
    ids=["host", "port"],
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


def test_extras_that_are_no_object_are_named(connect: Connect) -> None:
    connect("tf_serving_default", "tf_serving", host="h", port=8500, extra=["rest_url"])
    with pytest.raises(SpecError, match="'tf_serving_default' has extras that are no JSON object"):
        TFServingHook().get_conn()


async def test_a_serving_client_has_the_deadline_of_its_connection(connect: Connect) -> None:
    connect("tf_serving_default", "tf_serving", host="h", port=8500, extra={"rest_url": "http://h:8501", "deadline_seconds": 0.2})
    with TFServingHook().get_conn() as fleet, await TFServingHook().aget_conn() as other:
        assert [client.deadline_seconds for client in (*fleet.replicas, *other.replicas)] == [0.2, 0.2]


@pytest.mark.parametrize("written", [list, json.dumps], ids=["list", "text"])
async def test_all_replicas_of_a_serving_connection_are_opened(connect: Connect, written: Callable[[Any], Any]) -> None:
    replicas = [{"grpc": f"serving-{index}:8500", "rest": f"http://serving-{index}:8501"} for index in range(3)]
    connect("tf_serving_default", "tf_serving", extra={"replicas": written(replicas), "base_path": "/models"})
    with TFServingHook().get_conn() as fleet, await TFServingHook().aget_conn() as other:
        for opened in (fleet, other):
            assert [{"grpc": client.grpc_address, "rest": client.rest_url} for client in opened.replicas] == replicas
    assert TFServingHook().extra("base_path") == "/models"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"replicas": "[{"}, "has an extra 'replicas' that is no JSON"),
        ({"replicas": [{"grpc": "h:8500", "rest": "http://h:8501", "grcp": "h"}]}, r"replicas\[0\] has the unknown key 'grcp'. Did you mean 'grpc'"),
        ({"replicas": [{"grpc": "h:85000", "rest": "http://h:8501"}]}, r"replicas\[0\].grpc is 'h:85000'; expected HOST:PORT"),
        ({"replicas": [{"grpc": "h:8500", "rest": "http://h:8501"}], "tls": True}, r"replicas\[0\].rest is 'http://h:8501', but TLS is on"),
        ({"replicas": [{"grpc": "h:8500", "rest": "http://h:8501"}], "deadline_seconds": "soon"}, "deadline_seconds is 'soon'; expected a positive"),
    ],
)
def test_a_wrong_field_of_a_serving_connection_is_named_in_code_and_form(connect: Connect, extra: dict[str, Any], words: str) -> None:
    connect("my_serving", "tf_serving", extra=extra)
    with pytest.raises(SpecError, match=f"^Connection 'my_serving'.*{words}"):
        TFServingHook("my_serving").get_conn()
    answers, said = TFServingHook("my_serving").test_connection()
    assert not answers
    assert re.search(words, said)


def test_the_form_s_button_says_which_replica_answers(connect: Connect) -> None:
    down, deaf = nobody(), nobody()
    with replica() as up:
        deaf.grpc_port = up.grpc_port  # by gRPC it would answer
        connect("tf_serving_default", "tf_serving", extra={"replicas": [up.addresses], "deadline_seconds": 1})
        assert TFServingHook().test_connection() == (True, f"The replica {up.grpc_address} answers.")
        connect("tf_serving_default", "tf_serving", extra={"replicas": [{"grpc": deaf.grpc_address}], "deadline_seconds": 1})
        assert TFServingHook().test_connection()[0]  # nobody asks by REST
        connect("tf_serving_default", "tf_serving", extra={"replicas": [up.addresses, down.addresses], "deadline_seconds": 1})
        answers, said = TFServingHook().test_connection()
        assert not answers
        assert f"The replica {up.grpc_address} answers. The model server at {down.grpc_address} did not answer" in said
        connect("tf_serving_default", "tf_serving", extra={"replicas": [deaf.addresses], "deadline_seconds": 1})
        answers, said = TFServingHook().test_connection()
        assert not answers
        assert f"The model server at {deaf.rest_url} did not answer" in said


async def test_a_serving_connection_speaks_tls_with_certificates_from_text_and_from_files(connect: Connect, tmp_path: Path) -> None:
    house = Authority()
    server, me = house.sign("serving.internal"), house.sign("the worker")
    (tmp_path / "key.pem").write_text(me.key)
    extra = {
        "tls": True,
        "ca_cert": house.cert,
        "client_cert": me.cert,
        "client_key": str(tmp_path / "key.pem"),
        "tls_server_name": "serving.internal",
    }
    with replica(ServerTls(server.cert, server.key, house.cert), tmp_path) as served:
        connect("tf_serving_default", "tf_serving", extra={**extra, "replicas": [served.addresses]})
        assert TFServingHook().test_connection() == (True, f"The replica {served.grpc_address} answers.")
        with await TFServingHook().aget_conn() as fleet:
            assert fleet.ready()
    assert redact(f"the key {me.key} is not shown") == "the key *** is not shown"


def test_the_form_of_a_serving_connection_has_every_field_that_the_hook_reads_and_hides_the_key() -> None:
    [form] = [entry["conn-fields"] for entry in get_provider_info()["connection-types"] if entry["connection-type"] == "tf_serving"]
    named = set(re.findall(r"`([a-z_]+)`", TFServingHook.__doc__ or "")) - {"host", "port"}
    assert form.keys() == named
    assert [name for name, field in form.items() if field["schema"].get("format") == "password"] == ["client_key"]


def test_options_of_the_object_store_reach_the_publisher_and_no_log(connect: Connect) -> None:
    options = {"key": "me", "secret": "of-the-object-store", "client_kwargs": {"endpoint_url": "http://minio:9000"}}
    connect("tf_serving_default", "tf_serving", extra={"storage_options": json.dumps(options)})
    assert TFServingHook().storage_options() == options
    assert redact("of-the-object-store") == "***"
    connect("tf_serving_default", "tf_serving", host="h")
    assert TFServingHook().storage_options() == {}
    connect("tf_serving_default", "tf_serving", extra={"storage_options": ["s3cret-token"]})
    with pytest.raises(SpecError, match="'tf_serving_default' has an extra 'storage_options' that is no JSON object"):
        TFServingHook().storage_options()


IDS = [
    "manual__a:b",
    "manual__a_b",
    "manual__a~b",
    "manual__a~3ab",
    ".",
    "..",
    "~2e",
    "a/b",
    "a",
    "x" * 250,
    "x" * 249 + ":",
    "größer",
    "../../etc/x:y",
]


def test_each_try_of_each_task_has_a_directory_of_its_own_whatever_its_ids_are(workspace: Path) -> None:
    instances = [FakeTaskInstance(dag_id=one, run_id=other) for one in IDS for other in IDS]
    instances += [FakeTaskInstance(task_id=one, map_index=index) for one in ("train", "train-1", "map-1", "a.b") for index in (-1, 0, 1)]
    instances += [FakeTaskInstance(try_number=2), FakeTaskInstance(task_id="x" * 250, map_index=99_999)]
    paths = [try_directory(context(ti)) for ti in instances]
    assert len(set(paths)) == len(instances)
    for path in paths:
        assert len(path.resolve().relative_to(workspace / "runs").parts) >= 4
        assert not any(one != other and one.is_relative_to(path) for one in paths for other in [path])
    path.mkdir(parents=True)


def test_each_pack_of_evidence_has_a_directory_of_its_own(workspace: Path) -> None:
    paths = [
        evidence_directory(context(FakeTaskInstance(run_id=run_id, dag_id=dag_id)), model, version)
        for run_id in ("a:b", "a_b", ".", "x" * 250)
        for dag_id in ("..", "release")
        for model in ("m", ".", "m/1")
        for version in (1, 11)
    ]
    assert len(set(paths)) == len(paths)
    assert all(len(path.resolve().relative_to(workspace / "evidence").parts) == 4 for path in paths)


@pytest.mark.parametrize("dag_id", ["digits_release", ".hidden", "größer", "x" * 250])
def test_the_address_of_a_report_names_the_dag(workspace: Path, dag_id: str) -> None:
    page = try_directory(context(FakeTaskInstance(dag_id=dag_id))) / "report.html"
    area, found, *_ = report_url(page).removeprefix("/mlops/reports/").split("/")
    assert (area, unquote(found)) == ("runs", dag_id)


@pytest.mark.parametrize(
    ("base_url", "prefix"), [(None, ""), ("http://localhost:8080", ""), ("https://host/", ""), ("https://host/team/airflow/", "/team/airflow")]
)
def test_a_report_is_shown_below_the_plugins_address(monkeypatch: pytest.MonkeyPatch, base_url: str | None, prefix: str) -> None:
    if base_url:
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    page = workspace() / "runs" / "a b" / "index.html"
    assert report_url(page) == f"{prefix}/mlops/reports/runs/a%20b/index.html"
