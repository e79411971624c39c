"""Affine mutators: the picture moves, no pixel value is invented.

Each is an output-to-input map about the image centre, sampled bilinearly; what comes from outside the picture is the low end of the value range
(the background of a digit, black in a photograph). A chain holds at most one affine step (DeepHunter, section 3.2).
"""

from __future__ import annotations

import math
from typing import TypeAlias

import tensorflow as tf

from airflow_mlops.robustness.mutators.base import Mutator, ValueRange, random_uniform

Linear: TypeAlias = tuple[tuple[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def _warp(images: tf.Tensor, linear: Linear, shift: tuple[tf.Tensor, tf.Tensor], fill: float) -> tf.Tensor:
    """Sample (N, H, W, C) at linear @ (x, y) + shift about the centre; all four entries of `linear` and both shifts (pixels) are (N,)."""
    (a, b), (d, e) = linear
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    x, y = (tf.cast(size - 1, tf.float32) / 2.0 for size in (width, height))
    zero = tf.zeros_like(a)
    rows = [a, b, x - a * x - b * y + shift[0], d, e, y - d * x - e * y + shift[1], zero, zero]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack(rows, axis=1),
        output_shape=tf.stack([height, width]),
        fill_value=tf.constant(fill, tf.float32),
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def _horizontal(key: tf.Tensor) -> tf.Tensor:
    """A fair coin per row: 1.0 acts along x, 0.0 along y."""
    return tf.cast(random_uniform(key, 1, stream=1)[:, 0] < 0.5, tf.float32)


def translation(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, value_range: ValueRange) -> tf.Tensor:
    """Move by `severity` of the width or, as the key decides, of the height."""
    one, zero, along_x = tf.ones_like(severity), tf.zeros_like(severity), _horizontal(key)
    width, height = (tf.cast(tf.shape(images)[axis], tf.float32) for axis in (2, 1))
    shift = (-severity * width * along_x, -severity * height * (1.0 - along_x))
    return _warp(images, ((one, zero), (zero, one)), shift, value_range[0])


def scale(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, value_range: ValueRange) -> tf.Tensor:
    """Enlarge by the factor `severity` about the centre."""
    # float64, rounded: TensorFlow's float32 reciprocal depends on the vector width in its last bit, and so on the row's place in the batch.
    zero, inverse = tf.zeros_like(severity), tf.cast(1.0 / tf.cast(severity, tf.float64), tf.float32)
    return _warp(images, ((inverse, zero), (zero, inverse)), (zero, zero), value_range[0])


def shear(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, value_range: ValueRange) -> tf.Tensor:
    """Slant by `severity` pixels per pixel, along x or, as the key decides, along y."""
    one, zero, along_x = tf.ones_like(severity), tf.zeros_like(severity), _horizontal(key)
    return _warp(images, ((one, severity * along_x), (severity * (1.0 - along_x), one)), (zero, zero), value_range[0])


def rotation(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, value_range: ValueRange) -> tf.Tensor:
    """Turn counter-clockwise by `severity` degrees about the centre."""
    # float64, rounded: for the same reason as in `scale`.
    angle = tf.cast(severity, tf.float64) * (math.pi / 180.0)
    cosine, sine = tf.cast(tf.cos(angle), tf.float32), tf.cast(tf.sin(angle), tf.float32)
    zero = tf.zeros_like(severity)
    return _warp(images, ((cosine, -sine), (sine, cosine)), (zero, zero), value_range[0])


TRANSLATION = Mutator(translation, -0.1, 0.1, 0.0, "of the side", True, "objects keep a margin of a tenth of the side; under one pixel on 8x8")
SCALE = Mutator(scale, 0.9, 1.1, 1.0, "times", True, "a tenth larger or smaller keeps the object whole and its strokes apart")
SHEAR = Mutator(shear, -0.15, 0.15, 0.0, "px per px", True, "the slant of ordinary handwriting is within 0.15")
ROTATION = Mutator(rotation, -10.0, 10.0, 0.0, "degrees", True, "upright objects are photographed and written within 10 degrees")
