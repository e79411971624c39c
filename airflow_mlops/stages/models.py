"""Models as stages read them: the challenger from its file, the champion from the registry, both by digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlops.exceptions import EvaluationError, ModelNotFound, RegistryError, ResultInvalid
from airflow_mlops.inspection import inspect_keras
from airflow_mlops.registry.files import fetch
from airflow_mlops.results import from_data
from airflow_mlops.splits import SPLIT_TAG, SplitDefinition

if TYPE_CHECKING:
    from airflow_mlops.registry.base import ModelRegistry, ModelVersion
    from airflow_mlops.results import TrainingResult

MODEL_FILE, FEATURES, TRAINING_FILE = "model.keras", "features", "training.json"


def champion_of(registry: ModelRegistry, name: str) -> ModelVersion | None:
    """Return the champion of model `name`, or None when there is none."""
    from airflow_mlops.registry.base import CHAMPION
    from airflow_mlops.registry.nomination import holder

    return holder(registry, name, CHAMPION)


def definition_of(registry: ModelRegistry, version: ModelVersion, out_dir: Path) -> SplitDefinition | None:
    """Return by which rows and columns a registered version was trained, None for one whose run does not say it, as in a foreign registry.

    :raises RegistryError: its files are not the registered ones.
    """
    found, expected = _recorded(registry, version, out_dir), version.tags.get(SPLIT_TAG)
    if expected is not None and (found is None or found.digest != expected):
        raise RegistryError(
            f"The {TRAINING_FILE} of {version.name} version {version.version} does not hold the split that was registered ({expected}): it is "
            "missing or was replaced, so the rows that the model has learned from are unknown. Restore it, or register the model again."
        )
    return found


def _recorded(registry: ModelRegistry, version: ModelVersion, out_dir: Path) -> SplitDefinition | None:
    try:
        path = registry.download(version, TRAINING_FILE, out_dir / f"version-{version.version}.{TRAINING_FILE}")
        result = json.loads(path.read_bytes())["result"]
        same = result["model"]["digest"] == version.tags.get("model_digest")
        return from_data(SplitDefinition, result["split"], what=TRAINING_FILE) if same else None  # a record of another model says nothing of this one
    except (ModelNotFound, ResultInvalid, ValueError, KeyError, TypeError):
        return None


def load_registered(registry: ModelRegistry, version: ModelVersion, out_dir: Path, *, code_allowed: bool = False) -> Any:
    """Return a registered version's Keras model, downloaded to `out_dir`.

    :raises RegistryError: the file is not the one that was registered.
    :raises UnsafeModel: it brings code of its own, which is not `code_allowed`, or is no archive of Keras.
    :raises EvaluationError: Keras cannot load it.
    """
    place = out_dir / f"version-{version.version}.keras"
    path = fetch(registry, version, MODEL_FILE, place, version.tags.get("model_digest"))  # a foreign registry has no digests
    return load_model(path, code_allowed=code_allowed)


def load_challenger(training: TrainingResult, *, code_allowed: bool = False) -> Any:
    """Return a training's model of raw rows: behind its features, where it has any; see `load_model`."""
    model = load_model(training.model.path, code_allowed=code_allowed)
    return _behind(training.features.path, model, code_allowed=code_allowed) if training.features else model


def load_champion(registry: ModelRegistry, version: ModelVersion, out_dir: Path, *, code_allowed: bool = False) -> Any:
    """Return a registered version's model of raw rows, behind the features it was trained with; see `load_registered`."""
    model = load_registered(registry, version, out_dir, code_allowed=code_allowed)
    if (expected := version.tags.get("features_digest")) is None:
        return model
    place = fetch(registry, version, FEATURES, out_dir / f"version-{version.version}.features", expected)
    return _behind(place, model, code_allowed=code_allowed)


def _behind(place: Path, model: Any, *, code_allowed: bool) -> Any:
    from airflow_mlops.training.features import Features

    return Features(place, code_allowed=code_allowed).before(model)


def load_model(path: Path, *, code_allowed: bool = False) -> Any:
    """Return the Keras model in `path`, inspected before Keras opens it; raise `UnsafeModel` or `EvaluationError`.

    Code in the file, of lambda layers, runs only if it is `code_allowed`.
    """
    inspect_keras(path, code_allowed=code_allowed)
    from airflow_mlops.training.keras_file import load

    try:
        return load(path, code_allowed=code_allowed)
    except Exception as error:  # Keras raises nearly anything for a file of another version
        raise EvaluationError(f"{path} cannot be loaded as a Keras model ({type(error).__name__}: {error}). Save it with this Keras.") from error
