"""Publish from a real registry to a directory and to an object store: what lies there, and what stands in the way."""

from __future__ import annotations

import itertools
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlops.artifacts import file_digest, path_digest
from airflow_mlops.ledger.store import Store
from airflow_mlops.operators.publish import PublishSavedModelOperator
from airflow_mlops.registry import registrations
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.serving import config, manifest, warmup
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.stores import open_store
from airflow_mlops.serving.warmup import WARM_UP
from tests import fakes
from tests.bare_saved_models import golden, saved_model, signature, tensor
from tests.fakes import FakeTaskInstance, context


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """A directory with a registry, and in it three versions of the model ``digits``, the third with another input."""
    home = tmp_path_factory.mktemp("registry")
    shutil.copy(empty_mlflow, home)
    registry = MlflowRegistry(f"sqlite:///{home}/mlflow.db")
    for version in (1, 2, 3):
        signatures = {"serving_default": signature({"x": tensor("DT_INT64" if version == 3 else "DT_FLOAT")})}
        saved_model(home / str(version) / "saved_model", signatures, weights=b"weights %d" % version)
        golden(home / str(version) / "golden.json", [[1, 2, 3, 4]])
        with registry.start_run("digits", name="training", tags={}) as run:
            for name in ("saved_model", "golden.json"):
                run.log_artifact(home / str(version) / name)
        files = home / str(version)
        digests = {"golden_digest": file_digest(files / "golden.json"), "saved_model_digest": path_digest(files / "saved_model")[0]}
        registry.register("digits", run.run_id, run.artifact_uri, tags=digests)
    return home


class Desk:
    """The task that publishes a registered version, each time as another try, and what it publishes to."""

    def __init__(self, registered: Path, connect: Callable[..., None], home: Path, ledger: Store) -> None:
        self.registered, self.connect, self.home = registered, connect, home
        self.config_file, self.tries = home / "models.config", itertools.count(1)
        connect("mlflow_default", "mlflow", host=f"sqlite:///{registered}/mlflow.db")
        self.ledger = ledger
        self.connection(base_path=str(home / "served"))

    def connection(self, **extra: Any) -> None:
        self.connect("tf_serving_default", "tf_serving", host="h", port=1, extra={"config_path": str(self.config_file), **extra})

    def serve(self, base_path: str, *versions: int, **labels: int) -> None:
        config.write(self.config_file, ServerConfig((ModelConfig("digits", base_path, versions, labels),)))

    def model(self, version: int, champion: int | None = None) -> dict[str, Any]:
        return {"name": "digits", "version": version, "expected_champion": champion}

    def digests(self, version: int) -> dict[str, str]:
        files = self.registered / str(version)
        return {"golden_digest": file_digest(files / "golden.json"), "saved_model_digest": path_digest(files / "saved_model")[0]}

    def publish(self, version: int, champion: int | None = None, **settings: Any) -> dict[str, Any]:
        settings = {"approval_required": False, **settings}
        model, ti = self.model(version, champion), FakeTaskInstance(task_id="publish", try_number=next(self.tries))
        registrations.note(self.ledger, "digits", version, "a run", self.digests(version))
        operator = PublishSavedModelOperator(task_id="publish", model=model, **settings)
        return operator.execute(context(ti, task=fakes.handed_over(self.ledger, model)))


@pytest.fixture
def desk(registered: Path, connect: Callable[..., None], tmp_path: Path, workspace: Path, ledger: Store) -> Desk:
    return Desk(registered, connect, tmp_path, ledger)


def test_a_registered_version_is_published_with_its_warm_up_and_its_manifest(desk: Desk) -> None:
    done, base = desk.publish(1), desk.home / "served" / "digits"
    assert done == {
        **desk.model(1),
        "golden": done["golden"],
        "golden_digest": desk.digests(1)["golden_digest"],
        "path": str(base / "1"),
        "headline": f"digits version 1 is published at {base}/1",
    }
    assert Path(done["golden"]).read_bytes() == (desk.registered / "1" / "golden.json").read_bytes()
    found = manifest.read(open_store(base), 1)
    assert found and found.digest == desk.digests(1)["saved_model_digest"]
    assert len(warmup.read(base / "1" / WARM_UP)) == 1


def test_a_cleared_task_finds_its_version_published(desk: Desk) -> None:
    assert {**desk.publish(1), "golden": ""} == {**desk.publish(1), "golden": ""}


@pytest.mark.parametrize(("champion", "refused"), [(None, True), (1, False), (2, False), (3, True)])
def test_a_version_is_published_only_while_the_champion_is_the_one_it_was_compared_with(desk: Desk, champion: int | None, refused: bool) -> None:
    registry = MlflowRegistry(f"sqlite:///{desk.registered}/mlflow.db")
    if champion:
        registry.set_alias("digits", "champion", champion)
    try:
        if refused:
            with pytest.raises(AirflowFailException, match=rf"PromotionConflict: .*when version 2 was selected and is {champion or 'nobody'} now"):
                desk.publish(2, champion=1)
            assert not (desk.home / "served").exists()
        else:
            assert desk.publish(2, champion=1)["path"] == str(desk.home / "served" / "digits" / "2")
    finally:
        registry.remove_alias("digits", "champion")


def test_a_changed_signature_needs_a_permission_that_is_no_text(desk: Desk) -> None:
    base = desk.home / "served" / "digits"
    desk.publish(1)
    desk.serve(str(base), 1, stable=1)
    for allowed in (False, "True", "False", 1):
        with pytest.raises(AirflowFailException, match=r"Version 3 would break clients of version 1 .* took DT_FLOAT\[-1, 4\] and takes DT_INT64"):
            desk.publish(3, signature_change_allowed=allowed)
    assert not (base / "3").exists()
    desk.publish(3, signature_change_allowed=True)
    assert (base / "3").exists()


def test_the_label_that_clients_ask_decides_which_signatures_must_stay(desk: Desk) -> None:
    base = str(desk.home / "served" / "digits")
    desk.publish(1)
    desk.publish(3)
    desk.serve(base, 1, 3, live=3, stable=1)
    with pytest.raises(AirflowFailException, match="would break clients of version 3"):
        desk.publish(2, version_label="live")
    desk.publish(2)


def test_old_versions_are_taken_away_but_not_what_serves(desk: Desk) -> None:
    base = desk.home / "served" / "digits"
    for version in (1, 2, 3):
        desk.publish(version, keep_versions=1)
    assert manifest.published(open_store(base)) == {2, 3}
    desk.serve(str(base), 2, stable=2)
    desk.publish(1, keep_versions=1)
    assert manifest.published(open_store(base)) == {1, 2, 3}


def test_versions_that_cannot_be_taken_away_are_no_reason_to_stop_the_release(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    base = desk.home / "served" / "digits"
    for version in (1, 2):
        desk.publish(version)
    (base / ".manifests" / "1.removing").mkdir()  # where the removal wants to write
    assert desk.publish(3, keep_versions=1)["path"] == str(base / "3")
    assert "stay where they are: " in capsys.readouterr().out
    assert manifest.published(open_store(base)) == {1, 2, 3}


@pytest.mark.parametrize("keep_versions", [0, -1])
def test_keeping_nothing_is_refused_before_anything_is_published(desk: Desk, keep_versions: int) -> None:
    with pytest.raises(AirflowFailException, match="SpecError: keep_versions is"):
        desk.publish(1, keep_versions=keep_versions)
    assert not (desk.home / "served").exists()


def test_an_object_store_is_reached_with_the_connection_s_storage_options(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    seen, begin = [], MemoryFileSystem.__init__

    def note(self: MemoryFileSystem, *args: Any, **options: Any) -> None:
        seen.append(options)
        begin(self, *args, **options)

    monkeypatch.setattr(MemoryFileSystem, "__init__", note)
    base = f"memory://{uuid.uuid4()}/models"
    desk.connection(base_path=f"{base}/", storage_options={"token": (token := str(uuid.uuid4()))})
    assert desk.publish(1)["path"] == f"{base}/digits/1"
    assert seen and all(options["token"] == token for options in seen)
    assert manifest.published(open_store(f"{base}/digits")) == {1}


def test_an_object_store_whose_versions_the_server_chooses_is_not_written_to(desk: Desk) -> None:
    base = f"memory://{uuid.uuid4()}/models"
    desk.connection(base_path=base)
    desk.serve(f"{base}/digits")
    with pytest.raises(AirflowFailException, match="SpecError: The configuration leaves it to the server"):
        desk.publish(1)
    assert open_store(f"{base}/digits").names() == set()


def test_the_constructor_only_assigns() -> None:
    settings = {"model": "m", "version_label": "x", "signature_change_allowed": "y", "keep_versions": 0, "mlflow_conn_id": "a"}
    operator = PublishSavedModelOperator(task_id="t", **settings, tf_serving_conn_id="b")
    assert {name: getattr(operator, name) for name in (*settings, "tf_serving_conn_id")} == {**settings, "tf_serving_conn_id": "b"}


def test_a_dag_param_may_allow_the_change(connect: Callable[..., None]) -> None:
    assert set(PublishSavedModelOperator.template_fields) == {"model", "signature_change_allowed"}
