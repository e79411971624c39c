"""The same seed, data and code give the same model: pinning what could differ, and writing down what cannot be pinned."""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from airflow_mlops.exceptions import SpecError
from airflow_mlops.usage import TrainingEnvironment

# What a process must be started with, because it is too late once Python runs: the order of sets of texts, and the library that chooses the
# order of sums by the processor it finds.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "TF_ENABLE_ONEDNN_OPTS": "0"}

log = logging.getLogger(__name__)


def environment_of(spec: Any) -> dict[str, str]:
    """Return the variables that the process of a stage with this spec must be started with: those of `ENVIRONMENT`, if it is `reproducible`."""
    return ENVIRONMENT if getattr(spec, "reproducible", False) else {}


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow with `seed` (0..2**32-1) and make TensorFlow's operations deterministic for the whole process."""
    set_seed(seed)
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def pin(*, reproducible: bool, num_threads: int = 0) -> TrainingEnvironment:
    """If it shall be `reproducible`, pin TensorFlow's operations and threads for the whole process; return what a training then runs in.

    Call it before TensorFlow computes anything: afterwards its threads stay as they are, which is logged and recorded.

    :param num_threads: for each of TensorFlow's two pools; 0 for one per processor that the process may use. The order of sums follows from it.
    :raises SpecError: the number of threads is negative.
    """
    if num_threads < 0:
        raise SpecError(f"num_threads is {num_threads}; give 0, for one per processor, or more.")
    if not reproducible:
        return _environment(reproducible=False)
    if sys.flags.hash_randomization:
        log.warning("PYTHONHASHSEED is not 0: a train function that depends on the order of a set of texts is not reproducible.")
    import tensorflow as tf

    _fix_threads(num_threads or len(os.sched_getaffinity(0)))
    tf.config.experimental.enable_op_determinism()
    return _environment(reproducible=True)


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow with `seed` (0..2**32-1); raise `SpecError` for another number."""
    if not 0 <= seed < 2**32:
        raise SpecError(f"The seed is {seed}; NumPy takes seeds from 0 to 2**32-1.")
    import keras

    keras.utils.set_random_seed(seed)


def _fix_threads(number: int) -> None:
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(number)
        tf.config.threading.set_inter_op_parallelism_threads(number)
    except RuntimeError as error:  # something was computed before, in a process that is not of this training alone
        log.warning("TensorFlow keeps the threads it has: %s", error)


def _environment(*, reproducible: bool) -> TrainingEnvironment:
    import tensorflow as tf

    gpus = [_gpu(tf.config.experimental.get_device_details(gpu)) for gpu in tf.config.list_physical_devices("GPU")]
    return TrainingEnvironment(
        reproducible=reproducible,
        hash_seed_fixed=not sys.flags.hash_randomization,
        num_threads=tf.config.threading.get_intra_op_parallelism_threads(),
        cpu=_first(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo")) or platform.machine(),
        num_cpus=len(os.sched_getaffinity(0)),
        gpus=tuple(gpus),
        gpu_driver=_first(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", Path("/proc/driver/nvidia/version")),
    )


def _gpu(details: dict[str, Any]) -> str:
    return str(details.get("device_name", "unknown GPU"))


def _first(pattern: str, path: Path) -> str | None:
    """Return what a line of a file of the kernel says, None where the kernel has no such file or line."""
    found = re.search(pattern, path.read_text(), flags=re.MULTILINE) if path.is_file() else None
    return found[1].strip() if found else None


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
