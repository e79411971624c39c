"""The four DAGs of a model: retrain when a dataset arrives, retrain every night, release, roll back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, CronTriggerTimetable, Param

from airflow_mlops.hooks.mlflow import MlflowHook
from airflow_mlops.notifications.slack import PipelineNotifier
from airflow_mlops.pipelines.release import release_tasks
from airflow_mlops.pipelines.retraining import retraining_tasks
from airflow_mlops.pipelines.rollback import rollback_form, rollback_task
from airflow_mlops.pipelines.spec import PipelineSpec
from airflow_mlops.triggers.dataset import DatasetVersionTrigger

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
ABOUT = {
    "on_dataset": """Runs once for every complete version of **{dataset}** that arrives in `{inbox}`: verifies and validates it, goes on from the
champion's weights, compares both models on rows neither has learned from, attacks the new one with mutated inputs. A model that passes the
gate becomes the *candidate* and starts **{model}_release**. By hand: choose a version by the name of its directory.""",
    "nightly": """Trains **{model}** from scratch on the newest version of **{dataset}**, at `{nightly}` (UTC), so that what only old code or an old
champion knew cannot hide. From the gate on it is **{model}_on_dataset**.""",
    "release": """Asks a person whether the candidate of **{model}** may go live, loads it beside the serving version, compares its served answers
with those it gave offline, moves the label `stable`, and makes it the *champion*. When anything fails, the previous version serves on.""",
    "rollback": """Brings an earlier champion of **{model}** back, in seconds: publishes it again if its files are gone, proves its answers,
moves the label `stable`, and makes it the *champion*. There is no evaluation and no approval: everyone who may start this DAG may do it, and the
audit trail keeps who did and why. A release that is under way is refused; the next retraining starts from the champion that was brought back.""",
}
FAILED = ":x: *{{ dag.dag_id }}* `{{ run_id }}`: task `{{ ti.task_id }}` failed: {{ exception | default('its process died; see the log') }}"


def model_pipelines(spec: PipelineSpec) -> tuple[DAG, DAG, DAG, DAG]:
    """Return ``<model>_on_dataset``, ``<model>_nightly``, ``<model>_release`` and ``<model>_rollback``."""
    trigger = DatasetVersionTrigger(dataset=spec.dataset, inbox=spec.inbox)
    arrivals = Asset(name=f"{spec.dataset}_dataset", group="datasets", watchers=[AssetWatcher(name=f"{spec.dataset}_inbox", trigger=trigger)])
    candidate = Asset(name=f"{spec.model}_candidate", group="models")

    form = {**_chosen_version(), **_training(spec)}
    repeat = Param(False, type="boolean", title="Repeat", description="Work on the version although another run already has.")
    with _dag(spec, "on_dataset", [arrivals], "Retrain the champion when a dataset version arrives", {**form, "repeat": repeat}) as on_dataset:
        retraining_tasks(spec, on_dataset, candidate, start="champion", repeat=on_dataset.param("repeat"))

    # Without a start date, and never for a tick that is past: unpausing the DAG at noon does not train at once.
    cron = CronTriggerTimetable(spec.nightly, timezone="UTC", run_immediately=timedelta(0))
    with _dag(spec, "nightly", cron, "Retrain from scratch every night on the newest dataset version", form) as nightly:
        retraining_tasks(spec, nightly, candidate, start="scratch", repeat=True)

    version = Param(None, type=["null", "integer"], minimum=1, title="Model version", description="Empty: the candidate.")
    with _dag(spec, "release", [candidate], "Ask a person, roll out, promote", {"version": version}) as release:
        release_tasks(spec, release)

    # Not paused when it is new: who needs it, needs it at once.
    with _dag(spec, "rollback", None, "Bring an earlier champion back", rollback_form(), is_paused_upon_creation=False) as rollback:
        rollback_task(spec, rollback)
    return on_dataset, nightly, release, rollback


def mlflow_tracking_uri() -> str:
    """Return the tracking URI that the tasks' connection names; a macro of the templates."""
    return MlflowHook().tracking_uri


def _dag(spec: PipelineSpec, name: str, schedule: Any, description: str, params: dict[str, Param], **more: Any) -> DAG:
    return DAG(
        f"{spec.model}_{name}",
        schedule=schedule,
        description=description,
        doc_md=ABOUT[name].format(**vars(spec)),
        catchup=False,
        max_active_runs=1,
        params=params,
        tags=["mlops", spec.model],
        user_defined_macros={"mlflow_tracking_uri": mlflow_tracking_uri},
        default_args={
            "retries": 2,
            "retry_delay": timedelta(seconds=10),
            "on_failure_callback": PipelineNotifier(text=FAILED, channel=spec.channel),
        },
        **more,
    )


def _chosen_version() -> dict[str, Param]:
    description = "Name of its directory in the inbox. Empty: the one that arrived, else the newest that was not rejected."
    return {"dataset_version": Param(None, type=["null", "string"], title="Dataset version", description=description)}


def _training(spec: PipelineSpec) -> dict[str, Param]:
    fields = {name: Param(value, type=JSON_TYPES[type(value)], title=_title(name), section="Training") for name, value in spec.params.items()}
    seed = Param(1, type="integer", minimum=0, title="Seed", description="Seeds every source of randomness.", section="Training")
    return {**fields, "seed": seed}


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()
