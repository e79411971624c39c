"""Run a train function and believe only a sound model; `export` saves it in the forms that others need.

Imports Keras and TensorFlow at the top: import it inside a stage only.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from airflow_mlops.exceptions import MlopsError, NonFiniteModel, TrainFunctionError

if TYPE_CHECKING:
    from airflow_mlops.training.context import MetricLogger, TrainingContext

log = logging.getLogger(__name__)


def fit(function: Callable[[TrainingContext], Any], context: TrainingContext) -> keras.Model:
    """Return the model that `function` makes of `context`: a built Keras model whose weights and logged metrics are all finite.

    Raises `TrainFunctionError` if the function raises, exits or returns something else, `NonFiniteModel` for NaN or infinity. Errors of this
    package that come through the function, such as an unavailable registry while logging, pass unchanged.
    """
    watched = dataclasses.replace(context, log_metric=_finite_only(context.log_metric))
    own = os.getpid()
    try:
        model = function(watched)
    except MlopsError:
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # whatever the user's code does, it ends this training and nothing else
        message = re.sub(r"\x1b\[[\d;]*m", "", traceback.format_exception_only(error)[-1]).strip()  # Keras prints bold
        raise TrainFunctionError(f"The train function ended with {message} at {_user_frame(error)}. Mend it and run the stage again.") from error
    finally:
        if os.getpid() != own:  # else there would be two results of one training
            log.error("A process that the train function forked came back from it, and was ended. End such processes with os._exit.")
            os._exit(1)
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
