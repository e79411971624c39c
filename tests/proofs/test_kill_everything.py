"""Every process of the deployment is killed once while it is needed; each time the same data ends in the same served model."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_mlops.local.digits import publish_digits
from airflow_mlops.records import ResultRef, load
from airflow_mlops.results import TrainingResult, from_data
from tests.deployments import RELEASE, RETRAIN, Story, deployed, stage_process, wait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# Who is killed, and while which task runs or waits.
DURING_RETRAINING = [
    ("stage", "validate"),
    ("task", "train"),
    ("executor worker", "evaluate"),
    ("scheduler", "train"),
    ("dag-processor", "train"),
    ("triggerer", "train"),
    ("api-server", "train"),
    ("mlflow", "train"),
    ("model-server", "train"),
]
DURING_RELEASE = ["scheduler", "triggerer", "api-server", "mlflow", "model-server"]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with deployed(tmp_path_factory.mktemp("deployment")) as story:
        yield story


def parent(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("PPid:")[1].split()[0])


def kill(story: Story, victim: str, during: str) -> None:
    if victim in story.deployment.pids():
        story.kill(victim)
        return
    pid = wait(f"the process of stage {during}", lambda: stage_process(during, story.home))
    for _ in range({"stage": 0, "task": 1, "executor worker": 2}[victim]):
        pid = parent(pid)
    os.kill(pid, signal.SIGKILL)


def publish(story: Story) -> str:
    """Publish the next dataset version and return the run it starts."""
    number = len([path for path in story.deployment.inbox.iterdir() if not path.name.startswith(".")]) + 1
    runs = len(story.api.runs(RETRAIN))
    publish_digits(story.deployment.inbox, f"v{number}", num_rows=1000 + 50 * number, seed=number)
    return str(wait("a run starts", lambda: story.api.runs(RETRAIN)[runs:])[0]["dag_run_id"])


def release(story: Story, victim: str | None = None) -> str:
    """Approve the newest release, with `victim` killed just after the answer, and return its run."""
    waiting = wait("a release starts", lambda: [run for run in story.api.runs(RELEASE) if run["state"] in ("queued", "running")])
    run_id = str(waiting[0]["dag_run_id"])
    answer(story, run_id)
    if victim:
        story.kill(victim)
    while wait("the release goes on", lambda: asked_again(story, run_id) or story.api.run_state(RELEASE, run_id) != "running", 240.0) == "asked":
        answer(story, run_id)  # what was killed took the answer with it, so Airflow asks once more
    assert story.api.run_state(RELEASE, run_id) == "success"
    return run_id


def answer(story: Story, run_id: str) -> None:
    wait("Airflow asks", lambda: story.task(RELEASE, run_id, "approve")["state"] == "awaiting_input")
    time.sleep(3.0)  # a person reads before answering
    story.api.approve(RELEASE, run_id, "approve")
    wait("the answer is taken", lambda: story.task(RELEASE, run_id, "approve")["state"] != "awaiting_input")


def asked_again(story: Story, run_id: str) -> str | None:
    return "asked" if story.task(RELEASE, run_id, "approve")["state"] == "awaiting_input" else None


def serves(story: Story, run_id: str) -> None:
    golden = story.golden(run_id)

    def answers() -> Any:
        with contextlib.suppress(httpx.HTTPStatusError):
            return story.predict(golden["inputs"])
        return None

    served = wait("the model server answers", answers)
    assert served == [pytest.approx(row, abs=1e-4) for row in golden["outputs"]]


@pytest.mark.parametrize(("victim", "during"), DURING_RETRAINING)
def test_a_kill_while_retraining_ends_in_the_same_served_model(story: Story, victim: str, during: str) -> None:
    run_id = publish(story)
    wait(f"{during} runs", lambda: story.task(RETRAIN, run_id, during)["state"] == "running", seconds=240.0)
    kill(story, victim, during)
    assert story.finished(RETRAIN, run_id) == "success"
    release(story)
    serves(story, run_id)
    assert len(story.events()) == len({event["extra"]["payload"]["digest"] for event in story.events()}), "one event per version"


@pytest.mark.parametrize("victim", DURING_RELEASE)
def test_a_kill_while_releasing_ends_in_the_same_served_model(story: Story, victim: str) -> None:
    run_id = publish(story)
    assert story.finished(RETRAIN, run_id) == "success"
    release(story, victim)
    serves(story, run_id)


def test_a_nightly_run_by_hand_trains_from_scratch_on_the_newest_version(story: Story) -> None:
    story.api.unpause("digits_nightly")
    assert story.api.runs("digits_nightly") == [], "unpausing starts nothing"
    run_id = story.api.trigger("digits_nightly")
    assert story.finished("digits_nightly", run_id) == "success"
    trained = from_data(ResultRef, story.api.xcom("digits_nightly", run_id, "train"))
    assert load(trained, TrainingResult).warm_started_from is None


def test_a_killed_supervisor_is_replaced_by_the_next_start(story: Story) -> None:
    runs = [run["dag_run_id"] for run in story.api.runs(RETRAIN)]
    (supervisor,) = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _is_supervisor(p, story.home)]
    services = list(story.deployment.pids().values())
    before = {pid for leader in services for pid in of_session(leader)}
    assert len(before) > len(services), "workers and log servers, too"
    os.kill(supervisor, signal.SIGKILL)
    story.deployment.start(print)
    assert not before & {pid for leader in services for pid in of_session(leader)}, "nobody of the old deployment lives beside the new one"
    serves(story, runs[-1])


def of_session(leader: int) -> set[int]:
    """Return the live members of a session, asked of the system call."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.getsid(int(entry.name)) == leader:
                found.add(int(entry.name))
    return found


def _is_supervisor(process: Path, home: Path) -> bool:
    with contextlib.suppress(OSError):
        words = (process / "cmdline").read_bytes().split(b"\0")
        return b"airflow_mlops.local.supervisor" in words and str(home).encode() in words
    return False
