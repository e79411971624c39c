"""The mutators: every way a campaign may change an image, and the one compiled graph that applies them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import tensorflow as tf

from airflow_mlops.robustness.mutators import affine, pixel
from airflow_mlops.robustness.mutators.base import Floats, Ints, Mutator, ValueRange

# Pixel mutators stand first: a chain that already has an affine step may only draw from them (see `draw.propose`).
MUTATORS: Mapping[str, Mutator] = MappingProxyType(
    {
        "brightness": pixel.BRIGHTNESS,
        "contrast": pixel.CONTRAST,
        "blur": pixel.BLUR,
        "noise": pixel.NOISE,
        "pixel_change": pixel.PIXEL_CHANGE,
        "translation": affine.TRANSLATION,
        "scale": affine.SCALE,
        "shear": affine.SHEAR,
        "rotation": affine.ROTATION,
    }
)
NAMES = tuple(MUTATORS)


def mutate(images: Floats, mutator: Ints, severity: Floats, key: Ints, *, value_range: ValueRange) -> Floats:
    """Return one mutant per row, clipped to `value_range`: the same row always gives the same bits, whatever the batch around it.

    `images` (N, H, W, C) float32; `mutator` (N,) positions in `NAMES`; `severity` (N,) in each mutator's unit; `key` (N,) random 32-bit keys.
    """
    order = np.argsort(mutator, kind="stable")
    sizes = np.bincount(mutator, minlength=len(NAMES)).astype(np.int32)
    grouped = _graph(value_range)(images[order], sizes, severity[order].astype(np.float32), key[order].astype(np.uint32)).numpy()
    mutants: Floats = np.empty_like(grouped)
    mutants[order] = grouped
    return mutants


@functools.cache
def _graph(value_range: ValueRange) -> Callable[..., tf.Tensor]:
    """One graph for campaign and replay alike: another graph could be optimised differently and differ in the last bit."""

    def apply(images: tf.Tensor, sizes: tf.Tensor, severity: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        columns = [tf.split(tensor, sizes, num=len(NAMES)) for tensor in (images, severity, key)]
        mutants = [mutator.apply(*rows, value_range) for mutator, *rows in zip(MUTATORS.values(), *columns, strict=True)]
        return tf.clip_by_value(tf.concat(mutants, axis=0), *value_range)

    signature = [
        tf.TensorSpec((None, None, None, None), tf.float32),
        tf.TensorSpec((len(NAMES),), tf.int32),
        tf.TensorSpec((None,), tf.float32),
        tf.TensorSpec((None,), tf.uint32),
    ]
    return tf.function(apply, input_signature=signature)  # type: ignore[no-any-return]
