"""Rollouts over two real servers that start from one configuration file, as the replicas of a deployment do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_mlops.artifacts import path_digest
from airflow_mlops.exceptions import RolloutFailed, ServingError
from airflow_mlops.serving import config
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.fleet import ServingFleet
from airflow_mlops.serving.publish import publish_saved_model
from airflow_mlops.serving.rollout import Plan, begin, revert, switch
from tests.replicas import nobody
from tests.rollouts import roll_out
from tests.servers import EmbeddedServer, await_state

from .conftest import INPUTS, Models


@pytest.fixture(scope="module")
def second_server(starting_server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    config.write(starting_server.config_file, ServerConfig())  # what other tests left there, it need not load
    server = EmbeddedServer(starting_server.config_file)
    server.start(wait=False)
    yield server
    if server.process.poll() is None:
        server.stop()


class Stage:
    """One model of its own name on both servers, and what its versions must answer."""

    def __init__(self, name: str, servers: tuple[EmbeddedServer, EmbeddedServer], fleet: ServingFleet, models: Models, home: Path) -> None:
        self.name, self.servers, self.fleet, self.models, self.home = name, servers, fleet, models, home

    def publish(self, version: int, source: Path) -> None:
        publish_saved_model(source, self.home / "models", version, path_digest(source)[0])

    def plan(self, version: int, previous: int | None, seconds: float = 60.0) -> Plan:
        file = self.servers[0].config_file
        return Plan(self.name, version, previous, str(self.home / "models"), str(file), time.time() + seconds)

    def golden(self, version: int) -> Path:
        return self.models.golden(version - 1, self.home)

    def roll_out(self, plan: Plan, fleet: ServingFleet | None = None, golden: Path | None = None) -> None:
        roll_out(fleet or self.fleet, plan, golden or self.golden(plan.version))

    def serve(self) -> list[int]:
        """Return the version whose answers each server gives under the label."""
        served = self.fleet.ask_all(lambda replica: replica.predict(self.name, INPUTS, label="stable")[0][0])
        first = {version: json.loads(self.golden(version).read_text())["outputs"][0][0] for version in (1, 2)}
        return [version for answer in served.values() for version in first if answer == pytest.approx(first[version], abs=1e-4)]


@pytest.fixture
def stage(request: pytest.FixtureRequest, second_server: EmbeddedServer, server: EmbeddedServer, models: Models, tmp_path: Path) -> Iterator[Stage]:
    second_server.wait_ready()
    with ServingFleet([server.client(), second_server.client()]) as fleet:
        stage = Stage(request.node.name, (server, second_server), fleet, models, tmp_path)
        stage.publish(1, models.good[0])
        stage.publish(2, models.good[1])
        stage.roll_out(stage.plan(1, None))
        yield stage


def test_a_rollout_brings_the_label_to_every_replica(stage: Stage) -> None:
    assert stage.serve() == [1, 1]
    stage.roll_out(stage.plan(2, 1))
    assert stage.serve() == [2, 2]
    assert {version: status.state for version, status in stage.fleet.status(stage.name).items()} == {1: "AVAILABLE", 2: "AVAILABLE"}


def test_a_replica_that_refuses_the_label_leaves_both_with_the_version_that_served(stage: Stage) -> None:
    first, second = stage.fleet.replicas
    plan = stage.plan(2, 1)
    begin(first, plan)  # and the second is not told: it was being restarted, say
    await_state(first, stage.name, 2, "AVAILABLE")
    with pytest.raises(ServingError, match=rf"1 of 2 replicas took a new configuration \({first.grpc_address}\).*not currently available") as refused:
        switch(stage.fleet, plan, stage.golden(2))
    assert not refused.value.retryable
    assert first.predict(stage.name, INPUTS, label="stable") != second.predict(stage.name, INPUTS, label="stable")
    with pytest.raises(RolloutFailed, match=rf"at {second.grpc_address} refused .*Version 1 serves 'stable' now"):
        revert(stage.fleet, plan, str(refused.value))
    assert stage.serve() == [1, 1]
    assert config.read(stage.servers[0].config_file).get(stage.name) == ModelConfig(stage.name, str(stage.home / "models"), (1,), {"stable": 1})


def test_a_version_that_answers_otherwise_reaches_no_replica(stage: Stage) -> None:
    with pytest.raises(RolloutFailed, match=rf"at {stage.fleet.replicas[0].grpc_address} answers the golden inputs differently.*Version 1 serves"):
        stage.roll_out(stage.plan(2, 1), golden=stage.golden(1))
    assert stage.serve() == [1, 1]


def test_a_replica_that_is_down_until_the_deadline_undoes_the_rollout_on_the_others(stage: Stage) -> None:
    with ServingFleet([stage.servers[0].client(), nobody().client()]) as half, pytest.raises(RolloutFailed, match="1 of 2 replicas took"):
        stage.roll_out(stage.plan(2, 1, seconds=0.5), half)
    assert stage.serve() == [1, 1]
    assert config.read(stage.servers[0].config_file).model(stage.name).labels == {"stable": 1}
