"""What a user's train function receives; light, so that a user's module may import it for its annotations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras
    import numpy as np
    from numpy.typing import NDArray

MetricLogger = Callable[[str, float, int], None]


@dataclass(frozen=True)
class TrainingContext:
    """The one argument of a train function, which returns a built `keras.Model`.

    * `inputs`: (N, *input_shape) float32; `labels`: (N,) int64 in 0..num_classes-1. Held-out rows are not among them.
    * `params`: what the pipeline was given for the function, unchanged.
    * `seed`: every source of randomness is seeded with it already; use it for generators of your own.
    * `initial_model`: the champion to continue from, or None to start from scratch.
    * `log_metric`: (name, value, step) to the run's history; the value must be finite.
    * `out_dir`: an existing directory for files of your own.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    params: Mapping[str, str | int | float | bool | None]
    seed: int
    num_classes: int
    log_metric: MetricLogger
    out_dir: Path
    initial_model: keras.Model | None = None
