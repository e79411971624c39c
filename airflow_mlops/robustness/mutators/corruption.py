"""Corruptions that cameras, sensors and screens cause, in the spirit of ImageNet-C (Hendrycks and Dietterich, ICLR 2019), without its weather.

Each is weak enough for Eq. 1, on most pictures: as strong as ImageNet-C's, they would change the answer of a person too. Only sums, products,
comparisons and float64 where a float32 operation would depend on the vector width, so that every batch size gives the same bits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import tensorflow as tf

from airflow_mlops.robustness.constraints import ALPHA
from airflow_mlops.robustness.mutators.base import Mutator, per_row, random_bell, random_bits, random_sign, random_uniform
from airflow_mlops.robustness.mutators.pictures import (
    AXIS,
    COLOUR,
    CORNER,
    DIRECTION,
    NOISE,
    VALUES,
    neighbours,
    num_places,
    reciprocal,
    replaced,
    span,
)

if TYPE_CHECKING:
    from airflow_mlops.robustness.kinds.images import Images

DEFOCUS, MOTION, SHOT, PIXELATE, GAMMA, POSTERIZE, SATURATE, OCCLUSION = 0.12, 0.15, 0.05, 0.3, 0.75, 0.3, 0.5, 0.13


def defocus_blur(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Average over a disc about each pixel; a neighbour counts by how far the disc's radius reaches into it. Edges repeat."""
    reach = severity * DEFOCUS
    diagonal = tf.maximum(reach - (2.0**0.5 - 1.0), 0.0)
    total = reciprocal(1.0 + 4.0 * (reach + diagonal))
    around = neighbours(images, (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))
    change = (sum(around[1:4], around[0]) - 4.0 * images) * per_row(reach * total)
    return images + change + (sum(around[5:], around[4]) - 4.0 * images) * per_row(diagonal * total)


def motion_blur(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Average along a line through each pixel: level, upright or along a diagonal, as the key decides. Edges repeat."""
    direction = per_row(tf.bitwise.right_shift(random_bits(key, 1, AXIS)[:, 0], tf.constant(30, tf.uint32)))
    ends = neighbours(images, (0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (1, 1), (-1, 1), (1, -1))
    pairs = [before + after for before, after in zip(ends[::2], ends[1::2], strict=True)]
    chosen = pairs[0]
    for number, pair in enumerate(pairs[1:], start=1):
        chosen = tf.where(direction == number, pair, chosen)
    reach = severity * MOTION
    return images + (chosen - 2.0 * images) * per_row(reach * reciprocal(1.0 + 2.0 * reach))


def shot_noise(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Add the noise of counting photons, in its normal approximation: the deviation grows with the root of the light."""
    wide = span(kind.value_range)
    # The root of a double is exact by IEEE 754 on every vector width.
    root = tf.cast(tf.sqrt(tf.maximum(tf.cast(_unit(images, kind), tf.float64), 0.0)), tf.float32)
    bell = tf.reshape(random_bell(key, math.prod(images.shape[1:]), NOISE), tf.shape(images))
    return images + bell * root * per_row(severity * (SHOT * wide))


def impulse_noise(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Set values, one at least and as many as Eq. 1 allows at most, to the lowest or the highest: pepper and salt."""
    salt = random_uniform(key, num_places(images), VALUES) < 0.5
    return replaced(images, severity, key, tf.where(salt, *kind.value_range[::-1]))


def pixelate(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Draw blocks of 2x2 pixels towards their mean."""
    height, width, channels = images.shape[1:]
    even = tf.concat([images, images[:, -1:]], axis=1) if height % 2 else images
    even = tf.concat([even, even[:, :, -1:]], axis=2) if width % 2 else even
    blocks = tf.reshape(even, [-1, even.shape[1] // 2, 2, even.shape[2] // 2, 2, channels])
    rows = blocks[:, :, :1] + blocks[:, :, 1:]
    mean = (rows[:, :, :, :, :1] + rows[:, :, :, :, 1:]) * 0.25
    drawn = blocks + (mean - blocks) * (severity * PIXELATE)[:, None, None, None, None, None]
    return tf.reshape(drawn, tf.shape(even))[:, :height, :width]


def gamma(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Darken by mixing with the picture at gamma 2 (its square) or, as the key decides, lighten as much; black and white stay."""
    unit = _unit(images, kind)
    return images + (unit * unit - unit) * per_row(severity * random_sign(key, DIRECTION) * (GAMMA * span(kind.value_range)))


def posterize(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Leave only levels that stand apart by POSTERIZE of the range at severity 1."""
    step, unit = severity * POSTERIZE, _unit(images, kind)
    level = tf.floor(unit * per_row(reciprocal(step)) + 0.5) * per_row(step)
    return images + tf.where(per_row(step) > 0.0, level - unit, tf.zeros_like(unit)) * span(kind.value_range)


def saturate(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Strengthen colours or, as the key decides, fade them towards the grey of the same light; without three channels there are none."""
    if images.shape[3] != 3:
        return images
    red, green, blue = (images[..., channel : channel + 1] for channel in range(3))
    grey = red * 0.299 + green * 0.587 + blue * 0.114  # ITU-R BT.601
    return images + (images - grey) * per_row(severity * random_sign(key, DIRECTION) * SATURATE)


def occlusion(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Cover one rectangle, of a random corner and colour, with both sides growing to OCCLUSION of the image's (at least one pixel)."""
    corner = random_uniform(key, 2, CORNER)
    covered = []
    for axis, size in enumerate(images.shape[1:3]):
        length = tf.math.ceil(severity * max(1.0, float(int(OCCLUSION * size))))
        first = tf.floor(corner[:, axis] * (size + 1.0 - length))
        place = tf.range(size, dtype=tf.float32)[None, :]
        covered.append((place >= first[:, None]) & (place < (first + length)[:, None]))
    colour = kind.value_range[0] + random_uniform(key, images.shape[3], COLOUR) * span(kind.value_range)
    return tf.where((covered[0][:, :, None] & covered[1][:, None, :])[..., None], colour[:, None, None, :], images)


def _unit(images: tf.Tensor, kind: Images) -> tf.Tensor:
    """Return images with the value range stretched to [0, 1]."""
    return (images - kind.value_range[0]) * (1.0 / span(kind.value_range))


MUTATORS: dict[str, Mutator] = {
    "defocus_blur": Mutator(defocus_blur, DEFOCUS, "px of radius beyond the pixel", "each pixel keeps at least two thirds of itself"),
    "motion_blur": Mutator(motion_blur, MOTION, "px to either side", "each pixel keeps at least three quarters of itself"),
    "shot_noise": Mutator(shot_noise, SHOT, "of the range, as deviation in white", "bounded at 3.46 deviations, so under 0.18 of the range"),
    "impulse_noise": Mutator(impulse_noise, ALPHA, "of the values", "Eq. 1 allows free values in fewer than 2 % of the places"),
    "pixelate": Mutator(pixelate, PIXELATE, "of the way to 2x2 blocks", "each pixel keeps at least 0.77 of itself"),
    "gamma": Mutator(gamma, GAMMA, "of gamma 2", "no value moves by more than 0.19 of the range, and their order stays"),
    "posterize": Mutator(posterize, POSTERIZE, "of the range between levels", "no value moves by more than half a step, 0.15 of the range"),
    "saturate": Mutator(saturate, SATURATE, "of the distance from grey", "light and hue stay, and they tell things apart"),
    "occlusion": Mutator(occlusion, OCCLUSION, "of each side", "fewer than 2 % of the pixels are hidden (Eq. 1), and people see past them"),
}
