"""The whole path under the real scheduler, triggerer and model server, with what goes wrong on the way: one deployment, one story."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from airflow_mlops.data.snapshot import publish_version
from airflow_mlops.local.digits import publish_digits
from tests.deployments import RELEASE, RETRAIN, Story, deployed, stage_process, wait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with deployed(tmp_path_factory.mktemp("deployment")) as story:
        yield story


@pytest.fixture(scope="module")
def trained(story: Story) -> str:
    """The run that the first dataset version started, through a half-written version, a killed stage and a killed triggerer."""
    half = story.deployment.inbox / "v1"
    whole = publish_digits(story.home / "elsewhere", "v1", num_rows=400, seed=1)
    half.mkdir()
    shutil.copy(Path(whole.uri) / "digits.csv", half)
    time.sleep(6.0)  # more than one look of the trigger at a version whose manifest is not there yet
    assert story.events() == [] and story.api.runs(RETRAIN) == []
    shutil.copy(Path(whole.uri) / "manifest.json", half)
    run_id = wait("a run starts", lambda: story.api.runs(RETRAIN))[0]["dag_run_id"]

    wait("the training runs", lambda: story.task(RETRAIN, run_id, "train")["state"] == "running", seconds=180.0)
    stage = wait("the stage's process runs", lambda: stage_process("train", story.home))
    os.kill(stage, signal.SIGKILL)
    story.kill("triggerer")
    assert story.finished(RETRAIN, run_id) == "success"
    return str(run_id)


@pytest.fixture(scope="module")
def released(story: Story, trained: str) -> str:
    """The release of the model, answered as a person would, with the triggerer killed while it waits."""
    run_id = wait("the release starts", lambda: story.api.runs(RELEASE))[0]["dag_run_id"]
    wait("Airflow asks", lambda: story.trail(run_id))
    assert not (story.home / "models" / "digits").exists(), "nothing is published before a person agreed"
    story.answer(run_id, story.reviewer, "", expected="approval granted")
    assert story.finished(RELEASE, run_id) == "success"
    return str(run_id)


def test_a_killed_training_is_repeated_and_one_version_starts_one_run(story: Story, trained: str) -> None:
    assert story.task(RETRAIN, trained, "train")["try_number"] == 2
    assert len(story.events()) == 1 and len(story.api.runs(RETRAIN)) == 1


def test_the_served_answers_are_those_of_the_trained_model(story: Story, trained: str, released: str) -> None:
    offline = story.golden(trained)
    served = story.predict(offline["inputs"])
    assert served == [pytest.approx(row, abs=1e-4) for row in offline["outputs"]]


def test_a_killed_model_server_comes_back_with_the_same_model(story: Story, trained: str, released: str) -> None:
    offline = story.golden(trained)
    before = story.predict(offline["inputs"])
    story.kill("model-server")
    url = f"{story.settings.url('serving_rest')}/v1/models/digits/labels/stable"
    wait("the model server answers", lambda: httpx.get(url).is_success)
    assert wait("it serves", lambda: _predicted(story, offline["inputs"])) == before


def test_the_registry_names_the_champion_and_its_gates(story: Story, released: str) -> None:
    from airflow_mlops.registry.mlflow import MlflowRegistry

    champion = MlflowRegistry(story.settings.url("mlflow")).get_by_alias("digits", "champion")
    assert champion.version == 1 and champion.aliases == ("champion",)
    assert {"gate.validation", "gate.evaluation", "gate.robustness", "gate.decision", "dataset_digest", "code_version"} <= champion.tags.keys()


def test_people_were_told_once_of_each_transition(story: Story, released: str) -> None:
    texts = [json.loads(line)["text"] for line in (story.home / "workspace" / "outbox.jsonl").read_text().splitlines()]
    assert [sum(sign in text for text in texts) for sign in (":scales:", ":raising_hand:", ":rocket:", ":x:")] == [1, 1, 1, 0]


@pytest.mark.long  # test_api_server.py asks the same of a task without a scheduler
def test_who_triggered_a_release_does_not_approve_it_and_another_may(story: Story, released: str) -> None:
    run_id = story.api.trigger(RELEASE, {"version": 1})
    story.answer(run_id, story.api, "mine is good", expected="answer refused")
    story.answer(run_id, story.reviewer, "seen", expected="approval granted")
    assert story.finished(RELEASE, run_id) == "success"
    assert story.api.xcom(RELEASE, run_id, "approve")["approved_by"] == ["reviewer"]
    assert story.trail(run_id) == ["approval asked", "answer refused", "approved", "approval granted"]


def test_the_release_leaves_its_evidence_whole(story: Story, released: str) -> None:
    from airflow_mlops.ledger.evidence.pack import verify

    written = story.api.xcom(RELEASE, released, "evidence")
    path = Path(written["path"])
    assert verify(path, written["digest"]) == written["digest"]
    assert set(json.loads((path / "manifest.json").read_bytes())["missing"]) == {"differential report", "model-test report"}
    assert [event["kind"] for event in json.loads((path / "approvals.json").read_bytes())] == ["approval asked", "approved", "approval granted"]
    assert written["sections"] == {"data": 1, "model": 0, "infrastructure": 1, "monitoring": 1}


def test_a_report_opens_for_a_user_who_is_logged_in_and_for_nobody_else(story: Story, trained: str) -> None:
    links = story.api.call("GET", f"/dags/{RETRAIN}/dagRuns/{quote(trained)}/taskInstances/robustness/links")["extra_links"]
    url = story.settings.url("airflow") + links["Report"]
    assert httpx.get(url, follow_redirects=False).status_code in (401, 302, 307)
    page = httpx.get(url, headers={"Authorization": str(story.api._client.headers["Authorization"])})
    assert page.is_success and "defect" in page.text


def test_the_same_data_under_another_name_starts_nothing_and_by_hand_is_refused(story: Story, trained: str) -> None:
    first = story.deployment.inbox / "v1"
    publish_version({"digits.csv": (first / "digits.csv").read_bytes()}, story.deployment.inbox, name="v1-again", dataset="digits")
    run_id = story.api.trigger(RETRAIN, {"dataset_version": "v1-again"})
    assert story.finished(RETRAIN, run_id) == "failed"
    (error, *_) = story.api.errors(RETRAIN, run_id, "claim", 1)
    assert "DatasetAlreadyClaimed" in error and trained in error and "'repeat'" in error
    assert len(story.events()) == 1


def test_broken_data_stops_the_run_and_the_champion_still_serves(story: Story, trained: str, released: str) -> None:
    publish_digits(story.deployment.inbox, "v2", num_rows=300, seed=2, broken=True)
    run_id = wait("a run starts", lambda: [r for r in story.api.runs(RETRAIN) if r["run_type"] == "asset_triggered"][1:])[0]["dag_run_id"]
    assert story.finished(RETRAIN, run_id) == "failed"
    assert story.task(RETRAIN, run_id, "validate")["try_number"] == 1, "bad data does not get better by a retry"
    (error, *_) = story.api.errors(RETRAIN, run_id, "validate", 1)
    assert "DatasetRejected" in error and "'label'" in error
    offline = story.golden(trained)
    assert story.predict(offline["inputs"]) == [pytest.approx(row, abs=1e-4) for row in offline["outputs"]]


def _predicted(story: Story, inputs: Any) -> Any:
    with contextlib.suppress(httpx.HTTPStatusError):
        return story.predict(inputs)
    return None
