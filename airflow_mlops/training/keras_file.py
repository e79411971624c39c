"""The Keras file of a model: what the next stages load, without what only its training needed, and loaded once before it is relied on.

The next stages start in a process of their own and import Keras and the pipeline's `extensions`, nothing else: not the module of the train function.
Imports Keras and TensorFlow at the top: import it inside a stage only.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from airflow_mlops.exceptions import MlopsError, TrainingError
from airflow_mlops.inspection import inspect_keras
from airflow_mlops.training.function import import_all
from airflow_mlops.training.served import Golden, InferenceModel, different

if TYPE_CHECKING:
    from numpy.typing import NDArray

REGISTER = (
    "The next stages import Keras and the pipeline's extensions, nothing else. Put the class or function into a module below code_path, write "
    '@keras.saving.register_keras_serializable(package="...") before it, and name the module in PipelineSpec(extensions=[...]).'
)


class Extensions(NamedTuple):
    """What the stages that load a model import besides Keras: `modules` below `code_path`."""

    code_path: str = ""
    modules: tuple[str, ...] = ()


def write(model: keras.Model, path: Path) -> None:
    """Save `model` without optimizer, loss and metrics: a training that starts from it compiles it itself, and checkpoints keep the optimizer."""
    with _uncompiled(model):
        model.save(path)


def load(path: Path, *, code_allowed: bool) -> keras.Model:
    """Return the model in a Keras file that was inspected; Keras raises nearly anything."""
    return keras.saving.load_model(path, compile=False, safe_mode=not code_allowed)


def check_loads(path: Path, golden: Golden, extensions: Extensions | None, *, code_allowed: bool) -> None:
    """Raise `TrainingError`, saying how to register what is missing, unless the next stages can load the file and it gives the golden answers.

    What needs Keras alone is loaded here, without what the train function registered; the rest in a process of its own, after the `extensions`.
    None for whatever this process has registered.
    """
    rows, expected = golden
    try:
        with contextlib.nullcontext() if extensions is None else _keras_alone():
            model = load(path, code_allowed=code_allowed)
    except Exception as error:  # Keras has no error class of its own
        if not (extensions and extensions.modules):
            raise TrainingError(f"The model is saved and cannot be loaded again: {_first_sentence(error)} {REGISTER}") from error
        found = _loaded_elsewhere(path, rows, extensions, code_allowed=code_allowed)
    else:
        found = _answers(model, rows)
    if (row := different(expected, found)) is not None:
        raise TrainingError(
            f"The saved model, loaded again, answers golden row {row} differently than the trained one: a layer of its own keeps numbers that "
            "are not saved. Keep them with add_weight, or hand them to get_config."
        )


def _answers(model: keras.Model, rows: NDArray[np.float32]) -> NDArray[Any]:
    try:
        return InferenceModel(model).predict(rows)
    except Exception as error:  # whatever the layers of a user raise
        raise TrainingError(
            f"The saved model, loaded again, cannot answer the golden rows: {_first_sentence(error)} A function in it uses what its "
            "file does not hold. Make a registered layer of it."
        ) from error


def _loaded_elsewhere(path: Path, rows: NDArray[np.float32], extensions: Extensions, *, code_allowed: bool) -> NDArray[Any]:
    with TemporaryDirectory() as scratch:
        asked, answered = Path(scratch) / "rows.npy", Path(scratch) / "answers.npy"
        np.save(asked, rows)
        request = json.dumps([str(path), str(asked), str(answered), extensions, code_allowed])
        command = [sys.executable, "-P", "-m", __name__, request]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if ended.returncode:
            reason = (ended.stderr.strip() or f"exit code {ended.returncode}").splitlines()[-1]
            raise TrainingError(f"The model is saved and the next stages cannot load it: {reason} {REGISTER}")
        return np.asarray(np.load(answered, allow_pickle=False))


def _load_here(path: str, asked: str, answered: str, extensions: Extensions, code_allowed: bool) -> None:
    tf.config.set_visible_devices([], "GPU")  # the training has its memory
    import_all(Path(extensions.code_path), extensions.modules)
    inspect_keras(Path(path), code_allowed=code_allowed)
    np.save(answered, _answers(load(Path(path), code_allowed=code_allowed), np.load(asked, allow_pickle=False)))


@contextlib.contextmanager
def _uncompiled(model: keras.Model) -> Iterator[None]:
    """Within the block, neither `model` nor a model in it has what `compile` gave it."""
    taken = []
    for inner in model._flatten_layers():
        if isinstance(inner, keras.Model):
            own = vars(inner)
            taken.append((own, {name: own.pop(name) for name in ("optimizer", "get_compile_config") if name in own}))
            own["get_compile_config"] = lambda: None  # not through setattr: Keras tracks what is set that way
    try:
        yield
    finally:
        for own, kept in taken:
            del own["get_compile_config"]
            own.update(kept)


@contextlib.contextmanager
def _keras_alone() -> Iterator[None]:
    """Within the block, nothing that the train function registered is known to Keras."""
    registered = keras.saving.get_custom_objects()
    kept = dict(registered)
    registered.clear()
    try:
        yield
    finally:
        registered.update(kept)


def _first_sentence(error: Exception) -> str:
    """Return what an error says; Keras adds configurations to it, and wraps it once for every model around the layer."""
    if isinstance(error, MlopsError):
        return str(error)
    plain = re.sub(r"\x1b\[[\d;]*m", "", str(error)).rpartition("Exception encountered:")[2].partition("Full object config")[0]  # Keras prints bold
    said = [part for part in plain.strip().split("\n\n") if not part.startswith("Exception encountered when calling")] or ["no reason"]
    return f"{type(error).__name__}: {said[0].splitlines()[0].partition('. Make sure')[0].rstrip('.')}."


if __name__ == "__main__":
    try:
        path_, asked_, answered_, extensions_, code_allowed_ = json.loads(sys.argv[1])
        _load_here(path_, asked_, answered_, Extensions(*extensions_), code_allowed_)
    except Exception as problem:  # whatever the extensions or Keras raise, the training says it
        sys.exit(_first_sentence(problem))
