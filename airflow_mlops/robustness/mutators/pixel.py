"""Pixel mutators: values change, nothing moves. Only sums, products and comparisons, so that every batch size gives the same bits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import tensorflow as tf

from airflow_mlops.robustness.constraints import ALPHA
from airflow_mlops.robustness.mutators.base import Mutator, per_row, random_bell, random_sign, random_uniform
from airflow_mlops.robustness.mutators.pictures import DIRECTION, NOISE, VALUES, num_places, replaced, span

if TYPE_CHECKING:
    from airflow_mlops.robustness.kinds.images import Images

BRIGHTNESS, CONTRAST, BLUR, NOISE_DEVIATION = 0.15, 0.3, 0.1, 0.05


def brightness(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Make every value higher or, as the key decides, lower."""
    return images + per_row(severity * random_sign(key, DIRECTION) * (BRIGHTNESS * span(kind.value_range)))


def contrast(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Stretch values about the middle of the value range or, as the key decides, draw them together."""
    middle = sum(kind.value_range) / 2.0
    return images + (images - middle) * per_row(severity * random_sign(key, DIRECTION) * CONTRAST)


def blur(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Give each pixel's two neighbours, along both axes in turn, the same weight; edges repeat."""
    weight = per_row(severity * BLUR)
    own = 1.0 - 2.0 * weight
    padded = tf.concat([images[:, :1], images, images[:, -1:]], axis=1)
    images = images * own + (padded[:, :-2] + padded[:, 2:]) * weight
    padded = tf.concat([images[:, :, :1], images, images[:, :, -1:]], axis=2)
    return images * own + (padded[:, :, :-2] + padded[:, :, 2:]) * weight


def noise(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Add bell-shaped noise."""
    bell = tf.reshape(random_bell(key, math.prod(images.shape[1:]), NOISE), tf.shape(images))
    return images + bell * per_row(severity * (NOISE_DEVIATION * span(kind.value_range)))


def pixel_change(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Replace values, one at least and as many as Eq. 1 allows at most, by uniformly random ones."""
    values = kind.value_range[0] + random_uniform(key, num_places(images), VALUES) * span(kind.value_range)
    return replaced(images, severity, key, values)


MUTATORS: dict[str, Mutator] = {
    "brightness": Mutator(brightness, BRIGHTNESS, "of the range", "a uniform offset under Eq. 1's limit of 0.2 hides no stroke"),
    "contrast": Mutator(contrast, CONTRAST, "of the distance from grey", "no value moves by more than 0.15 of the range"),
    "blur": Mutator(blur, BLUR, "neighbour weight", "each pixel keeps at least 0.64 of itself"),
    "noise": Mutator(noise, NOISE_DEVIATION, "of the range, as deviation", "bounded at 3.46 deviations, so under 0.18 of the range"),
    "pixel_change": Mutator(pixel_change, ALPHA, "of the values", "Eq. 1 allows free values in fewer than 2 % of the places", counted=True),
}
