"""Image mutators that move pixels but are no affine map of DeepHunter's: the mirror and the elastic sheet."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from airflow_mlops.robustness.mutators.base import Floats, Mutator, per_row, random_bits
from airflow_mlops.robustness.mutators.pictures import FIELD

if TYPE_CHECKING:
    from airflow_mlops.robustness.kinds.images import Images

ELASTIC = 0.06
NODES = 4
GRID = 256  # weights are whole multiples of 1 / GRID


def horizontal_flip(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Mirror left and right; there is no half a flip, so every severity above 0 is the whole of it."""
    return tf.where(per_row(severity) > 0.0, tf.reverse(images, axis=[2]), images)


def elastic(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Pull at 4x4 knots of a rubber sheet, each in a random direction, and sample bilinearly (Simard et al., ICDAR 2003); edges repeat."""
    height, width, channels = images.shape[1:]
    down, right = _displacement(key, height, width)
    top, down_share = _whole_and_rest(down * (severity * (ELASTIC * height))[:, None] + np.repeat(np.arange(height), width), height)
    left, right_share = _whole_and_rest(right * (severity * (ELASTIC * width))[:, None] + np.tile(np.arange(width), height), width)
    bottom, beside = tf.minimum(top + 1, height - 1), tf.minimum(left + 1, width - 1)
    flat = tf.reshape(images, [-1, height * width, channels])
    corners = [tf.gather(flat, row * width + column, batch_dims=1) for row in (top, bottom) for column in (left, beside)]
    upper = corners[0] * (1.0 - right_share) + corners[1] * right_share
    lower = corners[2] * (1.0 - right_share) + corners[3] * right_share
    return tf.reshape(upper * (1.0 - down_share) + lower * down_share, tf.shape(images))


def _displacement(key: tf.Tensor, height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return two smooth random fields (N, height * width) in [-1, 1).

    Products of whole numbers, summed in float64: exact, so the order in which a matrix product adds them does not matter.
    """
    bits = tf.bitwise.right_shift(random_bits(key, 2 * NODES * NODES, FIELD), tf.constant(24, tf.uint32))
    knots = tf.reshape(tf.cast(tf.cast(bits, tf.int32) - 128, tf.float64), [-1, NODES * NODES])
    field = tf.cast(tf.matmul(knots, tf.constant(_sheet(height, width))), tf.float32) * (1.0 / (128 * GRID * GRID))
    fields = tf.reshape(field, [-1, 2, height * width])
    return fields[:, 0], fields[:, 1]


@functools.cache
def _sheet(height: int, width: int) -> Floats:
    """Return (NODES * NODES, height * width): how much each pixel follows each knot, in whole numbers that add up to at most GRID * GRID."""
    down, right = (_weights(size) for size in (height, width))
    return np.asarray(np.einsum("ai,bj->abij", down, right).reshape(NODES * NODES, height * width))


def _weights(size: int) -> Floats:
    """Return (NODES, size) bell-shaped weights about evenly spaced knots; a distance of one knot is one deviation and a half."""
    places = np.linspace(0.0, NODES - 1.0, size) if size > 1 else np.zeros(1)
    bells = np.exp(-1.125 * (places - np.arange(NODES)[:, None]) ** 2)
    return np.asarray(np.floor(GRID * bells / bells.sum(axis=0)))


def _whole_and_rest(place: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return for (N, P) coordinates, kept within [0, size - 1], the whole part as int32 and the rest (N, P, 1) in [0, 1)."""
    place = tf.clip_by_value(place, 0.0, size - 1.0)
    whole = tf.floor(place)
    return tf.cast(whole, tf.int32), (place - whole)[..., None]


MUTATORS: dict[str, Mutator] = {
    "horizontal_flip": Mutator(
        horizontal_flip, 1.0, "whole", "a mirrored thing is the same thing or its partner in `mirrored_labels`", "mirrored", moves=True, counted=True
    ),
    "elastic": Mutator(elastic, ELASTIC, "of the side", "under half the distance between two knots, so strokes bend and never cross", moves=True),
}
