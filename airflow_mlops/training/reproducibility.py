"""The same seed, data and code give the same model: seeding everything, and writing down which packages were there."""

from __future__ import annotations

import platform
import re
from importlib import metadata

from airflow_mlops.exceptions import SpecError


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow with `seed` (0..2**32-1) and make TensorFlow's operations deterministic for the whole process."""
    if not 0 <= seed < 2**32:
        raise SpecError(f"The seed is {seed}; NumPy takes seeds from 0 to 2**32-1.")
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def package_versions() -> dict[str, str]:
    """Return the version of Python and of every installed distribution, by its normalized name: what the process could import."""
    installed: dict[str, str] = {}
    for found in metadata.distributions():
        if name := _name(found):
            installed.setdefault(re.sub(r"[-_.]+", "-", name).lower(), found.version)  # of two, the first on the path is imported
    return {"python": platform.python_version(), **dict(sorted(installed.items()))}


def _name(found: metadata.Distribution) -> str | None:
    """Return a distribution's name; a directory that a broken installation left has none, or, with newer finders, not even metadata."""
    try:
        return found.metadata["Name"] or None
    except FileNotFoundError:
        return None
