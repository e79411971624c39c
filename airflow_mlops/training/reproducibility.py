"""The same seed, data and code give the same model: seeding everything, and writing down which packages were there."""

from __future__ import annotations

import platform
from importlib import metadata

from airflow_mlops.exceptions import SpecError

PACKAGES = ("airflow-mlops", "keras", "mlflow", "numpy", "tensorflow")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow with `seed` (0..2**32-1) and make TensorFlow's operations deterministic for the whole process."""
    if not 0 <= seed < 2**32:
        raise SpecError(f"The seed is {seed}; NumPy takes seeds from 0 to 2**32-1.")
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def package_versions() -> dict[str, str]:
    """Return the version of Python and of each of `PACKAGES` that is installed."""
    installed = {name: metadata.version(name) for name in PACKAGES if _is_installed(name)}
    return {"python": platform.python_version(), **installed}


def _is_installed(name: str) -> bool:
    return any(True for _ in metadata.distributions(name=name))
