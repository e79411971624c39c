"""``airflow-mlops rollback``: bring an earlier champion back, as an Airflow user who may start the model's rollback DAG."""

from __future__ import annotations

import argparse
import getpass
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlops.exceptions import RollbackRefused, SpecError

if TYPE_CHECKING:
    from airflow_mlops.local.api import AirflowApi

PASSWORD = "AIRFLOW_MLOPS_PASSWORD"
_LOOK_SECONDS = 1.0


def add(commands: Any) -> None:
    """Add the command to the subparsers `commands`."""
    rollback: argparse.ArgumentParser = commands.add_parser("rollback", help="bring an earlier champion of a model back, without a new evaluation")
    rollback.add_argument("model")
    rollback.add_argument("--to", type=int, metavar="VERSION", help="the earlier champion (default: the one before the present one)")
    rollback.add_argument("--reason", required=True, help="why; it goes into the audit trail")
    where = rollback.add_mutually_exclusive_group(required=True)
    where.add_argument("--airflow", metavar="URL", help="Airflow's address, with its path where it has one")
    where.add_argument("--home", type=Path, help="the demo's directory, whose address and password are used")
    rollback.add_argument("--user", default="admin", help=f"Airflow user; the password is asked for, or {PASSWORD} has it (default: %(default)s)")
    rollback.add_argument("--wait-seconds", type=float, default=900.0, help="how long to wait for it (default: %(default)g)")
    rollback.set_defaults(run=_rollback)


def _rollback(options: argparse.Namespace) -> int:
    if not options.reason.strip():
        raise SpecError("--reason is empty; say why the model goes back, for the audit trail.")
    import httpx

    api, dag_id = _api(options), f"{options.model}_rollback"
    try:
        run_id = api.trigger(dag_id, {"version": options.to, "reason": options.reason})
        print(f"Started {dag_id} {run_id} as {options.user}.", flush=True)
        print(_follow(api, dag_id, run_id, time.monotonic() + options.wait_seconds))
    except httpx.TransportError as error:
        raise SpecError(f"Airflow does not answer: {error}. Give its address with --airflow, and check that it runs.") from error
    return 0


def _api(options: argparse.Namespace) -> AirflowApi:
    from airflow_mlops.local.api import AirflowApi

    if options.home is None:
        return AirflowApi(options.airflow, options.user, os.environ.get(PASSWORD) or getpass.getpass(f"Password of {options.user}: "))
    from airflow_mlops.local.services import Settings

    if not (options.home / "settings.json").is_file():
        raise SpecError(f"{options.home} holds no deployment; expected the directory of 'airflow-mlops demo --home DIR'.")
    settings = Settings.of(options.home)
    return AirflowApi(settings.url("airflow"), options.user, settings.password)


def _follow(api: AirflowApi, dag_id: str, run_id: str, deadline: float) -> str:
    """Return what came of a run; raise `RollbackRefused` with the task's own words if it failed, or if it is not done in time."""
    while (state := api.run_state(dag_id, run_id)) not in ("success", "failed"):
        if time.monotonic() > deadline:
            raise RollbackRefused(f"{dag_id} {run_id} is still {state}. It continues: watch it in Airflow.")
        time.sleep(_LOOK_SECONDS)
    ((task_id, task),) = api.tasks(dag_id, run_id).items()
    if state == "success":
        return str(api.xcom(dag_id, run_id, task_id)["headline"])
    said = api.errors(dag_id, run_id, task_id, task["try_number"])
    raise RollbackRefused(f"{dag_id} {run_id} failed: {said[0] if said else 'see the log of its task in Airflow.'}")
