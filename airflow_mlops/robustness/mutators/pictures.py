"""What image mutators share: a direction from the key, places drawn without replacement, neighbours, and division that is exact to the bit."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from airflow_mlops.robustness.constraints import ALPHA
from airflow_mlops.robustness.mutators.base import ValueRange, random_bits, random_uniform

# Every use of random numbers has a stream of its own; 1 to 99 are for images.
AXIS, NOISE, PLACES, VALUES, DIRECTION, COLOUR, CORNER, FIELD, ORDER = range(1, 10)


def span(value_range: ValueRange) -> float:
    """Return the width of a value range."""
    return value_range[1] - value_range[0]


def reciprocal(values: tf.Tensor) -> tf.Tensor:
    """Return 1 / `values` in float32, and 1 where they are 0.

    By way of float64: TensorFlow's float32 reciprocal depends on the vector width in its last bit, and so on the row's place in the batch.
    """
    wide = tf.cast(values, tf.float64)
    return tf.cast(1.0 / tf.where(wide == 0.0, tf.ones_like(wide), wide), tf.float32)


def neighbours(images: tf.Tensor, *steps: tuple[int, int]) -> list[tf.Tensor]:
    """Return for each step (down, right) of -1, 0 or 1 the pixel that stands there, (N, H, W, C) each; edges repeat."""
    height, width = images.shape[1:3]
    rows = tf.concat([images[:, :1], images, images[:, -1:]], axis=1)
    padded = tf.concat([rows[:, :, :1], rows, rows[:, :, -1:]], axis=2)
    return [padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width] for down, right in steps]


def replaced(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Put `values` (N, `num_places`) into that many random places; `severity` is the share of them, rounded up, that really change.

    One place in each of `num_places` strips of the image, in a random order: so no place is drawn twice, without a lottery over all of them.
    """
    size, most = math.prod(images.shape[1:]), values.shape[1]
    bounds = np.arange(most + 1) * size // most
    strip = tf.math.top_k(random_bits(key, most, ORDER), most).indices
    length = tf.gather(tf.constant(np.diff(bounds), tf.int32), strip)
    within = tf.cast(tf.cast(length, tf.float32) * random_uniform(key, most, PLACES), tf.int32)
    # A product with the largest number below 1 may be rounded up.
    place = tf.gather(tf.constant(bounds[:-1], tf.int32), strip) + tf.minimum(within, length - 1)
    number = tf.range(tf.size(severity))[:, None] * size + place
    flat = tf.reshape(images, [-1])
    drawn = tf.cast(tf.range(most), tf.float32)[None, :] < severity[:, None] * float(most)
    new = tf.where(drawn, values, tf.gather(flat, number))
    return tf.reshape(tf.tensor_scatter_nd_update(flat, number[..., None], new), tf.shape(images))


def num_places(images: tf.Tensor) -> int:
    """Return how many values of an image may become anything: the most that Eq. 1 allows, but at least one."""
    size: int = math.prod(images.shape[1:])
    return max(1, math.ceil(ALPHA * size) - 1)
