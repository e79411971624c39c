"""Run a train function, believe only a sound model, and save it in the forms that others need.

Imports Keras and TensorFlow at the top: import it inside a stage only.
"""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from airflow_mlops.artifacts import canonical_json, write_atomically
from airflow_mlops.exceptions import MlopsError, NonFiniteModel, TrainFunctionError, TrainingError
from airflow_mlops.inspection import inspect_graph, inspect_keras

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from airflow_mlops.training.context import MetricLogger, TrainingContext

NUM_GOLDEN = 8


def fit(function: Callable[[TrainingContext], Any], context: TrainingContext) -> keras.Model:
    """Return the model that `function` makes of `context`: a built Keras model whose weights and logged metrics are all finite.

    Raises `TrainFunctionError` if the function raises, exits or returns something else, `NonFiniteModel` for NaN or infinity. Errors of this
    package that come through the function, such as an unavailable registry while logging, pass unchanged.
    """
    watched = dataclasses.replace(context, log_metric=_finite_only(context.log_metric))
    try:
        model = function(watched)
    except MlopsError:
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # whatever the user's code does, it ends this training and nothing else
        message = traceback.format_exception_only(error)[-1].strip()
        raise TrainFunctionError(f"The train function ended with {message} at {_user_frame(error)}. Mend it and run the stage again.") from error
    if not isinstance(model, keras.Model):
        raise TrainFunctionError(f"The train function returned {_described(model)}; expected a built keras.Model.")
    if not model.built:
        raise TrainFunctionError(f"The train function returned model {model.name!r} without weights; give it an Input layer or fit it first.")
    _check_weights(model)
    return model


def _finite_only(log_metric: MetricLogger) -> MetricLogger:
    def log(name: str, value: float, step: int) -> None:
        number = float(value)
        if not math.isfinite(number):
            raise NonFiniteModel(f"Metric {name!r} is {number} at step {step}: the training diverged. Lower the learning rate or check the inputs.")
        log_metric(name, number, step)

    return log


def _check_weights(model: keras.Model) -> None:
    for weight in model.weights:
        values = weight.numpy()
        if not np.all(np.isfinite(values)):
            layer, _, variable = weight.path.rpartition("/")
            raise NonFiniteModel(f"Layer {layer!r} has NaN or infinity in its {variable}. Lower the learning rate or check the inputs.")


def _user_frame(error: BaseException) -> str:
    """Return the last line of the traceback that lies beside the train function, not in a library that it calls."""
    own, *frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return f"its call ({own.line})"
    home = Path(frames[0].filename).parent
    last = [frame for frame in frames if Path(frame.filename).is_relative_to(home)][-1]
    return f"{last.filename}:{last.lineno} in {last.name}: {last.line}"


def _described(value: Any) -> str:
    return "None (is a return missing?)" if value is None else f"a {type(value).__module__}.{type(value).__qualname__}"


def save(model: keras.Model, sample_inputs: NDArray[np.float32], out_dir: Path, *, code_allowed: bool = False) -> tuple[Path, Path, Path]:
    """Write ``model.keras``, ``saved_model/`` and ``golden.json`` below `out_dir` and return the three paths.

    `sample_inputs` is (N, *input_shape), N >= 1. The golden file holds up to 8 of its rows as ``inputs`` and as ``outputs`` what the reloaded
    SavedModel answers: what a server must answer too. Raises `TrainingError` if the model can not be saved, `NonFiniteModel` if it answers NaN,
    `UnsafeModel` if its files bring code of their own, which is not `code_allowed`: whoever loads them next would refuse them.
    """
    samples = np.asarray(sample_inputs[:NUM_GOLDEN], dtype=np.float32)
    if not len(samples):
        raise TrainingError("There is no sample row to ask the saved model about; give at least one.")
    keras_file, saved_model, golden = out_dir / "model.keras", out_dir / "saved_model", out_dir / "golden.json"
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        model.save(keras_file)
        model.export(saved_model, verbose=False)
        outputs = _answers(saved_model, samples)
    except Exception as error:  # Keras and TensorFlow have no common error class
        raise TrainingError(
            f"Model {model.name!r} can not be saved and loaded again as a SavedModel: {type(error).__name__}: {error}. "
            "Use serializable layers and one input and one output tensor."
        ) from error
    inspect_keras(keras_file, code_allowed=code_allowed)
    if not code_allowed:
        inspect_graph(saved_model_pb2.SavedModel.FromString((saved_model / "saved_model.pb").read_bytes()))
    if not np.all(np.isfinite(outputs)):
        raise NonFiniteModel(f"Model {model.name!r} answers NaN or infinity on its own training rows. Check its layers for divisions and logarithms.")
    write_atomically(golden, canonical_json({"inputs": samples.tolist(), "outputs": outputs.tolist()}))
    return keras_file, saved_model, golden


def _answers(saved_model: Path, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    signature = tf.saved_model.load(str(saved_model)).signatures[tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY]
    (name,) = signature.structured_input_signature[1]
    (outputs,) = signature(**{name: tf.constant(samples)}).values()
    return np.asarray(outputs)
