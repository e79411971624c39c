"""Affine mutators: the picture moves, no pixel value is invented.

Each is an output-to-input map about the image centre, sampled bilinearly; what comes from outside the picture is the low end of the value range
(the background of a digit, black in a photograph). A chain holds at most one affine step (DeepHunter, section 3.2).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import tensorflow as tf

from airflow_mlops.robustness.mutators.base import Mutator, random_sign, random_uniform
from airflow_mlops.robustness.mutators.pictures import AXIS, DIRECTION, reciprocal

if TYPE_CHECKING:
    from airflow_mlops.robustness.kinds.images import Images

Linear: TypeAlias = tuple[tuple[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
TRANSLATION, SCALE, SHEAR, ROTATION = 0.1, 0.1, 0.15, 10.0


def _warp(images: tf.Tensor, linear: Linear, shift: tuple[tf.Tensor, tf.Tensor], fill: float) -> tf.Tensor:
    """Sample (N, H, W, C) at linear @ (x, y) + shift about the centre; all four entries of `linear` and both shifts (pixels) are (N,)."""
    (a, b), (d, e) = linear
    height, width = images.shape[1:3]
    x, y = (width - 1) / 2.0, (height - 1) / 2.0
    zero = tf.zeros_like(a)
    rows = [a, b, x - a * x - b * y + shift[0], d, e, y - d * x - e * y + shift[1], zero, zero]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack(rows, axis=1),
        output_shape=[height, width],
        fill_value=tf.constant(fill, tf.float32),
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def _horizontal(key: tf.Tensor) -> tf.Tensor:
    """A fair coin per row: 1.0 acts along x, 0.0 along y."""
    return tf.cast(random_uniform(key, 1, AXIS)[:, 0] < 0.5, tf.float32)


def translation(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Move along the width or the height, back or forth, as the key decides."""
    one, zero, along_x = tf.ones_like(severity), tf.zeros_like(severity), _horizontal(key)
    height, width = images.shape[1:3]
    share = severity * TRANSLATION * random_sign(key, DIRECTION)
    return _warp(images, ((one, zero), (zero, one)), (share * width * along_x, share * height * (1.0 - along_x)), kind.value_range[0])


def scale(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Enlarge or, as the key decides, reduce about the centre."""
    zero, inverse = tf.zeros_like(severity), reciprocal(1.0 + severity * SCALE * random_sign(key, DIRECTION))
    return _warp(images, ((inverse, zero), (zero, inverse)), (zero, zero), kind.value_range[0])


def shear(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Slant along x or y, to either side, as the key decides."""
    one, zero, along_x = tf.ones_like(severity), tf.zeros_like(severity), _horizontal(key)
    slant = severity * SHEAR * random_sign(key, DIRECTION)
    return _warp(images, ((one, slant * along_x), (slant * (1.0 - along_x), one)), (zero, zero), kind.value_range[0])


def rotation(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Turn about the centre, one way or, as the key decides, the other."""
    # float64, rounded: TensorFlow's float32 cosine depends on the vector width in its last bit, and so on the row's place in the batch.
    angle = tf.cast(severity, tf.float64) * (ROTATION * math.pi / 180.0)
    cosine, sine = tf.cast(tf.cos(angle), tf.float32), tf.cast(tf.sin(angle), tf.float32) * random_sign(key, DIRECTION)
    zero = tf.zeros_like(severity)
    return _warp(images, ((cosine, -sine), (sine, cosine)), (zero, zero), kind.value_range[0])


MUTATORS: dict[str, Mutator] = {
    "translation": Mutator(
        translation, TRANSLATION, "of the side", "objects keep a margin of a tenth of the side; under one pixel on 8x8", moves=True
    ),
    "scale": Mutator(scale, SCALE, "of the size", "a tenth larger or smaller keeps the object whole and its strokes apart", moves=True),
    "shear": Mutator(shear, SHEAR, "px per px", "the slant of ordinary handwriting is within 0.15", moves=True),
    "rotation": Mutator(rotation, ROTATION, "degrees", "upright objects are photographed and written within 10 degrees", moves=True),
}
