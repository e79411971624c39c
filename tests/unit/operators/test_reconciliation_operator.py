"""Ledger, MLflow in a SQLite file, and replicas compared: what is repaired, what a person is told, and how often."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlops.exceptions import RegistryUnavailable, ServingUnavailable
from airflow_mlops.ledger import champions, journal
from airflow_mlops.ledger.champions import Claim
from airflow_mlops.ledger.store import Store, now
from airflow_mlops.ledger.tables import REIGNS
from airflow_mlops.operators.reconciliation import ReconcileModelsOperator
from airflow_mlops.serving import config
from airflow_mlops.serving.availability import VersionStatus
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from tests.fakes import FakeTaskInstance, context
from tests.replicas import AVAILABLE, LOADING, Replica, nobody, replica
from tests.servers import free_port
from tests.shelf import Shelf

MODEL = "m"  # the one that replicas know
AGREE = {"repaired": [], "reported": [], "headline": "ledger, registry and servers agree"}


@pytest.fixture(scope="module")
def prepared(database: Path) -> Path:
    """A database of MLflow with three versions of the model."""
    shelf = Shelf(MODEL, database)
    shelf.register(num=3)
    return shelf.database


@dataclass
class Scene:
    """Version 2 is champion, and serves, on two replicas; 1 was before."""

    shelf: Shelf
    ledger: Store
    replicas: list[Replica]
    config_file: Path
    connect: Callable[..., None]
    task: ReconcileModelsOperator = field(default_factory=lambda: ReconcileModelsOperator(task_id="reconcile"))

    def label(self, **labels: int) -> None:
        """Write the labels of the model, or that it is not configured."""
        models = (ModelConfig(MODEL, "/models/m", tuple(set(labels.values())), labels),) if labels else ()
        config.write(self.config_file, ServerConfig(models))

    def connect_servers(self, replicas: list[Replica]) -> None:
        extra = {"replicas": [one.addresses for one in replicas], "config_path": str(self.config_file), "deadline_seconds": 1}
        self.connect("tf_serving_default", "tf_serving", extra=extra)

    def serve(self, version: int) -> None:
        """Let all replicas serve a version."""
        self.label(stable=version)
        for one in self.replicas:
            one.versions = {version: AVAILABLE}

    def run(self, number: int = 1, active: Sequence[str] = ()) -> dict[str, Any]:
        """Return what a run of the task returns, as it comes out of Airflow's database, while the runs `active` have not ended."""
        answer = self.task.execute(context(FakeTaskInstance("reconcile_models", f"run {number}", "reconcile", active=active)))
        return dict(json.loads(json.dumps(answer)))

    def told(self, number: int = 1, active: Sequence[str] = ()) -> str:
        """Return what the run of the task fails with."""
        with pytest.raises(AirflowFailException) as caught:
            self.run(number, active)
        return str(caught.value)


@pytest.fixture
def scene(prepared: Path, tmp_path: Path, connect: Callable[..., None], ledger: Store) -> Iterator[Scene]:
    shelf = Shelf(MODEL, shutil.copy(prepared, tmp_path / "mlflow.db"))
    connect("mlflow_default", "mlflow", host=shelf.uri)
    with pytest.MonkeyPatch.context() as yesterday:
        yesterday.setattr(champions, "now", lambda: now() - timedelta(days=1))
        champions.crown(ledger, Claim("release 1", MODEL, 1, None))
        champions.crown(ledger, Claim("release 2", MODEL, 2, 1))
    shelf.put("champion", 2)
    shelf.put("previous", 1)
    with replica(versions={2: AVAILABLE}) as first, replica(versions={2: AVAILABLE}) as second:
        scene = Scene(shelf, ledger, [first, second], tmp_path / "models.config", connect)
        scene.connect_servers(scene.replicas)
        scene.label(stable=2)
        yield scene


def test_what_agrees_is_a_success(scene: Scene) -> None:
    assert scene.run() == AGREE


def test_an_alias_moved_by_hand_is_moved_back_and_nobody_is_called(scene: Scene) -> None:
    scene.shelf.put("champion", 3)
    answer = scene.run()
    assert answer["headline"] == "1 repaired, 0 told before and still there"
    assert "'champion' was on version 3" in answer["repaired"][0]
    assert scene.shelf.registry.aliases(MODEL) == {"champion": 2, "previous": 1}
    assert scene.run(2) == AGREE


def test_a_difference_fails_one_run_and_is_named_by_the_next_until_it_is_gone(scene: Scene) -> None:
    scene.label(stable=1)
    for one in scene.replicas:
        one.versions = {1: AVAILABLE}
    said = scene.told(1)
    assert "m: The servers serve version 1; the champion is version 2 since" in said
    again = scene.run(2)
    assert again["headline"] == "0 repaired, 1 told before and still there"
    assert again["reported"][0] in said
    scene.shelf.registry.delete_version(MODEL, 1)
    second = scene.told(3)  # a second one is told, also of the first: its words are others now
    assert "serve version 1, which was deleted from the registry" in second
    assert "Version 1, which a rollback would go back to, was deleted" in second
    scene.label(stable=2)
    for one in scene.replicas:
        one.versions = {2: AVAILABLE}
    assert len(scene.run(4)["reported"]) == 1
    scene.label(stable=1)
    for one in scene.replicas:
        one.versions = {1: AVAILABLE}
    assert "The servers serve version 1" in scene.told(5)


def test_a_served_champion_that_was_deleted_is_told(scene: Scene) -> None:
    scene.shelf.registry.delete_version(MODEL, 2)
    assert "The champion, version 2, was deleted from the registry; servers that have its files serve on" in scene.told()


@pytest.mark.parametrize("switched", [False, True])
def test_a_rollout_is_no_difference_while_its_release_runs_and_no_longer(scene: Scene, switched: bool) -> None:
    scene.serve(3)
    about = {"model": MODEL, "version": 3, "run": "m_release/manual__1:2"}
    journal.once(scene.ledger, "this plan", "plan-rollout", about, dict)
    if switched:
        journal.once(scene.ledger, "this switch", "switch", about, dict)
    assert scene.run(active=["m_release/manual__1:2"]) == AGREE
    assert "The servers serve version 3; the champion is version 2" in scene.told()


def test_servers_that_are_told_to_serve_the_version_before_are_reported_at_once(scene: Scene) -> None:
    for version in (1, 2):
        about = {"model": MODEL, "version": version, "run": f"m_release/{version}"}
        for kind in ("plan-rollout", "switch"):
            journal.once(scene.ledger, f"{kind} {version}", kind, about, dict)
    scene.serve(1)
    assert "The servers serve version 1; the champion is version 2" in scene.told(active=["m_release/2"])


def test_a_reign_that_was_changed_by_hand_is_reported_and_the_aliases_stay_as_they_are(scene: Scene) -> None:
    with scene.ledger.transaction() as connection:
        connection.execute(REIGNS.update().where(REIGNS.c.token == 2).values(version=3))
    assert (
        "The row of table reigns with model 'm', token 2 was changed since event 2 (promoted, m@2) wrote it: version is 3 and was 2" in scene.told()
    )
    assert scene.shelf.registry.aliases(MODEL) == {"champion": 2, "previous": 1}


def test_an_effect_that_lost_its_process_is_reported_after_an_hour(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed() -> dict[str, Any]:
        raise SystemExit

    with pytest.MonkeyPatch.context() as dead, pytest.raises(SystemExit):
        dead.setattr(journal, "_close", lambda *_: None)  # a killed process notes nothing
        journal.once(scene.ledger, "promote:m:3:m_release:run 9", "promote", {"model": MODEL, "version": 3}, killed)
    assert scene.run() == AGREE
    monkeypatch.setattr("airflow_mlops.ledger.store.now", lambda: now() + timedelta(minutes=61))
    assert "The effect 'promote:m:3:m_release:run 9' was begun and never ended" in scene.told()


def test_a_champion_of_this_minute_is_not_compared_with_what_served_before_it(scene: Scene) -> None:
    champions.crown(scene.ledger, Claim("release 3", MODEL, 3, 2))
    assert "Aliases were moved by hand" in scene.run()["repaired"][0]


def test_a_replica_without_the_labelled_version_is_told_and_one_that_still_loads_it_is_not(scene: Scene) -> None:
    scene.replicas[0].versions = {2: LOADING}
    assert scene.run(1) == AGREE
    scene.replicas[0].versions = {2: VersionStatus("END", "no graph")}
    scene.replicas[1].versions = {1: AVAILABLE}
    first, second = (one.grpc_address for one in scene.replicas)
    said = f"Label 'stable' leads to version 2, which clients do not get: END on {first} (no graph), {second} does not know it."
    assert said in scene.told(2)


def test_a_server_without_the_model_or_without_its_label_is_told(scene: Scene) -> None:
    scene.label()
    assert "The servers serve nobody; the champion is version 2" in scene.told(1)
    scene.label(canary=2)
    assert "without the label 'stable'" in scene.told(2)


def test_who_does_not_answer_is_asked_again_by_airflow(scene: Scene) -> None:
    scene.connect_servers([scene.replicas[0], nobody()])
    with pytest.raises(ServingUnavailable, match="What 'm' serves is not known: no answer from"):
        scene.run()
    scene.connect_servers(scene.replicas)
    scene.connect("mlflow_default", "mlflow", host=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RegistryUnavailable):
        scene.run()


def test_without_a_model_server_ledger_and_registry_are_compared(scene: Scene) -> None:
    scene.label(stable=1)
    scene.task.tf_serving_conn_id = None
    assert scene.run() == AGREE
