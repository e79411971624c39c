"""Roll out over a real model server and a real ledger: what serves after every way to fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from airflow_mlops.artifacts import file_digest, path_digest
from airflow_mlops.exceptions import ServingUnavailable
from airflow_mlops.ledger import history
from airflow_mlops.ledger.store import Store
from airflow_mlops.operators.serving import TFServingRolloutOperator
from airflow_mlops.serving import config
from airflow_mlops.serving.client import ServingClient
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.publish import publish_saved_model
from airflow_mlops.triggers.tf_serving import TFServingRolloutTrigger
from tests import fakes
from tests.fakes import FakeTaskInstance, context
from tests.servers import EmbeddedServer, await_state, free_port

INPUTS = [[1.0, 2.0], [0.5, -1.0]]


@dataclass
class Try(FakeTaskInstance):
    """A try of a task that is tried three times, unless told otherwise."""

    max_tries: int = 2


class Desk:
    """One model of its own name, its published versions, and the task that rolls them out."""

    def __init__(self, name: str, server: EmbeddedServer, connect: Callable[..., None], home: Path, ledger: Store) -> None:
        self.ledger = ledger
        self.name, self.server, self.connect, self.home = name, server, connect, home
        self.answering(True)

    def answering(self, yes: bool) -> None:
        """Let the connection lead to the model server, or to a port where nobody answers."""
        grpc_port, rest_url = (self.server.grpc_port, self.server.rest_url) if yes else (free_port(), f"http://127.0.0.1:{free_port()}")
        extra = {"rest_url": rest_url, "base_path": str(self.home), "config_path": str(self.server.config_file), "deadline_seconds": 5}
        self.connect("tf_serving_default", "tf_serving", host="127.0.0.1", port=grpc_port, extra=extra)

    def golden(self, version: int) -> Path:
        path = self.home / f"golden-{version}.json"
        path.write_text(json.dumps({"inputs": INPUTS, "outputs": [[sum(row) + version] for row in INPUTS]}))
        return path

    def operator(self, version: int, *, answers_of: int | None = None, seconds: float = 60.0) -> TFServingRolloutOperator:
        golden = self.golden(answers_of or version)
        model = {"name": self.name, "version": version, "golden": str(golden), "golden_digest": file_digest(golden)}
        return TFServingRolloutOperator(task_id="roll_out", model=model, timeout_seconds=seconds)

    def after(self, operator: TFServingRolloutOperator, ti: Try) -> Any:
        """Return the context of the task after one that handed over the operator's model."""
        return context(ti, task=fakes.handed_over(self.ledger, operator.model, ti=ti))

    def begin(self, operator: TFServingRolloutOperator, ti: Try) -> dict[str, Any]:
        """Run the task until it defers, then its trigger, and return the trigger's event."""
        with pytest.raises(TaskDeferred) as deferred:
            operator.execute(self.after(operator, ti))
        return self.event(deferred.value.trigger)

    def event(self, trigger: Any) -> dict[str, Any]:
        """Return what a trigger yields."""
        with ThreadPoolExecutor(1) as triggerer:
            return triggerer.submit(asyncio.run, event_of(trigger)).result()

    def roll_out(self, version: int, ti: Try, **changes: Any) -> dict[str, Any]:
        operator = self.operator(version, **changes)
        return operator.execute_complete(self.after(operator, ti), self.begin(operator, ti))

    def configure(self, model: ModelConfig) -> None:
        """Write the model's entry by hand, without telling the server."""
        with config.exclusive(self.server.config_file) as served:
            config.write(self.server.config_file, served.with_model(model))

    @property
    def config(self) -> ModelConfig | None:
        return config.read(self.server.config_file).get(self.name)

    @property
    def label(self) -> int | None:
        """The version that the configuration file gives the label."""
        return self.config.labels.get("stable") if self.config else None

    def serves(self) -> float:
        """Return the version whose answers the running server gives under the label."""
        with self.server.client() as client:
            return float(round(client.predict(self.name, INPUTS, label="stable")[0][0] - sum(INPUTS[0]), 3))


async def event_of(trigger: Any) -> dict[str, Any]:
    class_path, settings = json.loads(json.dumps(trigger.serialize()))
    assert class_path == "airflow_mlops.triggers.tf_serving.TFServingRolloutTrigger"
    async for event in TFServingRolloutTrigger(**settings).run():
        return dict(event.payload)
    raise AssertionError("the trigger ended without an event")


@pytest.fixture
def desk(
    request: pytest.FixtureRequest,
    server: EmbeddedServer,
    saved_models: dict[int, Path],
    connect: Callable[..., None],
    ledger: Store,
    tmp_path: Path,
) -> Iterator[Desk]:
    desk = Desk(request.node.name.partition("[")[0], server, connect, tmp_path, ledger)
    for version, path in saved_models.items():
        publish_saved_model(path, tmp_path / desk.name, version, path_digest(path)[0])
    desk.roll_out(1, Try(run_id="the first release"))
    yield desk
    forget(server, desk.name)


def forget(server: EmbeddedServer, name: str) -> None:
    """Take a model out of the server's configuration, and start a server that a test has stopped."""
    with config.exclusive(server.config_file) as served:
        config.write(server.config_file, served.without_model(name))
    if server.process.poll() is not None:
        server.start()


class Killed(BaseException):
    """The task's process dies here."""


def die(*_: Any) -> None:
    raise Killed


def test_a_release_serves_and_the_ledger_shows_its_steps(desk: Desk, ledger: Store) -> None:
    done = desk.roll_out(2, Try())
    assert done["headline"] == "served and offline answers agree; label 'stable' serves version 2; version 1 stays loaded"
    assert (desk.serves(), desk.label, done["previous"]) == (2, 2, 1)
    seen = [(effect.kind, effect.result) for effect in history.effects(ledger, ("plan-rollout", "switch")) if effect.request["version"] == 2]
    assert seen == [("switch", {"version": 2, "previous": 1}), ("plan-rollout", {"previous": 1})]


def test_a_reload_that_the_server_refuses_does_not_stay_in_the_file(desk: Desk) -> None:
    before = ModelConfig(desk.name, str(desk.home / desk.name), (1, 9), {"stable": 1, "archive": 9})  # 9 is not loaded: refused
    desk.configure(before)
    with pytest.raises(AirflowFailException, match=r"RolloutFailed: Version 2 .*refused.*Version 1 serves 'stable' when the server starts again"):
        (operator := desk.operator(2)).execute(desk.after(operator, Try()))
    assert desk.config == before
    assert desk.serves() == 1


def test_a_server_that_dies_in_the_switch_starts_again_with_the_champion_when_no_try_is_left(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(client: ServingClient, wanted: ServerConfig) -> None:
        desk.server.kill()
        reload(client, wanted)

    operator, reload = desk.operator(2), ServingClient.reload
    event = desk.begin(operator, Try())
    with monkeypatch.context() as patch, pytest.raises(ServingUnavailable):
        patch.setattr(ServingClient, "reload", dies)
        operator.execute_complete(desk.after(operator, Try()), event)
    assert desk.label == 2
    with pytest.raises(ServingUnavailable):
        operator.execute(desk.after(operator, Try(try_number=2)))
    assert desk.label == 2  # a further try may still complete it
    with pytest.raises(AirflowFailException, match="Version 1 serves 'stable' when the server starts again"):
        operator.execute(desk.after(operator, Try(try_number=3)))
    desk.server.start()
    with desk.server.client() as client:
        await_state(client, desk.name, 1, "AVAILABLE")
    assert (desk.serves(), desk.label) == (1, 1)


@pytest.mark.parametrize(("try_number", "max_tries", "label"), [(1, 1, 2), (2, 1, 1), (1, 0, 1), (4, 6, 2)])
def test_a_switch_without_an_answer_is_undone_in_the_last_try_only(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, try_number: int, max_tries: int, label: int
) -> None:
    def silent(*_: Any) -> None:
        raise ServingUnavailable("The model server did not answer.")

    operator, ti = desk.operator(2), Try(try_number=try_number, max_tries=max_tries)
    event = desk.begin(operator, ti)
    monkeypatch.setattr(ServingClient, "reload", silent)
    with pytest.raises(ServingUnavailable if label == 2 else AirflowFailException, match="did not answer"):
        operator.execute_complete(desk.after(operator, ti), event)
    assert desk.label == label


def test_a_ledger_that_fails_for_good_after_the_switch_takes_the_version_out_again(desk: Desk, connect: Callable[..., None]) -> None:
    operator, ti = desk.operator(2), Try(try_number=3)
    event = desk.begin(operator, ti)
    connect("mlops_ledger_default", "mlops_ledger", schema="/nowhere/ledger.db", extra={"driver": "sqlite"})
    with pytest.raises(AirflowFailException, match="Version 1 serves 'stable' now"):
        operator.execute_complete(desk.after(operator, ti), event)
    assert (desk.serves(), desk.label) == (1, 1)


def test_a_killed_switch_goes_back_when_the_server_is_silent_and_is_done_again_when_a_person_clears_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TFServingRolloutOperator, "_remember", die)
        desk.roll_out(2, Try())
    assert desk.serves() == 2
    operator, ti = desk.operator(2, seconds=0.2), Try(try_number=2)
    event = desk.begin(operator, ti)
    with pytest.raises(AirflowFailException, match="Version 1 serves 'stable' now"):
        operator.execute_complete(desk.after(operator, ti), {**event, "reason": "the server did not answer until the deadline"})
    assert (desk.serves(), desk.label) == (1, 1)
    assert desk.roll_out(2, Try(try_number=3, max_tries=5))["previous"] == 1
    assert (desk.serves(), desk.label) == (2, 2)


@pytest.mark.parametrize("run_id", ["release", "another run"])
def test_a_version_that_serves_already_stays_when_the_server_is_silent(desk: Desk, run_id: str) -> None:
    desk.roll_out(2, Try(run_id="release"))
    before = desk.config
    cleared, ti = desk.operator(2), Try(run_id=run_id, try_number=5, max_tries=4)
    event = desk.begin(cleared, ti)
    desk.answering(False)
    for fails in (
        lambda: cleared.execute(desk.after(cleared, ti)),
        lambda: cleared.execute_complete(desk.after(cleared, ti), event),
        lambda: cleared.execute_complete(desk.after(cleared, ti), {**event, "reason": "the server did not answer until the deadline"}),
    ):
        with pytest.raises(AirflowFailException, match=r"had label 'stable' before and keeps it, but now: .*did not answer"):
            fails()
        assert desk.config == before
    desk.answering(True)
    loaded = "; version 1 stays loaded" if run_id == "release" else ""  # another run found no other version to go back to
    assert desk.roll_out(2, Try(run_id=run_id))["headline"].endswith(f"label 'stable' serves version 2{loaded}")
    assert (desk.serves(), desk.config) == (2, before)


def test_a_remembered_switch_is_no_proof_of_what_serves_now(desk: Desk) -> None:
    desk.roll_out(2, Try())
    with pytest.raises(AirflowFailException, match=r"keeps it, but now: .*answers the golden inputs differently"):
        desk.roll_out(2, Try(try_number=2), answers_of=1)
    assert (desk.serves(), desk.label) == (2, 2)


def test_golden_answers_that_changed_after_publishing_prove_nothing(desk: Desk) -> None:
    desk.roll_out(1, Try(run_id="first"))
    operator = desk.operator(2)
    event = desk.begin(operator, Try(run_id="second"))
    for spoil in (lambda: Path(operator.model["golden"]).write_text('{"inputs": [[0]], "outputs": [[2]]}'), Path(operator.model["golden"]).unlink):
        spoil()
        with pytest.raises(AirflowFailException, match=r"RolloutFailed: .*The golden answers .* changed after publishing"):
            operator.execute_complete(desk.after(operator, Try(run_id="second")), event)
    assert (desk.serves(), desk.label) == (1, 1)


def test_an_old_release_that_is_cleared_does_not_come_back(desk: Desk) -> None:
    desk.roll_out(2, Try(run_id="old"))
    desk.roll_out(1, Try(run_id="new"))
    before = desk.config
    with pytest.raises(AirflowFailException, match=r"is on version 1; this rollout of version 2 was complete before\. Another rollout came between"):
        (operator := desk.operator(2)).execute(desk.after(operator, Try(run_id="old")))
    assert (desk.serves(), desk.config) == (1, before)


@pytest.mark.parametrize("versions", [(1,), ()])
def test_a_model_that_serves_without_the_label_is_not_touched(desk: Desk, versions: tuple[int, ...]) -> None:
    before = ModelConfig(desk.name, str(desk.home / desk.name), versions)
    desk.configure(before)
    with pytest.raises(AirflowFailException, match=r"SpecError: .*without the label 'stable'.*version_labels { key: \"stable\" value: VERSION }"):
        (operator := desk.operator(2)).execute(desk.after(operator, Try()))
    assert desk.config == before
    desk.configure(ModelConfig(desk.name, str(desk.home / desk.name), versions, {"stable": 1}))
    assert desk.roll_out(2, Try())["previous"] == 1  # and the same run goes on once the label is there


def test_a_server_that_refuses_to_say_what_it_serves_is_a_reason_to_go_back(desk: Desk, connect: Callable[..., None]) -> None:
    operator = desk.operator(2)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(desk.after(operator, Try()))
    stranger = grpc.server(ThreadPoolExecutor(1))  # it knows no method
    port = stranger.add_insecure_port("127.0.0.1:0")
    stranger.start()
    extra = {"rest_url": desk.server.rest_url}
    connect("tf_serving_default", "tf_serving", host="127.0.0.1", port=port, extra=extra)
    event = asyncio.run(event_of(deferred.value.trigger))
    stranger.stop(None)
    assert "UNIMPLEMENTED" in event["reason"]
    desk.answering(True)
    with pytest.raises(AirflowFailException, match="Version 1 serves 'stable' now"):
        operator.execute_complete(desk.after(operator, Try()), event)
    assert desk.label == 1


def test_the_constructor_only_assigns() -> None:
    settings = {"model": "m", "version_label": "x", "timeout_seconds": 1.0, "tf_serving_conn_id": "a", "ledger_conn_id": "b"}
    operator = TFServingRolloutOperator(task_id="t", **settings)
    assert {name: getattr(operator, name) for name in settings} == settings
