"""From a dataset version to a candidate in the registry."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Asset, TriggerRule

from airflow_mlops.hooks.preflight import Preflight
from airflow_mlops.notifications.slack import PipelineNotifier
from airflow_mlops.operators.dataset import ClaimDatasetOperator
from airflow_mlops.operators.gate import GateModelOperator
from airflow_mlops.operators.registration import MlflowRegisterModelOperator
from airflow_mlops.operators.search import ChooseTrainingOperator
from airflow_mlops.pipelines.spec import PipelineSpec
from airflow_mlops.stages import evaluate, robustness, robustness_shard, train, validate

MIN_ISLANDS = 4
TASK_URL = "{{ ti.log_url }}"
TRACKING_URI = "{{ mlflow_tracking_uri() }}"  # see factory.py
CHOSEN = ":mag: *{{ dag.dag_id }}* `{{ run_id }}`: {{ search_outcome }}"
DECIDED = ":scales: *{{ dag.dag_id }}* `{{ run_id }}`: {{ gate_decision }}"


def retraining_tasks(spec: PipelineSpec, dag: DAG, candidate: Asset, *, start: str, repeat: Any) -> None:
    """Add claim, validate, train, evaluate, robustness, gate and register to `dag`.

    :param start: ``champion`` to go on from the champion's weights, ``scratch`` to forget them.
    :param repeat: whether a dataset version that another run has may be worked on again.
    """
    seed: Any = dag.param("seed")
    chosen: Any = dag.param("dataset_version")
    ready = Preflight(spec.runner.extras)
    claim = ClaimDatasetOperator(task_id="claim", dataset=spec.dataset, inbox=spec.inbox, version=chosen, repeat=repeat, pre_execute=ready)
    claimed: Any = claim.output
    validation = _stage(spec, "validate", validate.Spec(claimed, str(spec.code_path / spec.suite), TASK_URL))
    training = _training(
        spec,
        train.Spec(
            validation=validation,
            layout=spec.layout,
            function=spec.train_function,
            model_name=spec.model,
            tracking_uri=TRACKING_URI,
            params={name: dag.param(name) for name in spec.params},
            start=start,
            seed=seed,
            formats=dict(spec.formats),
            features=spec.features,
            retrain=spec.retrain,
            repository=spec.repository,
            commit=spec.commit,
            code_authors=tuple(spec.code_authors),
            **_loading(spec),
            **spec.training,
        ),
    )
    evaluation = _stage(spec, "evaluate", evaluate.Spec(training, spec.model, TRACKING_URI, **_loading(spec)))
    campaign = _campaign(spec, training, seed)
    decided = PipelineNotifier(text=DECIDED, channel=spec.channel)
    measured = {"evaluation": evaluation, "robustness": campaign, "policy": spec.policy}
    gate = GateModelOperator(task_id="gate", **measured, on_success_callback=decided)
    gate >> MlflowRegisterModelOperator(task_id="register", model_name=spec.model, **measured, candidate=candidate)


def _training(spec: PipelineSpec, request: train.Spec) -> Any:
    """Train once, or once for each trial of the search and go on with the best: a trial that failed ends nothing while another succeeded."""
    if spec.search is None:
        return _stage(spec, "train", request)
    trials = [request._replace(params={**request.params, **trial}) for trial in spec.search.trials()]
    operator, fields = spec.runner.operator("train")
    trained: Any = operator.partial(task_id="train", **fields).expand(spec=trials).output
    rule = TriggerRule.ALL_DONE_MIN_ONE_SUCCESS
    chosen = ChooseTrainingOperator(
        task_id="choose",
        trainings=trained,
        metric=spec.search.metric,
        direction=spec.search.direction,
        num_trials=len(trials),
        trigger_rule=rule,
        on_success_callback=PipelineNotifier(text=CHOSEN, channel=spec.channel),
    )
    return chosen.output


def _campaign(spec: PipelineSpec, training: Any, seed: Any) -> Any:
    """Attack the model in one task, or in one for each shard and one that merges them.

    The result is that of `num_islands` islands, whoever runs them: of four, unless there are more shards or `attack` says otherwise.
    """
    options = {"num_islands": max(MIN_ISLANDS, spec.num_shards), **spec.attack}
    whole = robustness.Spec(training, spec.max_mutants, seed, options=options, **_loading(spec))
    if spec.num_shards == 1:
        return _stage(spec, "robustness", whole)
    parts = [robustness_shard.Spec(whole, shard, spec.num_shards) for shard in range(spec.num_shards)]
    operator, fields = spec.runner.operator("robustness_shard")
    shards: Any = operator.partial(task_id="attack", **fields).expand(spec=parts).output
    return _stage(spec, "robustness", whole._replace(shards=shards))


def _loading(spec: PipelineSpec) -> dict[str, Any]:
    """Return what a stage that loads the model must know: where a team's own code is, and whether the model may bring any."""
    own = {"code_path": str(spec.code_path), "extensions": tuple(spec.extensions)}
    return {**own, "unsafe_models_allowed": spec.unsafe_models_allowed}


def _stage(spec: PipelineSpec, name: str, request: Any) -> Any:
    """Add a stage's task and return its output, which Airflow puts in the place of a record when it renders the next request."""
    operator, fields = spec.runner.operator(name)
    return operator(task_id=name, spec=request, **fields).output
