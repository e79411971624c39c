"""Train twice in fresh processes and compare; train a registered version again and compare."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlops.artifacts import canonical_json, write_atomically
from airflow_mlops.exceptions import ModelNotFound, RegistryError, SpecError
from airflow_mlops.records import result_of
from airflow_mlops.results import DatasetVersion, TrainingResult, from_data
from airflow_mlops.stages import repeat, train
from airflow_mlops.stages.inputs import layout_of
from airflow_mlops.stages.models import MODEL_FILE, TRAINING_FILE, champion_of, definition_of
from airflow_mlops.stages.process import StageProcess
from airflow_mlops.stages.runner import parse_spec
from airflow_mlops.training.reproducibility import environment_of
from airflow_mlops.training.twin import Divergence, first_divergence
from airflow_mlops.training.weights import Difference, difference

if TYPE_CHECKING:
    from airflow_mlops.registry.base import ModelRegistry, ModelVersion

LogLine = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """How a repeated training compares with the first.

    * `weights`: how the weights differ at the end, None if they are the same to the bit.
    * `divergence`: where the two parted, None if they did not or nobody traced them.
    * `metrics`: of both, by name; None where one has none of that name.
    * `notes`: what was different around them, as sentences.
    """

    weights: Difference | None
    divergence: Divergence | None
    metrics: Mapping[str, tuple[float | None, float | None]]
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether the two are the same model, and came to it the same way as far as was looked."""
        return self.weights is None and self.divergence is None

    def sentence(self) -> str:
        """Return what was found, for a person."""
        if self.same:
            return "The same: every weight is equal to the bit."
        parted = f" {self.divergence.sentence()}" if self.divergence else ""
        if self.weights is None:
            return f"Not the same way: the weights are equal in the end.{parted}"
        return f"Not the same: {self.weights.tensor!r} is the first tensor that differs, by up to {self.weights.largest:.3g} in any.{parted}"

    def data(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        weights = self.weights and {"tensor": self.weights.tensor, "largest": self.weights.largest if math.isfinite(self.weights.largest) else None}
        return {
            "same": self.same,
            "sentence": self.sentence(),
            "weights": weights,
            "divergence": self.divergence and self.divergence._asdict(),
            "metrics": {name: list(pair) for name, pair in self.metrics.items()},
            "notes": list(self.notes),
        }


def twin_run(spec: train.Spec, out_dir: Path, log_line: LogLine, *, env: Mapping[str, str], every: int = 1) -> Comparison:
    """Train twice in fresh processes, compare, and write ``twin.json`` below `out_dir`; the registry is left as it is.

    :param env: the environment of the processes, for instance ``os.environ``.
    :param every: how many steps lie between two looks at the weights; each look reads all of them.
    """
    from airflow_mlops.registry.mlflow import MlflowRegistry

    champion = champion_of(MlflowRegistry(spec.tracking_uri), spec.model_name) if spec.start == "champion" else None
    request = repeat.Spec(spec, train.validated(spec), champion.version if champion else None, every)
    one, other = (_repeat(request, out_dir / name, log_line, env) for name in ("first", "second"))
    divergence = first_divergence(one.trace.path, other.trace.path) if one.trace and other.trace else None
    weights = difference(one.training.model.path, other.training.model.path)
    untraced = "" if one.trace and one.trace.size else "No step was traced: the function does not call model.fit. Only the ends are compared."
    return _written(
        Comparison(weights, divergence, _side_by_side(one.training, other.training), tuple(filter(None, [untraced]))), out_dir / "twin.json"
    )


def rebuild(
    registry: ModelRegistry, version: ModelVersion, out_dir: Path, log_line: LogLine, *, env: Mapping[str, str], changes: Changes
) -> Comparison:
    """Train a registered version again, compare with what is registered, and write ``rebuild.json`` below `out_dir`.

    The run of the version holds all that it takes, beside data and code, which must be there, of the same version.

    :raises RegistryError: the version was trained before this package kept what it takes.
    :raises SpecError: the code is not the one the version was trained by.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir) as scratch:
        spec, then = _remembered(registry, version, Path(scratch))
        registered = registry.download(version, MODEL_FILE, Path(scratch) / MODEL_FILE)
        split = definition_of(registry, version, Path(scratch)) or then.split
        threads = then.environment.num_threads if then.environment else 0
        spec = changes.applied(spec)._replace(layout=layout_of(split), held_out_fraction=split.held_out_fraction, num_threads=threads)
        _check_code(spec, then)
        champion = int(then.warm_started_from) if then.warm_started_from else None
        request = repeat.Spec(spec._replace(start="champion" if champion else "scratch"), changes.dataset or then.dataset, champion)
        now = _repeat(request, out_dir / "again", log_line, env).training
        weights = difference(registered, now.model.path)
    return _written(Comparison(weights, None, _side_by_side(then, now), _notes(then, now)), out_dir / "rebuild.json")


@dataclass(frozen=True)
class Changes:
    """What a rebuild does otherwise than the first training: another version of the data, the same code elsewhere, another address of MLflow."""

    dataset: DatasetVersion | None = None
    code_path: Path | None = None
    tracking_uri: str | None = None

    def applied(self, spec: train.Spec) -> train.Spec:
        """Return `spec` with the changes."""
        code = {"code_path": str(self.code_path), "repository": "", "commit": ""} if self.code_path else {}
        return spec._replace(tracking_uri=self.tracking_uri or spec.tracking_uri, **code)  # type: ignore[arg-type]


def _repeat(request: repeat.Spec, out_dir: Path, log_line: LogLine, env: Mapping[str, str]) -> repeat.Repetition:
    if out_dir.exists():
        raise SpecError(f"{out_dir} exists already. Give another --out, or remove it.")
    out_dir.mkdir(parents=True)
    record = StageProcess("repeat", request, out_dir, env={**env, **environment_of(request.training)}).run(log_line)
    if record.error is not None:
        raise record.error.exception()
    return result_of(record, repeat.Repetition)


def _remembered(registry: ModelRegistry, version: ModelVersion, scratch: Path) -> tuple[train.Spec, TrainingResult]:
    try:
        path = registry.download(version, TRAINING_FILE, scratch / TRAINING_FILE)
    except ModelNotFound as error:
        raise RegistryError(
            f"{version.name} version {version.version} cannot be trained again: its run {version.run_id} does not hold {TRAINING_FILE} "
            f"({error}). Versions that were trained before this package kept it cannot be rebuilt."
        ) from error
    data = json.loads(path.read_bytes())
    return parse_spec("train", data["spec"]), from_data(TrainingResult, data["result"], what=f"{TRAINING_FILE} of run {version.run_id}")


def _check_code(spec: train.Spec, then: TrainingResult) -> None:
    from airflow_mlops.training.function import code_version, sources_digest

    if spec.repository:  # its commit is checked out, whatever is here
        return
    if then.code_version.endswith("+dirty"):
        raise SpecError(
            f"The model was trained by code that no commit holds ({then.code_version}), so nobody can train it again. Commit before training."
        )
    if not Path(spec.code_path).is_dir():
        raise SpecError(f"The code of the model is not in {spec.code_path}: there is no such directory. Say with --code where it is.")
    unknown_to_git = then.code_version.startswith("sha256:")  # where it was trained, such as in an image without Git; here it may know them
    found = (sources_digest if unknown_to_git else code_version)(Path(spec.code_path))
    if found != then.code_version:
        remedy = (
            "Git did not know that code: find the same sources"
            if unknown_to_git
            else f"Check the commit out, for instance by 'git worktree add DIRECTORY {then.code_version}'"
        )
        raise SpecError(
            f"The model was trained by code {then.code_version}; {spec.code_path} is at {found}. {remedy}, and give the directory of the code with "
            "--code."
        )


def _notes(then: TrainingResult, now: TrainingResult) -> tuple[str, ...]:
    """Return what was different around the two trainings."""
    packages = [
        f"Package {name} was {then.packages.get(name, 'not installed')}, is {now.packages.get(name, 'not installed')}."
        for name in sorted({*then.packages, *now.packages})
        if then.packages.get(name) != now.packages.get(name)
    ]
    data = (
        [] if then.dataset.digest == now.dataset.digest else [f"Another dataset: {then.dataset.name} was {then.dataset.digest}, {now.dataset.name}."]
    )
    if then.environment is None or now.environment is None:
        return (*data, *packages)
    old, new = asdict(then.environment), asdict(now.environment)
    around = [f"{name} was {old[name]}, is {new[name]}." for name in old if old[name] != new[name]]
    ended = ["It was ended by the clock, max_seconds: how far it came is not repeated exactly."] if then.stopped_early else []
    unpinned = [] if then.environment.reproducible else ["It was not trained to be reproducible: differences are expected."]
    return (*data, *ended, *unpinned, *around, *packages)


def _side_by_side(one: TrainingResult, other: TrainingResult) -> dict[str, tuple[float | None, float | None]]:
    return {name: (one.metrics.get(name), other.metrics.get(name)) for name in sorted({*one.metrics, *other.metrics})}


def _written(found: Comparison, path: Path) -> Comparison:
    write_atomically(path, canonical_json(found.data()))
    return found
