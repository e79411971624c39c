"""Stage ``train``: run the user's train function on the rows to learn from, and record where the model comes from."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator

from airflow_mlops.artifacts import Artifact
from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.exceptions import EvaluationError, UnsafeModel, unknown_name
from airflow_mlops.records import ResultRef, load
from airflow_mlops.results import TrainingResult, ValidationResult
from airflow_mlops.stages.inputs import read_split
from airflow_mlops.stages.models import champion_of, load_registered

if TYPE_CHECKING:
    from airflow_mlops.registry.base import ModelRegistry, ModelVersion, RunLogger

log = logging.getLogger(__name__)


def _checked(value: Any) -> Any:
    """Refuse before the training what its result could not hold after it."""
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError("expected a text, a number, a bool or null")


Parameter = Annotated[Any, AfterValidator(_checked)]  # Any, because a DAG file has in its place what Airflow will render


class Spec(NamedTuple):
    """What to train on what.

    * `function`: the user's ``module:function``, imported from `code_path`.
    * `start`: ``champion`` continues from the registry's champion (from scratch when there is none), ``scratch`` never does.
    * `params`: handed to the function, texts, numbers, bools or None; `seed` seeds every source of randomness.
    * `unsafe_models_allowed`: the model, and the champion it starts from, may bring code of its own, such as lambda layers.
    * `formats`: further formats of `training.export.FORMATS`, each ``required`` or ``optional``: without the first the training fails.
    """

    validation: ResultRef
    layout: ArrayLayout
    function: str
    code_path: str
    model_name: str
    tracking_uri: str
    params: dict[str, Parameter]
    start: str = "champion"
    seed: int = 1
    held_out_fraction: float = 0.2
    unsafe_models_allowed: bool = False
    formats: dict[str, str] = {}


Result = TrainingResult


def run(spec: Spec, out_dir: Path) -> TrainingResult:
    """Train, save, and log one MLflow run; nothing is logged of a training that failed but its failure."""
    from airflow_mlops.registry.mlflow import MlflowRegistry
    from airflow_mlops.training.context import TrainingContext
    from airflow_mlops.training.export import save
    from airflow_mlops.training.function import code_authors, code_version, resolve
    from airflow_mlops.training.reproducibility import package_versions, seed_everything
    from airflow_mlops.training.trainer import fit

    validation = load(spec.validation, ValidationResult)
    if refusal := validation.refusal():
        raise refusal
    function, code = resolve(spec.function, Path(spec.code_path)), code_version(Path(spec.code_path))
    train, held_out = read_split(validation.dataset, spec.layout, spec.held_out_fraction)
    registry = MlflowRegistry(spec.tracking_uri)
    champion, initial_model = _start(registry, spec, out_dir)
    origin = {
        "dataset": f"{validation.dataset.dataset} {validation.dataset.name}",
        "dataset_digest": validation.dataset.digest,
        "code_version": code,
        "seed": str(spec.seed),
        "warm_started_from": str(champion.version) if champion else "none",
    }
    metrics: dict[str, float] = {}
    packages = package_versions()
    seed_everything(spec.seed)
    with registry.start_run(spec.model_name, name=f"{spec.model_name}-{validation.dataset.name}", tags=origin) as history:

        def log_metric(name: str, value: float, step: int) -> None:
            metrics[name] = value
            history.log_metric(name, value, step)

        context = TrainingContext(
            inputs=train.inputs,
            labels=train.labels,
            params=spec.params,
            seed=spec.seed,
            num_classes=spec.layout.num_classes,
            log_metric=log_metric,
            out_dir=out_dir,
            initial_model=initial_model,
        )
        exported = save(fit(function, context), train.inputs, out_dir, formats=spec.formats, code_allowed=spec.unsafe_models_allowed)
        _log(history, spec, packages, exported.files)
    model, saved_model, golden = map(Artifact.of, exported[:3])
    return TrainingResult(
        dataset=validation.dataset,
        model=model,
        saved_model=saved_model,
        golden=golden,
        mlflow_run_id=history.run_id,
        mlflow_source=history.artifact_uri,
        metrics=metrics,
        params=dict(spec.params),
        seed=spec.seed,
        code_version=code,
        packages=packages,
        num_train_rows=len(train),
        num_held_out_rows=len(held_out),
        warm_started_from=str(champion.version) if champion else None,
        code_authors=code_authors(Path(spec.code_path)),
        formats={name: Artifact.of(path) for name, path in exported.formats.items()},
        format_problems=exported.problems,
    )


def _start(registry: ModelRegistry, spec: Spec, out_dir: Path) -> tuple[ModelVersion | None, Any]:
    """Return the champion to go on from and its model, or twice None: from scratch, as asked for or because there is no usable champion."""
    if spec.start not in ("champion", "scratch"):
        raise unknown_name("start", spec.start, ("champion", "scratch"))
    champion = champion_of(registry, spec.model_name) if spec.start == "champion" else None
    if champion is None:
        return None, None
    try:
        return champion, load_registered(registry, champion, out_dir, code_allowed=spec.unsafe_models_allowed)
    except (EvaluationError, UnsafeModel) as error:  # a champion that today's Keras can not load, or must not, shall not block its successors
        log.warning("Training from scratch: %s", error)
        return None, None


def _log(history: RunLogger, spec: Spec, packages: Mapping[str, str], files: Iterable[Path]) -> None:
    history.log_params({**spec.params, "seed": spec.seed, "start": spec.start, "function": spec.function})
    history.log_dict(packages, "packages.json")
    for path in files:
        history.log_artifact(path)
