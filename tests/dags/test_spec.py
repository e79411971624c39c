"""A spec that cannot become DAGs is refused with a sentence when its file is parsed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.serialization.serialized_objects import DagSerialization

from airflow_mlops.exceptions import SpecError
from airflow_mlops.pipelines import ArrayLayout, Grid, JobSpec, Local, PipelineSpec, Pod, PodSpec, model_pipelines

DAGS = Path(__file__).parents[2] / "dags"


def spec(**changes: Any) -> PipelineSpec:
    fields: dict[str, Any] = {
        "model": "digits",
        "dataset": "digits",
        "inbox": "/srv/inbox",
        "suite": "digits_suite.json",
        "train_function": "digits_model:train",
        "code_path": DAGS,
        "layout": ArrayLayout(input_shape=(8, 8, 1), num_classes=10),
    }
    return PipelineSpec(**{**fields, **changes})


def test_text_numbers_and_bools_are_parameters_of_the_train_function() -> None:
    assert spec(params={"epochs": 3, "rate": 0.1, "optimizer": "adam", "shuffle": True}).params["epochs"] == 3


def test_authors_of_the_code_reach_the_training() -> None:
    on_dataset, *_ = model_pipelines(spec(code_authors=["Bo"]))
    assert on_dataset.get_task("train").spec.code_authors == ("Bo",)
    with pytest.raises(SpecError, match=r"code_authors is the text 'Bo'; give a list"):
        spec(code_authors="Bo")


def test_less_than_one_process_is_no_runner() -> None:
    with pytest.raises(SpecError, match="num_workers is 0; give 1"):
        Local(0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "hand-written digits"}, "use letters, digits and underscores"),
        ({"train_function": "digits_model.train"}, "expected 'module:function'"),
        ({"suite": "missing.json"}, "There is no suite"),
        ({"statements": "missing.toml"}, "There is no file .*missing.toml of statements"),
        ({"repository": "https://host.example/team.git"}, "expected both, or neither"),
        ({"max_mutants": 0}, "needs at least 1"),
        ({"num_shards": 0}, "at least 1 task"),
        ({"attack": {"max_mutants": 10}}, "PipelineSpec.max_mutants decides"),
        ({"layout": ArrayLayout((13,), 3)}, r"attacks images, which have 3 dimensions, and input_shape is \(13,\)\. Say what the inputs are"),
        ({"attack": {"seed": 3}}, "the trigger form's field seed decides"),
        ({"training": {"max_second": 60.0}}, "Did you mean 'max_seconds'"),
        ({"training": {"seed": 3}}, "Unknown field of the training 'seed'"),
        ({"params": {"seed": 42}}, "names 'seed', which the trigger form has already"),
        ({"params": {"dataset_version": "v1"}}, "names 'dataset_version', which the trigger form has already"),
        ({"params": {"repeat": True}}, "names 'repeat', which the trigger form has already"),
        ({"params": {"layers": [32, 32]}}, r"layers = \[32, 32\]; .* holds text, a number or a bool"),
        ({"params": {"decay": None}}, "decay = None; .* holds text, a number or a bool"),
    ],
)
def test_an_impossible_spec_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        spec(**changes)


def test_the_time_and_the_checkpoints_of_a_training_are_the_team_s() -> None:
    dag, *_ = model_pipelines(spec(model="limited", training={"max_seconds": 3600.0, "reproducible": False}))
    asked = dag.get_task("train").spec
    assert (asked.max_seconds, asked.reproducible, asked.checkpoint_seconds) == (3600.0, False, 60.0)


def test_a_campaign_in_shards_is_a_mapped_task_before_the_one_that_merges() -> None:
    dag, *_ = model_pipelines(spec(model="sharded", num_shards=6, attack={"schedule": "uniform"}, extensions=["own"]))
    assert DagSerialization.from_dict(DagSerialization.to_dict(dag)).get_task("attack").is_mapped  # the scheduler's own view
    attack, merge = dag.get_task("attack"), dag.get_task("robustness")
    assert attack.downstream_task_ids == {"robustness"}
    assert {"train"} <= attack.upstream_task_ids
    parts = attack.expand_input.value["spec"]
    assert [(part.shard, part.num_shards) for part in parts] == [(number, 6) for number in range(6)]
    assert {part.campaign.options["num_islands"] for part in parts} == {6}
    assert merge.spec._replace(shards=()) == parts[0].campaign
    assert merge.spec.options["schedule"] == "uniform"
    assert merge.spec.extensions == ("own",)


def test_the_stages_of_a_pipeline_on_kubernetes_are_pods_and_nothing_else_changes() -> None:
    large = PodSpec("stages:1-cuda", num_gpus=1, memory="16Gi")
    runner = Pod(PodSpec("stages:1"), {"train": large}, arguments={"kubernetes_conn_id": "gpus"})
    dag, *_ = model_pipelines(spec(model="in_pods", num_shards=2, runner=runner))
    local, *_ = model_pipelines(spec(model="in_processes", num_shards=2))
    assert {task.task_id: task.downstream_task_ids for task in dag.tasks} == {task.task_id: task.downstream_task_ids for task in local.tasks}
    pods = {task.task_id: task for task in dag.tasks if task.operator_name in ("StagePodOperator", "TrainModelPodOperator")}
    assert pods.keys() == {"validate", "train", "evaluate", "attack", "robustness"}
    assert pods["train"].pod_spec == large and pods["validate"].pod_spec.image == "stages:1"
    assert pods["train"].deferrable and pods["train"].kubernetes_conn_id == "gpus"
    assert DagSerialization.from_dict(DagSerialization.to_dict(dag)).get_task("attack").is_mapped


def test_a_pod_for_a_stage_that_there_is_not_is_refused() -> None:
    with pytest.raises(SpecError, match=r"Unknown stage 'training'\. Did you mean 'train'"):
        Pod(PodSpec("stages:1"), {"training": PodSpec("stages:2")})


def test_several_pods_train_together_where_the_pipeline_says_so_and_all_else_is_one_pod_each() -> None:
    together = JobSpec(PodSpec("stages:1-cuda", num_gpus=1), num_workers=4)
    runner = Pod(PodSpec("stages:1"), train=together, arguments={"kubernetes_conn_id": "gpus", "env_from": []})
    dag, *_ = model_pipelines(spec(model="together", runner=runner))
    training: Any = dag.get_task("train")
    assert (training.operator_name, training.job_spec, training.deferrable) == ("TrainModelJobOperator", together, True)
    assert training.kubernetes_conn_id == "gpus"
    assert dag.get_task("evaluate").operator_name == "StagePodOperator"
    assert DagSerialization.from_dict(DagSerialization.to_dict(dag)).get_task("train").downstream_task_ids == training.downstream_task_ids


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": JobSpec(PodSpec("stages:1")), "stages": {"train": PodSpec("stages:2")}}, "Both stages and train"),
        ({"train": JobSpec(PodSpec("stages:1"), 1)}, "num_workers is 1"),
    ],
)
def test_a_training_by_several_pods_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Pod(PodSpec("stages:1"), **changes)


@pytest.mark.parametrize("runner", [Local(), Pod(PodSpec("stages:1")), Pod(PodSpec("stages:1"), train=JobSpec(PodSpec("stages:1")))])
def test_a_search_is_a_mapped_training_and_the_pipeline_goes_on_with_the_best(runner: Any) -> None:
    search = Grid({"rate": [0.1, 0.01], "units": [8, 16]}, "loss", "min")
    name = f"searched_{runner.operator('train')[0].__name__}"
    dag, *_ = model_pipelines(spec(model=name, params={"rate": 0.1, "units": 8, "epochs": 3}, search=search, runner=runner))
    assert DagSerialization.from_dict(DagSerialization.to_dict(dag)).get_task("train").is_mapped
    trials = [trial.params for trial in dag.get_task("train").expand_input.value["spec"]]
    assert [(trial["rate"], trial["units"]) for trial in trials] == [(0.1, 8), (0.1, 16), (0.01, 8), (0.01, 16)]
    assert {trial["epochs"]._name for trial in trials} == {"epochs"}
    choose = dag.get_task("choose")
    assert (choose.metric, choose.direction, choose.trigger_rule) == ("loss", "min", "all_done_min_one_success")
    assert dag.get_task("train").downstream_task_ids == {"choose"}
    assert choose.downstream_task_ids == {"evaluate", "robustness"}


def test_a_search_for_a_parameter_that_there_is_not_is_refused() -> None:
    with pytest.raises(SpecError, match="Did you mean 'rate'"):
        spec(params={"rate": 0.1}, search=Grid({"rat": [1.0]}, "loss"))


def test_where_the_code_comes_from_and_what_it_makes_reaches_the_training() -> None:
    code = {"repository": "https://host.example/team.git", "commit": "a" * 40, "features": "m:features", "retrain": "m:retrain"}
    dag, *_ = model_pipelines(spec(model="elsewhere", formats={"onnx": "required"}, **code))
    request: Any = dag.get_task("train").spec  # type: ignore[attr-defined]
    assert {name: getattr(request, name) for name in code} == code
    assert request.formats == {"onnx": "required"}


def test_a_table_has_a_kind_of_its_own() -> None:
    columns = [{"name": "age"}, {"name": "income"}]
    assert spec(layout=ArrayLayout((2,), 3), attack={"kind": {"name": "rows", "columns": columns}}).attack["kind"]["name"] == "rows"
