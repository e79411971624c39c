"""Models as stages read them: the challenger from its file, the champion from the registry, both by digest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlops.artifacts import path_digest
from airflow_mlops.exceptions import EvaluationError, RegistryError

if TYPE_CHECKING:
    from airflow_mlops.registry.base import ModelRegistry, ModelVersion

MODEL_FILE = "model.keras"


def champion_of(registry: ModelRegistry, name: str) -> ModelVersion | None:
    """Return the champion of model `name`, or None when there is none."""
    from airflow_mlops.registry.base import CHAMPION
    from airflow_mlops.registry.nomination import holder

    return holder(registry, name, CHAMPION)


def load_registered(registry: ModelRegistry, version: ModelVersion, out_dir: Path) -> Any:
    """Return a registered version's Keras model, downloaded to `out_dir`.

    :raises RegistryError: the file is not the one that was registered.
    :raises EvaluationError: Keras can not load it.
    """
    path = registry.download(version, MODEL_FILE, out_dir / f"version-{version.version}.keras")
    digest, expected = path_digest(path)[0], version.tags.get("model_digest")
    if digest != expected:
        raise RegistryError(
            f"The model file of {version.name} version {version.version} has digest {digest}, registered was {expected}. "
            "Somebody replaced it: do not use it, and register the model again."
        )
    return load_model(path)


def load_model(path: Path) -> Any:
    """Return the Keras model in `path`; code hidden in the file (lambda layers) is refused by Keras' safe mode."""
    import keras

    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises nearly anything for a file of another version
        raise EvaluationError(
            f"{path} can not be loaded as a Keras model ({type(error).__name__}: {error}). Save it with this Keras, without lambda layers."
        ) from error
