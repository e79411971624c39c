"""One campaign shared out over four tasks of a real Airflow, one of them killed: the same result as in one task."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from airflow_mlops.local.digits import publish_digits
from airflow_mlops.records import ResultRef
from airflow_mlops.results import from_data
from airflow_mlops.stages import robustness
from airflow_mlops.stages.runner import parse_spec
from tests.deployments import RETRAIN, ROOT, deployed, stage_process, wait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_four_tasks_of_which_one_is_killed_find_what_one_task_finds(tmp_path: Path) -> None:
    dags = tmp_path / "dags"
    shutil.copytree(ROOT / "dags", dags)
    text = (dags / "digits.py").read_text()
    (dags / "digits.py").write_text(text.replace("        params=", "        num_shards=4,\n        max_mutants=40_000,\n        params="))
    (tmp_path / "home").mkdir()
    with deployed(tmp_path / "home", dags) as story:
        publish_digits(story.deployment.inbox, "v1", num_rows=600, seed=1)
        run_id = wait("a run starts", lambda: story.api.runs(RETRAIN))[0]["dag_run_id"]
        os.kill(wait("a shard runs", lambda: stage_process("robustness_shard", story.home), seconds=240.0), signal.SIGKILL)
        assert story.finished(RETRAIN, run_id) == "success"
        instances = story.api.call("GET", f"/dags/{RETRAIN}/dagRuns/{run_id}/taskInstances")["task_instances"]
        tries = sorted(task["try_number"] for task in instances if task["task_id"] == "attack")
        assert tries == [1, 1, 1, 2]
        merged = from_data(ResultRef, story.api.xcom(RETRAIN, run_id, "robustness"))
        directory = Path(merged.uri).parent
        found = json.loads(Path(merged.uri).read_bytes())["result"]
        spec = parse_spec("robustness", json.loads((directory / "spec.json").read_bytes()))
        assert len(spec.shards) == 4
        alone = tmp_path / "alone"
        alone.mkdir()
        assert robustness.run(spec._replace(shards=()), alone).ledger_hash == found["ledger_hash"]
