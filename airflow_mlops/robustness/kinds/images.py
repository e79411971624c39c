"""Images: (N, height, width, channels) floats in a value range."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness import constraints
from airflow_mlops.robustness.kinds.base import InputKind
from airflow_mlops.robustness.mutators import affine, corruption, geometry, jpeg, pixel
from airflow_mlops.robustness.mutators.base import Floats, Ints, Mutator, ValueRange

CHANNELS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Images(InputKind):
    """Images with every value in `value_range`, which is black to white in the report."""

    name: ClassVar[str] = "images"
    mutators: ClassVar[dict[str, Mutator]] = {
        **pixel.MUTATORS,
        **affine.MUTATORS,
        **geometry.MUTATORS,
        **jpeg.MUTATORS,
        **corruption.MUTATORS,
    }
    default: ClassVar[tuple[str, ...]] = (*pixel.MUTATORS, *affine.MUTATORS)  # DeepHunter's nine

    value_range: ValueRange = (0.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.value_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise SpecError(f"value_range is {self.value_range}; expected two finite numbers, the lower one first, for example (0.0, 1.0).")

    def checked(self, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if inputs.ndim != 4 or inputs.shape[0] == 0 or not np.issubdtype(inputs.dtype, np.floating):
            raise RobustnessError(
                f"The inputs are {inputs.dtype} of shape {inputs.shape}; expected floating-point images of shape (N, height, width, channels), "
                "N >= 1. Convert and reshape them, for example images.astype('float32')[..., None]."
            )
        if inputs.shape[1] in CHANNELS and inputs.shape[3] not in CHANNELS:
            raise RobustnessError(
                f"The inputs of shape {inputs.shape} look like images with their channels first; expected (N, height, width, channels). A rotation "
                "would mix colours. Give the model channels last, or attack it as another kind: attack={'kind': {'name': 'rows', ...}}."
            )
        low, high = self.value_range
        # Written so that NaN fails too.
        if not bool(((inputs >= low) & (inputs <= high)).all()):
            raise RobustnessError(
                f"The inputs hold NaN or values outside value_range {self.value_range}: they span {inputs.min()} to {inputs.max()}. "
                "Scale them, or set value_range to what the model expects."
            )
        return inputs.astype(np.float32)

    def legal(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(inputs, *self.value_range)

    def distances(self, reference: npt.NDArray[Any], mutants: npt.NDArray[Any]) -> tuple[Ints, Floats]:
        l0, linf = constraints.distances(reference, mutants)
        return l0, linf / (self.value_range[1] - self.value_range[0])

    def size(self, inputs: npt.NDArray[Any]) -> Any:
        return inputs[0].size

    def show(self, original: Any, shown: Any) -> str:
        """Return an <img>; other than 3 channels are averaged to grey."""
        low, high = self.value_range
        picture = shown if shown.shape[-1] == 3 else shown.mean(axis=-1, keepdims=True)
        pixels = np.rint((picture - low) / (high - low) * 255.0).clip(0, 255).astype(np.uint8)
        return f'<img alt="" src="data:image/png;base64,{base64.b64encode(tf.io.encode_png(pixels).numpy()).decode()}">'
