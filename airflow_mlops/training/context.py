"""What a user's train function receives; light, so that a user's module may import it for its annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras
    import numpy as np
    from numpy.typing import NDArray

    from airflow_mlops.results import DatasetVersion
    from airflow_mlops.training.checkpoints import CheckpointManager

MetricLogger = Callable[[str, float, int], None]


@dataclass(frozen=True)
class TrainingContext:
    """The one argument of a train function, which returns a built `keras.Model`.

    * `inputs`: (N, *input_shape) float32; `labels`: (N,) int64 in 0..num_classes-1. Held-out rows are not among them. Neither can be written.
    * `params`: what the pipeline was given for the function, unchanged.
    * `seed`: every source of randomness is seeded with it already; use it for generators of your own.
    * `initial_model`: the champion to continue from, not compiled, or None to start from scratch.
    * `log_metric`: (name, value, step) to the run's history; the value must be finite.
    * `out_dir`: an existing directory for files of your own.
    * `dataset`: the version that the rows are of; None only where a test of your own made them.
    * `checkpoints`: where an interrupted training goes on from; None keeps none. `fit` uses it, a loop of your own may.
    * `deadline`: epoch seconds at which the training's time is over, or None.
    * `should_stop`: is the time over, or must the process end? Then return the model as it is. `fit` asks it after every batch.
    * `histories`: of every `fit` so far, the metrics by epoch.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    params: Mapping[str, str | int | float | bool | None]
    seed: int
    num_classes: int
    log_metric: MetricLogger
    out_dir: Path
    initial_model: keras.Model | None = None
    dataset: DatasetVersion | None = None
    checkpoints: CheckpointManager | None = None
    deadline: float | None = None
    should_stop: Callable[[], bool] = lambda: False
    histories: list[dict[str, list[float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("inputs", "labels"):
            rows = getattr(self, name).view()
            rows.flags.writeable = False  # a function that scales them in place would train on other rows than it says
            object.__setattr__(self, name, rows)

    def fit(self, model: keras.Model, *, epochs: int, batch_size: int = 32, **arguments: Any) -> dict[str, list[float]]:
        """Train a compiled `model` on the rows and return its metrics by epoch; an interrupted training goes on where it was, to the same weights.

        The rows are shuffled by seed and epoch. Metrics are logged as ``train_...`` and ``val_...``. `arguments` are those of
        `airflow_mlops.training.callback.fit_model`, among them ``callbacks``, and of Keras' ``fit``, such as ``validation_data``.
        """
        from airflow_mlops.training.callback import fit_model

        return fit_model(self, model, epochs=epochs, batch_size=batch_size, **arguments)
