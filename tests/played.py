"""A run of a real DAG, task by task and without a scheduler: XComs are what a test makes of them; ledger and registry are real.

Stages leave records at once instead of training, and the model server's part of a rollout is left out: `instant`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.standard.operators import hitl
from airflow.sdk import DAG
from airflow.sdk.definitions import xcom_arg
from airflow.sdk.exceptions import TaskAwaitingInput, TaskDeferred

from airflow_mlops.artifacts import Artifact, canonical_json, write_atomically
from airflow_mlops.hooks.people import Person
from airflow_mlops.operators import approval
from airflow_mlops.records import SCHEMA_VERSION, Record, ResultRef, read_record
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.results import to_data
from airflow_mlops.serving import rollout
from airflow_mlops.stages import process
from airflow_mlops.stages.runner import spec_digest
from tests import fakes
from tests.bare_saved_models import golden, saved_model

RETURNED = "return_value"
REVIEWER = {"id": "cleo", "name": "cleo"}


@dataclass
class Ti(fakes.FakeTaskInstance):
    """A task instance whose XComs are those of a run."""

    id: str = "ti"
    xcoms: dict[tuple[str, int], Any] = field(default_factory=dict)
    log_url: str = "http://airflow/log"
    read: set[str] = field(default_factory=set)  # the tasks whose XComs were read

    def xcom_pull(self, task_ids: str, key: str = RETURNED, default: Any = None, map_indexes: Any = None) -> Any:
        assert key == RETURNED
        self.read.add(task_ids)
        return copy.deepcopy(self.xcoms.get((task_ids, -1), default))

    def of_mapped(self, task_id: str) -> list[Any]:
        self.read.add(task_id)
        return [copy.deepcopy(value) for (name, _), value in sorted(self.xcoms.items()) if name == task_id]


class PlayedRun:
    """One run: `xcoms` are by task id and map index, -1 for a task that is not mapped."""

    def __init__(self, dag: DAG, run_id: str, *, extras: Sequence[Any] = (), user: str | None = None, conf: Mapping[str, Any] = {}) -> None:
        self.dag, self.run_id, self.extras, self.user = dag, run_id, extras, user
        self.conf, self.params = dict(conf), {**dag.params.dump(), **conf}
        self.xcoms: dict[tuple[str, int], Any] = {}
        self.tries: dict[str, int] = {}

    def read(self, task_id: str) -> set[str]:
        """Return the tasks whose XComs a task reads when its fields are rendered."""
        return self._rendered(task_id, self._indexes(task_id)[0])[1]["ti"].read

    def run(self, task_id: str) -> Any:
        """Run a task, all of it where it is mapped, to its end and keep what it returns as its XCom; return that."""
        for index in self._indexes(task_id):
            task, context = self._rendered(task_id, index)
            answer = _ended(task, context)
            self.xcoms[task_id, index] = json.loads(json.dumps(context["ti"].pushed.get(RETURNED, answer)))
        return self.xcoms[task_id, self._indexes(task_id)[-1]]

    def run_all(self, until: str = "") -> None:
        """Run the tasks in order, up to and without one."""
        for task_id in self.order(until):
            self.run(task_id)

    def order(self, until: str = "") -> Iterator[str]:
        for task in self.dag.topological_sort():
            if task.task_id == until:
                return
            yield task.task_id

    def _indexes(self, task_id: str) -> list[int]:
        task = self.dag.get_task(task_id)
        return list(range(len(task.expand_input.value["spec"]))) if task.is_mapped else [-1]

    def _rendered(self, task_id: str, index: int) -> tuple[Any, Any]:
        task = self.dag.get_task(task_id).prepare_for_execution()
        self.tries[task_id] = self.tries.get(task_id, 0) + 1
        ti = Ti(self.dag.dag_id, self.run_id, task_id, index, self.tries[task_id], xcoms=self.xcoms)
        start = datetime(2026, 1, 1, tzinfo=UTC)
        events = [SimpleNamespace(extra=extra, timestamp=start + timedelta(seconds=i)) for i, extra in enumerate(self.extras)]
        outlets = {asset: SimpleNamespace(extra={}) for asset in task.outlets}
        context: Any = {"ti": ti, "task_instance": ti, "task": task, "dag": self.dag, "run_id": self.run_id, "params": self.params}
        context |= {"outlet_events": outlets, "triggering_asset_events": {"asset": events} if events else {}}
        context |= {
            "dag_run": SimpleNamespace(triggering_user_name=self.user, conf=self.conf),
            "conn": SimpleNamespace(mlflow_default=SimpleNamespace(host="http://m")),
        }
        task.render_template_fields(context)
        return context["task"], context


def _ended(task: Any, context: Any) -> Any:
    """Return what a task returns, whether it waits for a person, who approves, or for a server, which is ready."""
    try:
        return task.execute(context)
    except TaskAwaitingInput:
        said = {"chosen_options": ["Approve"], "params_input": {"comment": "fine"}, "responded_at": datetime.now(UTC)}
        return task.execute_complete(context, {**said, "responded_by_user": REVIEWER})
    except TaskDeferred as deferred:
        return task.execute_complete(context, {"plan": deferred.trigger.plan, "reason": None})


class InstantStage:
    """Leaves the record that a stage would, of a good model; takes the place of `StageProcess`."""

    registry: MlflowRegistry
    accuracy = 0.95

    def __init__(self, name: str, spec: Any, out_dir: Path, *, env: Mapping[str, str]) -> None:
        self.name, self.spec, self.out_dir, self.result_path = name, spec, out_dir, out_dir / "result.json"

    def run(self, log_line: Callable[[str], None]) -> Record:
        inputs = {name: value for name, value in self.spec._asdict().items() if isinstance(value, ResultRef)}
        record = Record(
            SCHEMA_VERSION, self.name, spec_digest(self.spec), result=to_data(getattr(self, self.name)()), inputs=inputs, usage=fakes.USAGE
        )
        write_atomically(self.result_path, canonical_json(to_data(record)))
        return read_record(self.result_path, stage=self.name, spec_digest=spec_digest(self.spec))

    def validate(self) -> Any:
        return fakes.validation(self.out_dir, dataset=self.spec.dataset)

    def train(self) -> Any:
        place = saved_model(self.out_dir / "served" / "saved_model", weights=str(self.out_dir).encode())
        answers = golden(self.out_dir / "served" / "golden.json")
        with self.registry.start_run(self.spec.model_name, name="training", tags={}) as run:
            run.log_artifact(place)
            run.log_artifact(answers)
        files = {"saved_model": Artifact.of(place), "golden": Artifact.of(answers)}
        origin = {"mlflow_run_id": run.run_id, "mlflow_source": run.artifact_uri, "code_authors": ("Ann Lee <ann@example.org>",)}
        dataset = json.loads(Path(self.spec.validation.uri).read_bytes())["result"]["dataset"]
        return fakes.training(self.out_dir, dataset=fakes.dataset_version(**dataset), **files, **origin)

    def evaluate(self) -> Any:
        champion = self.registry.aliases(self.spec.model_name).get("champion")
        measured = {"accuracy": self.accuracy, "macro_f1": self.accuracy}
        return fakes.evaluation(
            metrics=measured, champion_version=str(champion) if champion else None, champion_metrics=measured if champion else None
        )

    def robustness_shard(self) -> Any:
        from airflow_mlops.stages.robustness import RobustnessShardResult

        return RobustnessShardResult(self.spec.shard, self.spec.num_shards, fakes.artifact(self.out_dir / "islands"))

    def robustness(self) -> Any:
        return fakes.robustness(self.out_dir, sample_rate=0.01)


def instant(monkeypatch: pytest.MonkeyPatch, registry: MlflowRegistry, asked: list[dict[str, Any]]) -> None:
    """Let stages end at once, questions go to `asked`, and rollouts need no server."""
    InstantStage.registry = registry
    monkeypatch.setattr(process, "StageProcess", InstantStage)
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **detail: asked.append(detail))
    # The API server's part: who its users are.
    monkeypatch.setattr(approval, "people", lambda names, _dag_id: {name: Person(name, name, (), True) for name in names})
    monkeypatch.setattr(xcom_arg, "LazyXComSequence", lambda xcom_arg, ti: ti.of_mapped(xcom_arg.operator.task_id))
    for name in ("begin", "verify", "switch"):
        monkeypatch.setattr(rollout, name, lambda *_: None)
