from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.artifacts import path_digest
from airflow_mlops.exceptions import RolloutFailed, SpecError
from airflow_mlops.serving import config
from airflow_mlops.serving.availability import Available, Fail, VersionStatus, Wait
from airflow_mlops.serving.client import ServingClient
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.publish import publish_saved_model
from airflow_mlops.serving.rollout import Plan, begin, decide, labelled, observe, revert, switch, verify
from tests.rollouts import roll_out
from tests.servers import EmbeddedServer, await_state, free_port

from .conftest import INPUTS, Models

PLAN = Plan("m", 2, 1, "/models/m", "/models.config", deadline=100.0)
AVAILABLE, LOADING = VersionStatus("AVAILABLE"), VersionStatus("LOADING")


@pytest.mark.parametrize(
    ("versions", "now", "expected"),
    [
        ({1: AVAILABLE, 2: AVAILABLE}, 0.0, Available()),
        ({1: AVAILABLE, 2: LOADING}, 99.0, Wait()),
        ({2: VersionStatus("END", "no graph")}, 0.0, Fail("replica a:1 could not load version 2: no graph")),
        (None, 100.0, Fail("at the deadline version 2 is not AVAILABLE on every replica: no answer from a:1", timed_out=True)),
    ],
)
def test_a_rollout_waits_for_its_own_version_until_its_own_deadline(versions: Any, now: float, expected: Any) -> None:
    assert decide(PLAN, {"a:1": versions}, now) == expected


def test_a_plan_survives_json() -> None:
    assert Plan(**json.loads(json.dumps(PLAN._asdict()))) == PLAN


class Stage:
    """Everything one rollout needs: a model of its own name, its published versions and their golden answers."""

    def __init__(self, name: str, server: EmbeddedServer, client: ServingClient, models: Models, directory: Path) -> None:
        self.name, self.server, self.client, self.models, self.directory = name, server, client, models, directory
        self.base = directory / "models"

    def publish(self, *sources: Path) -> None:
        for version, source in enumerate(sources, start=1):
            publish_saved_model(source, self.base, version, path_digest(source)[0])

    def plan(self, version: int, previous: int | None, seconds: float = 60.0) -> Plan:
        return Plan(self.name, version, previous, str(self.base), str(self.server.config_file), time.time() + seconds)

    def golden(self, version: int) -> Path:
        return self.models.golden(version - 1, self.directory)

    def roll_out(self, version: int, previous: int | None, golden: Path | None = None, client: ServingClient | None = None) -> None:
        roll_out(client or self.client, self.plan(version, previous), golden or self.golden(version))

    def serves(self) -> int:
        """Return the version whose golden answers the label gives."""
        served = self.client.predict(self.name, INPUTS, label="stable")
        for version in (1, 2, 3):
            if served[0][0] == pytest.approx(json.loads(self.golden(version).read_text())["outputs"][0][0], abs=1e-4):
                return version
        raise AssertionError(f"unknown answers {served}")

    @property
    def config(self) -> ModelConfig | None:
        return config.read(self.server.config_file).get(self.name)


@pytest.fixture
def stage(request: pytest.FixtureRequest, server: EmbeddedServer, client: ServingClient, models: Models, tmp_path: Path) -> Stage:
    name = "".join(letter if letter.isalnum() else "_" for letter in request.node.name)
    stage = Stage(name, server, client, models, tmp_path)
    stage.publish(*models.good)
    return stage


def test_rollouts_follow_one_another_and_keep_only_the_way_back_loaded(stage: Stage) -> None:
    for version, previous in ((1, None), (2, 1), (3, 2)):
        stage.roll_out(version, previous)
        assert stage.serves() == version
        assert stage.config == ModelConfig(stage.name, str(stage.base), tuple(filter(None, (previous, version))), {"stable": version})
    await_state(stage.client, stage.name, 1, "END")
    await_state(stage.client, stage.name, 2, "AVAILABLE")


def test_other_models_and_labels_stay_as_they_are(stage: Stage) -> None:
    stage.roll_out(1, None)
    foreign = ModelConfig("foreign_" + stage.name, str(stage.base), (2,))
    with config.exclusive(stage.server.config_file) as served:
        own = ModelConfig(stage.name, str(stage.base), (1,), {"stable": 1, "archive": 1})
        config.write(stage.server.config_file, served.with_model(foreign).with_model(own))
    stage.roll_out(2, 1)
    stage.roll_out(3, 2)
    assert config.read(stage.server.config_file).get(foreign.name) == foreign
    assert stage.config is not None and stage.config.labels == {"stable": 3, "archive": 1} and stage.config.versions == (1, 2, 3)


def test_answers_that_differ_from_training_s_never_reach_the_label(stage: Stage) -> None:
    stage.roll_out(1, None)
    with pytest.raises(RolloutFailed, match=r"answers the golden inputs differently.*Version 1 serves 'stable' now"):
        stage.roll_out(2, 1, golden=stage.golden(3))
    assert stage.serves() == 1
    assert stage.config == ModelConfig(stage.name, str(stage.base), (1,), {"stable": 1})
    stage.roll_out(2, 1)  # and a correct one goes out afterwards
    assert stage.serves() == 2


def test_a_model_that_answers_nan_is_not_rolled_out(stage: Stage) -> None:
    stage.roll_out(1, None)
    publish_saved_model(stage.models.nan, stage.base, 4, path_digest(stage.models.nan)[0])
    with pytest.raises(RolloutFailed, match="NaN"):
        stage.roll_out(4, 1, golden=stage.golden(1))
    assert stage.serves() == 1


def test_a_model_that_is_right_once_and_wrong_when_it_is_asked_again_is_not_rolled_out(stage: Stage) -> None:
    stage.roll_out(1, None)
    publish_saved_model(stage.models.counting, stage.base, 4, path_digest(stage.models.counting)[0])
    with pytest.raises(RolloutFailed, match=r"asked again, answers the golden inputs differently.*by up to 1,.*Version 1 serves 'stable' now"):
        stage.roll_out(4, 1, golden=stage.golden(1))
    assert stage.serves() == 1


def test_a_version_that_cannot_be_loaded_fails_with_the_server_s_error(stage: Stage) -> None:
    stage.roll_out(1, None)
    shutil.copytree(stage.models.broken, stage.base / "5")  # the publisher would refuse it
    with pytest.raises(RolloutFailed, match=r"could not load version 5: .+Version 1 serves 'stable' now"):
        stage.roll_out(5, 1, golden=stage.golden(1))
    assert stage.serves() == 1


def test_a_first_rollout_that_fails_leaves_no_version_serving(stage: Stage) -> None:
    with pytest.raises(RolloutFailed, match="No version serves 'stable' now"):
        stage.roll_out(1, None, golden=stage.golden(2))
    assert stage.config is None
    stage.roll_out(1, None)
    assert stage.serves() == 1


def test_a_version_that_is_not_published_fails_at_the_deadline(stage: Stage) -> None:
    impatient = stage.server.client(3.0)  # for so long the server waits with a reload for the version
    with impatient, pytest.raises(RolloutFailed, match="at the deadline version 9 is not AVAILABLE on every replica: unknown to"):
        roll_out(impatient, stage.plan(9, None, seconds=0.3), stage.golden(1))


class Crash(BaseException):
    """The process dies here."""


class CrashingClient(ServingClient):
    """Dies at the reload of number `at`, before or after the server has seen it."""

    at, before = 0, True

    def reload(self, config: ServerConfig) -> None:
        self.at -= 1
        if self.at == 0 and self.before:
            raise Crash
        super().reload(config)
        if self.at == 0:
            raise Crash


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("previous", [None, 1])
def test_after_a_crash_at_any_reload_the_whole_rollout_can_be_run_again(stage: Stage, previous: int | None, at: int, before: bool) -> None:
    if previous:
        stage.roll_out(previous, None)
    with CrashingClient(stage.server.grpc_address, stage.server.rest_url, 20.0) as client:
        client.at, client.before = at, before
        with pytest.raises(Crash):
            stage.roll_out(2, previous, client=client)
    if previous:
        assert stage.serves() in (1, 2)
    stage.roll_out(2, previous)
    assert stage.serves() == 2
    stage.roll_out(2, previous)  # a rollout that was already complete changes nothing
    assert stage.serves() == 2


def test_a_failed_verification_after_the_switch_goes_back(stage: Stage) -> None:
    stage.roll_out(1, None)
    plan = stage.plan(2, 1)
    begin(stage.client, plan)
    await_state(stage.client, stage.name, 2, "AVAILABLE")
    with pytest.raises(RolloutFailed):
        switch(stage.client, plan, stage.golden(3))
    assert stage.serves() == 2
    with pytest.raises(RolloutFailed, match=r"a person said no\. Version 1 serves"):
        revert(stage.client, plan, "a person said no")
    assert stage.serves() == 1


def test_a_rollout_planned_before_another_one_moved_the_label_is_refused(stage: Stage) -> None:
    stage.roll_out(1, None)
    stage.roll_out(2, 1)
    with pytest.raises(SpecError, match=r"is on version 2.*planned when it was on 1"):
        stage.roll_out(3, 1)
    assert stage.serves() == 2


@pytest.mark.parametrize("change", [{"previous": 2}, {"proven": True}])
def test_a_version_that_had_the_label_before_keeps_it_and_its_way_back(stage: Stage, change: dict[str, Any]) -> None:
    stage.roll_out(1, None)
    stage.roll_out(2, 1)
    before, plan = stage.config, stage.plan(2, 1)._replace(**change)
    begin(stage.client, plan)
    with pytest.raises(RolloutFailed, match=r"had label 'stable' before and keeps it, but now: no answer\. Nothing was taken out of service"):
        revert(stage.client, plan, "no answer.")
    switch(stage.client, plan, stage.golden(2))
    assert (stage.serves(), stage.config) == (2, before)


@pytest.mark.parametrize("label", [1, 3, None])
def test_a_rollout_that_was_complete_is_refused_once_the_label_is_elsewhere(client: ServingClient, tmp_path: Path, label: int | None) -> None:
    before = ServerConfig((ModelConfig("m", "/models/m", (1, 2, 3), {"stable": label} if label else {}),))
    plan = PLAN._replace(proven=True, config_path=str(tmp_path / "models.config"))
    config.write(tmp_path / "models.config", before)
    words = rf"is on {f'version {label}' if label else 'no version'}; .* version 2 was complete before"
    with pytest.raises(SpecError, match=words):
        begin(client, plan)
    with pytest.raises(SpecError, match=words):
        switch(client, plan, tmp_path / "golden.json")
    assert config.read(tmp_path / "models.config") == before


def test_a_label_that_another_rollout_took_meanwhile_is_neither_moved_nor_reverted(stage: Stage) -> None:
    stage.roll_out(1, None)
    late = stage.plan(2, 1)
    begin(stage.client, late)
    stage.roll_out(3, 1)
    with pytest.raises(SpecError, match=r"is on version 3; this rollout of version 2 was planned when it was on 1"):
        switch(stage.client, late, stage.golden(2))
    with pytest.raises(RolloutFailed, match="Version 3 serves 'stable' now"):
        revert(stage.client, late, "too late")
    assert stage.serves() == 3


@pytest.mark.parametrize(("versions", "words"), [((7,), r"versions \[7\]"), ((), "by policy")])
def test_a_model_that_serves_without_the_label_cannot_be_gone_back_to(tmp_path: Path, versions: tuple[int, ...], words: str) -> None:
    file = tmp_path / "models.config"
    assert labelled(file, "m", "stable") is None
    config.write(file, ServerConfig((ModelConfig("m", "/models/m", versions),)))
    with pytest.raises(SpecError, match=rf"{words}.*without the label 'stable'.*Nothing was changed"):
        labelled(file, "m", "stable")
    config.write(file, ServerConfig((ModelConfig("m", "/models/m", versions, {"stable": 7}),)))
    assert labelled(file, "m", "stable") == 7
    assert labelled(file, "another", "stable") is None


def test_no_request_fails_while_versions_are_switched(stage: Stage) -> None:
    stage.roll_out(1, None)
    done, answers = threading.Event(), []

    def ask() -> None:
        with stage.server.client() as client:
            while not done.is_set():
                answers.append(client.predict(stage.name, INPUTS[:1], label="stable")[0][0])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in (2, 3):
        stage.roll_out(version, version - 1)
    done.set()
    for thread in threads:
        thread.join()
    assert len(answers) > 10
    assert {round(answer, 3) for answer in answers} <= {4.0, 5.0, 6.0}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cannot be read"),
        ("{}", "must be"),
        ('{"inputs": {"x": [1]}, "outputs": [[1]]}', "must be"),
        ('{"inputs": [[1, 2, 3, 4]], "outputs": [[1, 2, 3]]}', "in another shape"),
    ],
)
def test_golden_answers_that_prove_nothing_are_no_proof(stage: Stage, content: str, words: str) -> None:
    stage.roll_out(1, None)
    (stage.directory / "golden.json").write_text(content)
    with pytest.raises(RolloutFailed, match=words):
        verify(stage.client, stage.plan(1, None), stage.directory / "golden.json")


def test_without_a_server_the_rollout_waits_until_the_deadline_and_restores_the_file(tmp_path: Path) -> None:
    before = ServerConfig((ModelConfig("m", "/models/m", (1,), {"stable": 1}),))
    config.write(tmp_path / "models.config", before)
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += max(seconds, 1.0)

    plan = Plan("m", 2, 1, "/models/m", str(tmp_path / "models.config"), deadline=3.0)
    with ServingClient(f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}", deadline_seconds=0.5) as client:
        assert observe(client, plan) == {client.grpc_address: None}
        with pytest.raises(RolloutFailed, match="Version 1 serves 'stable' when the server starts again"):
            roll_out(client, plan, tmp_path / "golden.json", lambda: now[0], sleep)
    assert now[0] == pytest.approx(3.0)
    assert config.read(tmp_path / "models.config") == before


def test_a_killed_server_starts_from_the_file_with_the_version_that_served(stage: Stage) -> None:
    stage.roll_out(1, None)
    begin(stage.client, stage.plan(2, 1))
    stage.server.restart()
    await_state(stage.client, stage.name, 1, "AVAILABLE")
    assert stage.serves() == 1
    stage.roll_out(2, 1)
    assert stage.serves() == 2
