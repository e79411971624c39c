"""What JPEG does to a picture: the 8x8 cosine transform of every block is rounded to multiples of coarse steps (ITU-T T.81).

Only the rounding of a baseline JPEG, channel by channel: no entropy coding, which loses nothing, and no colour subsampling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from airflow_mlops.robustness.mutators.base import Floats, Mutator
from airflow_mlops.robustness.mutators.pictures import span

if TYPE_CHECKING:
    from airflow_mlops.robustness.kinds.images import Images

JPEG = 1.0
SIDE = 8
# Whole numbers in float64: every sum below is exact, so the order in which a matrix product adds does not matter, nor does the batch around a row.
BASIS_UNIT, CHANGE_UNIT = 2.0**20, 2.0**10
# T.81, table K.1: steps for luminance at quality 50, by vertical and horizontal frequency.
STEPS = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)


def _basis() -> Floats:
    """Return (64 frequencies, 64 pixels), the orthonormal cosine transform of a block in multiples of 1 / BASIS_UNIT."""
    number = np.arange(SIDE)
    waves = np.cos(np.pi * (2 * number[None, :] + 1) * number[:, None] / (2 * SIDE)) * np.sqrt(2 / SIDE)
    waves[0] /= np.sqrt(2)
    return np.rint(np.kron(waves, waves) * BASIS_UNIT)


BASIS = _basis()


def jpeg(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Images) -> tf.Tensor:
    """Add what the rounding changes: `severity` * JPEG times the steps of quality 50; any height and width, edges repeat up to whole blocks."""
    low, width = kind.value_range[0], span(kind.value_range)
    blocks = _blocks(images)
    levels = tf.floor((tf.cast(blocks, tf.float64) - low) * (255.0 / width) + 0.5)
    waves = tf.matmul(levels, tf.constant(BASIS.T)) * (1.0 / BASIS_UNIT)
    # At severity 0 nothing is rounded, whatever the step.
    coarse = tf.cast(severity, tf.float64)[:, None, None]
    step = tf.where(coarse > 0.0, coarse * JPEG, tf.ones_like(coarse)) * tf.constant(STEPS, tf.float64)
    change = tf.where(coarse > 0.0, tf.floor(waves / step + 0.5) * step - waves, tf.zeros_like(waves))
    whole = tf.matmul(tf.floor(change * CHANGE_UNIT + 0.5), tf.constant(BASIS))
    return images + _picture(tf.cast(whole * (width / 255.0 / BASIS_UNIT / CHANGE_UNIT), tf.float32), images)


def _blocks(images: tf.Tensor) -> tf.Tensor:
    """Return (N, blocks * channels, 64)."""
    height, width, channels = images.shape[1:]
    down, right = -height % SIDE, -width % SIDE
    images = tf.concat([images, *[images[:, -1:]] * down], axis=1)
    images = tf.concat([images, *[images[:, :, -1:]] * right], axis=2)
    tiles = tf.reshape(images, [-1, (height + down) // SIDE, SIDE, (width + right) // SIDE, SIDE, channels])
    num_blocks = (height + down) * (width + right) * channels // SIDE**2
    return tf.reshape(tf.transpose(tiles, [0, 1, 3, 5, 2, 4]), [-1, num_blocks, SIDE**2])


def _picture(blocks: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """Return blocks put together to the shape of `images`, without what was added at the edges."""
    height, width, channels = images.shape[1:]
    rows, columns = -(-height // SIDE), -(-width // SIDE)
    tiles = tf.transpose(tf.reshape(blocks, [-1, rows, columns, channels, SIDE, SIDE]), [0, 1, 4, 2, 5, 3])
    return tf.reshape(tiles, [-1, rows * SIDE, columns * SIDE, channels])[:, :height, :width]


MUTATORS: dict[str, Mutator] = {
    "jpeg": Mutator(jpeg, JPEG, "times the steps of quality 50", "people do not mind quality 50, and few values move by 0.2 of the range"),
}
