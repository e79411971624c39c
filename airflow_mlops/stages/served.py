"""What is judged is what is served: the SavedModel of a training answers the held-out rows, and the Keras file that is attacked agrees with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_mlops.exceptions import EvaluationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from airflow_mlops.evaluation.comparison import Predictor
    from airflow_mlops.results import TrainingResult


class Challenger(NamedTuple):
    """The `model` as a server runs it, and the largest absolute `difference` between its answers and those of the Keras file."""

    model: Predictor
    difference: float


def served_challenger(training: TrainingResult, keras_model: Any, rows: NDArray[np.float32]) -> Challenger:
    """Return the SavedModel of a `training`, having asked it and `keras_model`, which the robustness campaign attacks, all `rows` (N, ...).

    :raises EvaluationError: they answer differently, or TensorFlow cannot load the SavedModel.
    """
    import numpy as np

    from airflow_mlops.training.served import TOLERANCE, InferenceModel, ServedModel, different

    try:
        model = ServedModel(training.saved_model.path)
        served, attacked = model.predict(rows), InferenceModel(keras_model).predict(rows)
    except Exception as error:  # TensorFlow and Keras raise anything
        problem = str(error).strip().partition("\n")[0]
        raise EvaluationError(
            f"The challenger cannot answer rows of shape {rows.shape[1:]}: {type(error).__name__}: {problem}. Train it again."
        ) from error
    if (row := different(served, attacked)) is not None:
        raise EvaluationError(
            f"The SavedModel that would be served answers held-out row {row} as {served[row].tolist()}, the Keras file as {attacked[row].tolist()}; "
            f"expected the same choice, and a difference of {TOLERANCE:g} at most. What is measured would not be what is served: train it again."
        )
    return Challenger(model, float(np.abs(served - attacked).max()))
