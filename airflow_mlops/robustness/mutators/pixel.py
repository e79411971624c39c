"""Pixel mutators: values change, nothing moves. Only sums, products and comparisons, so that every batch size gives the same bits."""

from __future__ import annotations

import tensorflow as tf

from airflow_mlops.robustness.mutators.base import Mutator, ValueRange, per_row, random_bell, random_uniform

MAX_CHANGED = 0.02


def brightness(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, value_range: ValueRange) -> tf.Tensor:
    """Add `severity` of the value range to every value."""
    low, high = value_range
    return images + per_row(severity) * (high - low)


def contrast(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, value_range: ValueRange) -> tf.Tensor:
    """Stretch values by the factor `severity` about the middle of the value range."""
    middle = (value_range[0] + value_range[1]) / 2.0
    return (images - middle) * per_row(severity) + middle


def blur(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, value_range: ValueRange) -> tf.Tensor:
    """Give each pixel's two neighbours, along both axes in turn, the weight `severity` each; edges repeat."""
    weight = per_row(severity)
    padded = tf.concat([images[:, :1], images, images[:, -1:]], axis=1)
    images = images * (1.0 - 2.0 * weight) + (padded[:, :-2] + padded[:, 2:]) * weight
    padded = tf.concat([images[:, :, :1], images, images[:, :, -1:]], axis=2)
    return images * (1.0 - 2.0 * weight) + (padded[:, :, :-2] + padded[:, :, 2:]) * weight


def noise(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, value_range: ValueRange) -> tf.Tensor:
    """Add bell-shaped noise with a standard deviation of `severity` of the value range."""
    shape = tf.shape(images)
    bell = tf.reshape(random_bell(key, tf.reduce_prod(shape[1:]), stream=2), shape)
    return images + bell * per_row(severity) * (value_range[1] - value_range[0])


def pixel_change(images: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, value_range: ValueRange) -> tf.Tensor:
    """Replace the share `severity` of the values, at least one and at most 2 %, by uniformly random ones."""
    low, high = value_range
    shape = tf.shape(images)
    size = tf.reduce_prod(shape[1:])
    most = tf.maximum(1, tf.cast(tf.cast(size, tf.float32) * MAX_CHANGED, tf.int32))
    num = tf.clip_by_value(tf.cast(tf.cast(size, tf.float32) * severity, tf.int32), 1, most)
    lottery = random_uniform(key, size, stream=3)
    threshold = tf.gather(tf.math.top_k(lottery, most).values, num[:, None] - 1, batch_dims=1)
    drawn = tf.reshape(lottery >= threshold, shape)
    return tf.where(drawn, low + tf.reshape(random_uniform(key, size, stream=4), shape) * (high - low), images)


BRIGHTNESS = Mutator(brightness, -0.15, 0.15, 0.0, "of the range", False, "a uniform offset under Eq. 1's limit of 0.2 hides no stroke")
CONTRAST = Mutator(contrast, 0.7, 1.3, 1.0, "times", False, "no value moves by more than 0.15 of the range")
BLUR = Mutator(blur, 0.01, 0.1, 0.0, "neighbour weight", False, "each pixel keeps at least 0.64 of itself")
NOISE = Mutator(noise, 0.01, 0.05, 0.0, "of the range", False, "bounded at 3.46 deviations, so under 0.18 of the range")
PIXEL_CHANGE = Mutator(pixel_change, 0.001, MAX_CHANGED, 0.0, "of the values", False, "Eq. 1 allows free values in fewer than 2 % of the places")
