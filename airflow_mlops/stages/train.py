"""Stage ``train``: run the user's train function on the rows to learn from, and record where the model comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator

from airflow_mlops.artifacts import Artifact, write_atomically
from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.exceptions import StageStopped
from airflow_mlops.records import ResultRef, load
from airflow_mlops.results import DatasetVersion, TrainingResult, ValidationResult, to_data
from airflow_mlops.stages.code import code_of, features_of
from airflow_mlops.stages.inputs import learned_and_held_out
from airflow_mlops.stages.models import FEATURES, TRAINING_FILE
from airflow_mlops.stages.notes import notes_of
from airflow_mlops.stages.start import start_of
from airflow_mlops.stages.stop import Stop, checkpoints_of, deadline, listening
from airflow_mlops.stages.usage import measure
from airflow_mlops.stages.worker import Participation, Unheard

if TYPE_CHECKING:
    from airflow_mlops.registry.base import ModelRegistry, RunLogger

CARD = "model_card.md"


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
    * `extensions`: modules below `code_path` that are imported first, because they register a team's own layers.
    * `params`: handed to the function, texts, numbers, bools or None; `seed` seeds every source of randomness.
    * `unsafe_models_allowed`: the model, and the champion it starts from, may bring code of its own, such as lambda layers.
    * `reproducible`: the same request gives the same weights, to the bit; without it TensorFlow is free to be faster. `num_threads`: of TensorFlow,
      which the order of its sums follows from; 0 for one per processor.
    * `retrain`: the ``module:function`` for a training that starts from a champion, where it is another than `function`.
    * `repository`, `commit`: the code is that commit (a full hash) of this Git repository, a URL or a path, instead of `code_path`.
    * `features`: ``module:function`` beside the train function, from raw rows to what it learns from; it is served before the model. Empty for none.
    * `max_seconds`: the training's time, that of interrupted attempts included; then the model as it is counts. 0 for no end.
    * `checkpoints`: where each request has a directory of its checkpoints; empty for beside the directories of the tries, which all of them share.
      `checkpoint_seconds`: how much of the training an interruption may cost. `keep_checkpoints`: also when the training is done.
    * `code_authors`: names or e-mail addresses of further authors of the code, whom Git does not name.
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
    extensions: tuple[str, ...] = ()
    seed: int = 1
    held_out_fraction: float = 0.2
    unsafe_models_allowed: bool = False
    formats: dict[str, str] = {}
    features: str = ""
    retrain: str = ""
    repository: str = ""
    commit: str = ""
    reproducible: bool = True
    num_threads: int = 0
    max_seconds: float = 0.0
    checkpoints: str = ""
    checkpoint_seconds: float = 60.0
    keep_checkpoints: bool = False
    code_authors: tuple[str, ...] = ()


Result = TrainingResult


def run(spec: Spec, out_dir: Path, *, registry: ModelRegistry | None = None, dataset: DatasetVersion | None = None) -> TrainingResult | Participation:
    """Train, save, and log one MLflow run; nothing is logged of a training that failed but its failure.

    Where ``TF_CONFIG`` names several workers, this process is one of them, and only the chief saves and logs.

    :param registry: instead of the one at `tracking_uri`; `dataset`: instead of the one that was validated.
    """
    from airflow_mlops.data.readers import read_frame
    from airflow_mlops.registry.mlflow import MlflowRegistry
    from airflow_mlops.training.context import TrainingContext
    from airflow_mlops.training.distributed import join
    from airflow_mlops.training.export import checked_formats, save
    from airflow_mlops.training.function import code_authors, code_version, import_all, resolve
    from airflow_mlops.training.keras_file import Extensions
    from airflow_mlops.training.reproducibility import package_versions, pin, set_seed
    from airflow_mlops.training.trainer import fit
    from airflow_mlops.training.weights import weights_digest

    dataset = dataset or validated(spec)
    environment, formats = pin(reproducible=spec.reproducible, num_threads=spec.num_threads), checked_formats(spec.formats)
    home = code_of(spec, out_dir)
    code, authors = code_version(home), tuple(dict.fromkeys((*code_authors(home), *spec.code_authors)))
    worker = join()
    features = features_of(spec, home, out_dir)
    first, later = (resolve(name, home) for name in (spec.function, spec.retrain or spec.function))  # both now: a misspelt one would wait for its day
    import_all(Path(spec.code_path), spec.extensions)
    registry, frame = registry or MlflowRegistry(spec.tracking_uri), read_frame(dataset)
    with worker.strategy.scope():
        champion, initial_model, start_problem, definition = start_of(registry, spec, frame, out_dir)
    train, held_out = learned_and_held_out(frame, definition)
    function = later if champion else first
    origin = {
        "dataset": f"{dataset.dataset} {dataset.name}",
        "dataset_digest": dataset.digest,
        "code_version": code,
        "seed": str(spec.seed),
        "warm_started_from": str(champion.version) if champion else "none",
    }
    checkpoints = checkpoints_of(spec, {**origin, "split": definition.digest}, out_dir)
    metrics: dict[str, float] = {}
    packages = package_versions()
    set_seed(spec.seed)
    name = f"{spec.model_name}-{dataset.name}"
    log_run = registry.start_run(spec.model_name, name=name, tags=origin) if worker.is_chief else nullcontext[Any](Unheard())
    with log_run as history:

        def log_metric(name: str, value: float, step: int) -> None:
            metrics[name] = value
            history.log_metric(name, value, step)

        stop = Stop(deadline(spec.max_seconds, checkpoints))
        context = TrainingContext(
            inputs=features.of(train.inputs) if features else train.inputs,
            labels=train.labels,
            params=spec.params,
            seed=spec.seed,
            num_classes=spec.layout.num_classes,
            log_metric=log_metric,
            out_dir=out_dir,
            initial_model=initial_model,
            dataset=dataset,
            checkpoints=checkpoints,
            deadline=stop.deadline,
            should_stop=stop.should_stop,
        )
        with worker.strategy.scope(), listening(stop):
            trained = fit(function, context)
        if stop.asked:
            raise StageStopped("The training was told to stop before it was done. Run it again: it goes on from its last checkpoint.")
        if not worker.is_chief:
            return Participation(worker.index, worker.num_workers, weights_digest(trained))
        own: Any = {"code_allowed": spec.unsafe_models_allowed, "extensions": Extensions(spec.code_path, spec.extensions)}
        exported = save(trained, train.inputs, out_dir, features=features, formats=formats, **own)
        _log(history, spec, packages, (*exported.files, *([out_dir / FEATURES] if features else [])))
    model, saved_model, golden = map(Artifact.of, exported[:3])
    result = TrainingResult(
        dataset=dataset,
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
        split=definition,
        warm_started_from=str(champion.version) if champion else None,
        start_problem=start_problem,
        notes=(*notes_of(frame.columns, definition, checkpoints, authors), *exported.notes),
        code_authors=authors,
        formats={name: Artifact.of(path) for name, path in exported.formats.items()},
        format_problems=exported.problems,
        features=Artifact.of(out_dir / FEATURES) if features else None,
        weights_digest=weights_digest(trained),
        environment=environment,
        seconds_before=float(checkpoints.resumed_from.state.get("seconds", 0.0)) if checkpoints.resumed_from else 0.0,
        stopped_early=stop.timed_out,
        resumed_from_step=checkpoints.resumed_from.step if checkpoints.resumed_from else None,
    )
    _remember(history, spec, result, out_dir)
    if not spec.keep_checkpoints:
        checkpoints.clear()
    return result


def _remember(history: RunLogger, spec: Spec, result: TrainingResult, out_dir: Path) -> None:
    """Keep with the run what it takes to train this model again, its card, and what the training used."""
    from airflow_mlops.ledger.evidence.cards import candidate_card
    from airflow_mlops.stages.runner import spec_data

    history.log_dict({"spec": spec_data(spec), "result": to_data(result)}, TRAINING_FILE)
    write_atomically(out_dir / CARD, candidate_card(spec.model_name, result).encode())
    history.log_artifact(out_dir / CARD)
    for name, value in measure(result.seconds_before).metrics().items():
        history.log_metric(name, value, 0)


def validated(spec: Spec) -> DatasetVersion:
    """Return the dataset that the spec's validation let pass; raise what it refused it with."""
    validation = load(spec.validation, ValidationResult)
    if refusal := validation.refusal():
        raise refusal
    return validation.dataset


def _log(history: RunLogger, spec: Spec, packages: Mapping[str, str], files: Iterable[Path]) -> None:
    history.log_params({**spec.params, "seed": spec.seed, "start": spec.start, "function": spec.function})
    history.log_dict(packages, "packages.json")
    for path in files:
        history.log_artifact(path)
