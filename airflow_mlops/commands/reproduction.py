"""``airflow-mlops twin-run`` and ``rebuild``: is a training reproducible, and is a registered model the one that its code and data make?"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlops.exceptions import ModelNotFound, SpecError

if TYPE_CHECKING:
    from airflow_mlops.stages.twins import Comparison


def add(commands: Any) -> None:
    """Add both commands to the subparsers `commands`."""
    twin = commands.add_parser("twin-run", help="train twice in fresh processes, and name the first step and tensor that differ")
    twin.add_argument("--spec", type=Path, required=True, help="spec of a training, as a run leaves it beside its result")
    twin.add_argument("--every", type=int, default=1, help="look at the weights after each so many steps (default: %(default)s)")
    twin.add_argument("--out", type=Path, required=True, help="new directory for both trainings and twin.json")
    twin.set_defaults(run=_twin_run)
    again = commands.add_parser("rebuild", help="train a registered version again, and say whether it is the same")
    again.add_argument("version", help="MODEL@VERSION")
    again.add_argument("--tracking-uri", required=True, help="MLflow's address, for instance http://mlflow:5000 or sqlite:////srv/mlflow.db")
    again.add_argument("--dataset", type=Path, help="directory of another dataset version (default: the one it was trained on)")
    again.add_argument("--code", type=Path, help="directory of the user's code at the commit it was trained by (default: where it was)")
    again.add_argument("--out", type=Path, required=True, help="new directory for the training and rebuild.json")
    again.set_defaults(run=_rebuild)


def model_version(text: str) -> tuple[str, int]:
    """Return the model and the number that ``MODEL@VERSION`` names; raise `SpecError` for anything else."""
    model, _, version = text.rpartition("@")
    if not model or not version.isdecimal():
        raise SpecError(f"{text!r} is no version; expected MODEL@VERSION, for instance digits@7.")
    return model, int(version)


def _twin_run(options: argparse.Namespace) -> int:
    from airflow_mlops.stages.runner import parse_spec
    from airflow_mlops.stages.twins import twin_run

    if options.every < 1:
        raise SpecError(f"--every is {options.every}; give 1, for each step, or more.")
    try:
        data = json.loads(options.spec.read_bytes())
    except (OSError, ValueError) as error:
        raise SpecError(f"The spec {options.spec} cannot be read ({error}). Give the spec.json of a training.") from error
    try:
        spec = parse_spec("train", data)
    except SpecError as error:
        raise SpecError(f"{options.spec} is no spec of a training. Give the spec.json that one has beside its result. {error}") from error
    return _told(twin_run(spec, options.out, print, env=os.environ, every=options.every))


def _rebuild(options: argparse.Namespace) -> int:
    from airflow_mlops.data.snapshot import open_version
    from airflow_mlops.registry.mlflow import MlflowRegistry
    from airflow_mlops.registry.mlflow_server import MlflowServer
    from airflow_mlops.stages.twins import Changes, rebuild

    named, database = model_version(options.version), MlflowServer(options.tracking_uri).database
    if database is not None and not database.is_file():  # MLflow would make an empty one
        raise SpecError(f"{database} does not exist; expected MLflow's SQLite file, or the address of its server, as --tracking-uri.")
    registry = MlflowRegistry(options.tracking_uri)
    try:
        version = registry.get(*named)
    except ModelNotFound as error:
        raise SpecError(f"There is no {options.version} to train again: {error}. Correct MODEL@VERSION or --tracking-uri.") from error
    dataset = open_version(options.dataset) if options.dataset else None
    changes = Changes(dataset, options.code, options.tracking_uri)
    return _told(rebuild(registry, version, options.out, print, env=os.environ, changes=changes))


def _told(found: Comparison) -> int:
    """Print what was found and return 0 if it is the same, else 1."""
    for note in found.notes:
        print(note)
    for name, (then, now) in found.metrics.items():
        print(f"{name}: {'none' if then is None else f'{then:.6g}'}, again {'none' if now is None else f'{now:.6g}'}")
    print(found.sentence())
    return 0 if found.same else 1
