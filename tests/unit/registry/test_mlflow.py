"""The MLflow adapter against the real MLflow, in a SQLite file and behind a real server, and against servers that are not there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from airflow_mlops.artifacts import path_digest
from airflow_mlops.exceptions import ModelNotFound, RegistryError, RegistryUnavailable, SpecError
from airflow_mlops.registry import mlflow_server
from airflow_mlops.registry.mlflow import MlflowRegistry
from tests.mlflow_server import running_server
from tests.servers import free_port


def test_a_run_keeps_parameters_metrics_with_steps_tags_and_files(run: SimpleNamespace, tracking_uri: str) -> None:
    client = MlflowClient(tracking_uri)
    kept = client.get_run(run.run_id)
    assert kept.info.status == "FINISHED"
    assert kept.data.params == {"epochs": "3", "optimizer": "None"}
    assert [(point.step, point.value) for point in client.get_metric_history(run.run_id, "accuracy")] == [(0, 0.5), (1, 0.75)]
    assert kept.data.tags.items() >= {"seed": "1", "dataset.digest": "sha256:d"}.items()
    assert {entry.path for entry in client.list_artifacts(run.run_id)} == {"model.keras", "saved_model", "golden.json", "packages.json"}


def test_artefacts_lie_beside_the_sqlite_file_not_in_the_working_directory(run: SimpleNamespace, tracking_uri: str) -> None:
    beside = Path(tracking_uri.removeprefix("sqlite:///")).parent / "artifacts" / "digits"
    assert run.artifact_uri.startswith(beside.as_uri())


def test_a_run_whose_block_raises_is_marked_as_failed(registry: MlflowRegistry, tracking_uri: str) -> None:
    with pytest.raises(ZeroDivisionError), registry.start_run("digits", name="broken", tags={}) as opened:
        raise ZeroDivisionError
    assert MlflowClient(tracking_uri).get_run(opened.run_id).info.status == "FAILED"


def test_logging_a_file_that_is_not_there_says_so(registry: MlflowRegistry, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="does not exist") as caught, registry.start_run("digits", name="broken", tags={}) as opened:
        opened.log_artifact(tmp_path / "missing")
    assert not caught.value.retryable


def test_registering_the_same_run_twice_gives_the_same_version(registry: MlflowRegistry, run: SimpleNamespace) -> None:
    first = registry.register("twice", run.run_id, run.artifact_uri, tags={"dataset": "digits"})
    again = registry.register("twice", run.run_id, run.artifact_uri, tags={"dataset": "other"})
    assert (first.name, first.version, first.run_id, first.source) == ("twice", 1, run.run_id, run.artifact_uri)
    assert again == first
    assert first.tags["dataset"] == "digits"


def test_registering_again_under_another_key_gives_a_new_version(registry: MlflowRegistry, run: SimpleNamespace) -> None:
    versions = [registry.register("keys", run.run_id, run.artifact_uri, idempotency_key=key).version for key in ("a", "b", "a")]
    assert versions == [1, 2, 1]


def test_two_who_register_at_the_same_moment_agree_on_one_version(registry: MlflowRegistry, run: SimpleNamespace) -> None:
    with ThreadPoolExecutor(2) as pool:
        versions = list(pool.map(lambda _: registry.register("race", run.run_id, run.artifact_uri), range(2)))
    assert {version.version for version in versions} == {1}


def test_a_name_that_cannot_be_searched_for_is_refused(registry: MlflowRegistry, run: SimpleNamespace) -> None:
    with pytest.raises(SpecError, match="quote"):
        registry.register("ann's", run.run_id, run.artifact_uri)


def test_aliases_and_tags_move_and_are_read_back(registry: MlflowRegistry, run: SimpleNamespace) -> None:
    for key in ("a", "b"):
        registry.register("moves", run.run_id, run.artifact_uri, idempotency_key=key)
    registry.set_alias("moves", "candidate", 1)
    registry.set_alias("moves", "candidate", 2)
    registry.set_tags("moves", 2, {"robustness": "passed"})
    found = registry.get_by_alias("moves", "candidate")
    assert (found.version, found.aliases, found.tags["robustness"]) == (2, ("candidate",), "passed")
    registry.remove_alias("moves", "candidate")
    registry.remove_alias("moves", "candidate")
    assert registry.get("moves", 2).aliases == ()


def test_what_is_not_there_is_not_found(registry: MlflowRegistry, run: SimpleNamespace) -> None:
    registry.register("lonely", run.run_id, run.artifact_uri)
    registry.set_alias("lonely", "candidate", 1)
    with pytest.raises(ModelNotFound, match="no-such-model"):
        registry.get_by_alias("no-such-model", "champion")
    with pytest.raises(ModelNotFound, match="'champion'; its aliases: candidate"):
        registry.get_by_alias("lonely", "champion")
    with pytest.raises(ModelNotFound):
        registry.get("lonely", 7)
    with pytest.raises(ModelNotFound):
        registry.set_alias("lonely", "champion", 7)
    with pytest.raises(ModelNotFound):
        registry.set_tags("lonely", 7, {"a": "b"})


def test_what_mlflow_refuses_is_not_worth_a_retry(registry: MlflowRegistry, run: SimpleNamespace) -> None:
    registry.register("refused", run.run_id, run.artifact_uri)
    with pytest.raises(RegistryError, match=r"refused \(INVALID_PARAMETER_VALUE\).*reserved") as caught:
        registry.set_alias("refused", "latest", 1)
    assert not caught.value.retryable


@pytest.mark.parametrize("name", ["model.keras", "saved_model", "saved_model/variables"])
def test_a_download_is_the_same_as_what_was_logged(
    registry: MlflowRegistry, run: SimpleNamespace, model_files: Path, tmp_path: Path, name: str
) -> None:
    version = registry.register("files", run.run_id, run.artifact_uri)
    local = registry.download(version, name, tmp_path / "new" / "copy")
    assert path_digest(local) == path_digest(model_files / name)
    assert [entry.name for entry in local.parent.iterdir()] == ["copy"]


def test_a_download_of_nothing_or_onto_something_is_refused(registry: MlflowRegistry, run: SimpleNamespace, tmp_path: Path) -> None:
    version = registry.register("files", run.run_id, run.artifact_uri)
    with pytest.raises(ModelNotFound, match=r"has no artefact 'other\.keras'"):
        registry.download(version, "other.keras", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SpecError, match="exists already"):
        registry.download(version, "model.keras", tmp_path)


def test_a_download_that_broke_off_leaves_nothing(
    registry: MlflowRegistry, run: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registry.register("files", run.run_id, run.artifact_uri)

    def cut_off(self: MlflowClient, run_id: str, path: str, dst_path: str) -> str:
        (Path(dst_path) / path).write_bytes(b"kera")
        return str(Path(dst_path) / path)

    monkeypatch.setattr(MlflowClient, "download_artifacts", cut_off)
    with pytest.raises(RegistryUnavailable, match="broke off"):
        registry.download(version, "model.keras", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def silent_server(*, hangs: bool) -> Iterator[tuple[int, list[Any]]]:
    """Yield the port of a server that never answers, and the connections that it got: it keeps each open, or closes it at once."""
    got: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    got.append(server.accept()[0])
                    if not hangs:
                        got[-1].close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1], got
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in got:
                connection.close()


def test_a_server_that_is_not_there_is_worth_a_retry() -> None:
    with pytest.raises(RegistryUnavailable, match=r"http://127\.0\.0\.1:\d+ did not answer.*Check that it runs") as caught:
        MlflowRegistry(f"http://127.0.0.1:{free_port()}").get_by_alias("digits", "champion")
    assert caught.value.retryable


def test_a_server_that_answers_nothing_is_asked_once_and_not_for_minutes_as_mlflow_would() -> None:
    with silent_server(hangs=False) as (port, got), pytest.raises(RegistryUnavailable):
        MlflowRegistry(f"http://127.0.0.1:{port}").get_by_alias("digits", "champion")
    assert len(got) == 1


def test_a_server_that_hangs_is_asked_once_and_its_password_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mlflow_server.PROBE_SECONDS <= 10
    monkeypatch.setattr(mlflow_server, "PROBE_SECONDS", 1)
    with silent_server(hangs=True) as (port, got), pytest.raises(RegistryUnavailable) as caught:
        MlflowRegistry(f"http://ann:secret@127.0.0.1:{port}").get("digits", 1)
    assert len(got) == 1
    assert "secret" not in str(caught.value)
    assert f"127.0.0.1:{port}" in str(caught.value)


def test_a_database_that_is_none_is_noticed_before_mlflow_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow itself would try for 100 seconds."""
    monkeypatch.setattr(MlflowClient, "__init__", lambda *_, **__: pytest.fail("MLflow opened the file"))
    (tmp_path / "notes.db").write_text("This is no database, but a text that is long enough to be read as one. " * 20)
    with pytest.raises(RegistryUnavailable, match="not a database"):
        MlflowRegistry(f"sqlite:///{tmp_path}/notes.db").get("digits", 1)
    with pytest.raises(RegistryUnavailable, match="unable to open database file"):
        MlflowRegistry(f"sqlite:///{tmp_path}").get("digits", 1)


@pytest.mark.parametrize("uri", ["mlruns", "file:///mlruns", "postgresql://ann:secret@db/mlflow", ""])
def test_an_address_of_another_kind_is_refused_without_showing_its_password(uri: str) -> None:
    with pytest.raises(SpecError, match="expected http://, https:// or sqlite:///") as caught:
        MlflowRegistry(uri)
    assert "secret" not in str(caught.value)


def test_importing_the_adapter_keeps_telemetry_off() -> None:
    script = "import airflow_mlops.registry.mlflow; from mlflow.telemetry.client import get_telemetry_client as c; print(c())"
    silent = {"MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI", "PYTEST_CURRENT_TEST"}
    environment = {name: value for name, value in os.environ.items() if name not in silent}
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=environment)
    assert answer.stdout.strip() == "None"


def test_the_protocol_is_light_to_import() -> None:
    script = "import sys, airflow_mlops.registry.nomination; print(*sys.modules.keys() & {'mlflow', 'sqlalchemy', 'airflow'})"
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.strip() == ""


@pytest.fixture
def server(tmp_path: Path, empty_mlflow: Path) -> Iterator[SimpleNamespace]:
    with running_server(tmp_path, empty_mlflow) as running:
        yield running


def test_a_real_server_does_it_all_and_its_death_in_a_run_is_worth_a_retry(
    server: SimpleNamespace, log_run: Callable[[MlflowRegistry], SimpleNamespace], model_files: Path, tmp_path: Path
) -> None:
    registry = MlflowRegistry(server.uri)
    run = log_run(registry)
    version = registry.register("digits", run.run_id, run.artifact_uri)
    assert registry.register("digits", run.run_id, run.artifact_uri) == version
    with pytest.raises(ModelNotFound):
        registry.get_by_alias("digits", "champion")
    registry.set_alias("digits", "candidate", 1)
    registry.set_alias("digits", "champion", 1)
    assert registry.aliases("digits") == {"candidate": 1, "champion": 1}
    registry.remove_alias("digits", "candidate")
    assert registry.get_by_alias("digits", "champion").aliases == ("champion",)
    local = registry.download(version, "saved_model", tmp_path / "copy")
    assert path_digest(local) == path_digest(model_files / "saved_model")
    assert json.loads(registry.download(version, "packages.json", tmp_path / "packages.json").read_text()) == {"keras": "3.15.1"}

    with pytest.raises(RegistryUnavailable) as caught, registry.start_run("digits", name="cut off", tags={}) as opened:
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait(10)
        opened.log_metric("accuracy", 0.5)
    assert "could not be marked as failed" in caught.value.__notes__[0]
