"""Models as stages read them: the challenger from its file, the champion from the registry, both by digest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlops.artifacts import path_digest
from airflow_mlops.exceptions import EvaluationError, RegistryError
from airflow_mlops.inspection import inspect_keras

if TYPE_CHECKING:
    from airflow_mlops.registry.base import ModelRegistry, ModelVersion

MODEL_FILE = "model.keras"


def champion_of(registry: ModelRegistry, name: str) -> ModelVersion | None:
    """Return the champion of model `name`, or None when there is none."""
    from airflow_mlops.registry.base import CHAMPION
    from airflow_mlops.registry.nomination import holder

    return holder(registry, name, CHAMPION)


def load_registered(registry: ModelRegistry, version: ModelVersion, out_dir: Path, *, code_allowed: bool = False) -> Any:
    """Return a registered version's Keras model, downloaded to `out_dir`.

    :raises RegistryError: the file is not the one that was registered.
    :raises UnsafeModel: it brings code of its own, which is not `code_allowed`, or is no archive of Keras.
    :raises EvaluationError: Keras can not load it.
    """
    path = registry.download(version, MODEL_FILE, out_dir / f"version-{version.version}.keras")
    digest, expected = path_digest(path)[0], version.tags.get("model_digest")
    if digest != expected:
        raise RegistryError(
            f"The model file of {version.name} version {version.version} has digest {digest}, registered was {expected}. "
            "Somebody replaced it: do not use it, and register the model again."
        )
    return load_model(path, code_allowed=code_allowed)


def load_model(path: Path, *, code_allowed: bool = False) -> Any:
    """Return the Keras model in `path`, inspected before Keras opens it; raise `UnsafeModel` or `EvaluationError`.

    Code in the file, of lambda layers, runs only if it is `code_allowed`.
    """
    inspect_keras(path, code_allowed=code_allowed)
    import keras

    try:
        return keras.saving.load_model(path, compile=False, safe_mode=not code_allowed)
    except Exception as error:  # Keras raises nearly anything for a file of another version
        raise EvaluationError(f"{path} can not be loaded as a Keras model ({type(error).__name__}: {error}). Save it with this Keras.") from error
