"""Mutators of tabular rows (N, columns): errors that people and machines make when they measure, convert and enter values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import tensorflow as tf

from airflow_mlops.robustness.mutators.base import Mutator, amount, drawn, random_bell, random_uniform

if TYPE_CHECKING:
    from airflow_mlops.robustness.kinds.rows import Rows

NOISE, SHARE = 0.02, 0.2


def is_missing(rows: tf.Tensor, kind: Rows) -> tf.Tensor:
    """Return (N, columns) whether a value is its column's missing code."""
    return rows == tf.constant([math.nan if column.missing is None else column.missing for column in kind.columns], tf.float32)


def settled(rows: tf.Tensor, kind: Rows) -> tf.Tensor:
    """Return rows with numbers rounded where the column is `whole` and clipped to its range, and categories at the nearest code."""
    low, high, is_number = _bounds(kind)
    whole = tf.constant([column.whole for column in kind.columns])
    numbers = tf.clip_by_value(tf.where(whole, tf.round(rows), rows), low, high)
    codes = _codes(kind)
    distance = tf.abs(rows[..., None] - codes)
    # Of two codes equally near the higher, said explicitly: argmin leaves ties open.
    nearest = tf.reduce_max(tf.where(distance == tf.reduce_min(distance, axis=-1, keepdims=True), codes, -math.inf), axis=-1)
    return tf.where(is_missing(rows, kind), rows, tf.where(is_number, numbers, nearest))


def within_range_noise(rows: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Rows) -> tf.Tensor:
    """Add to every number bell-shaped noise with a standard deviation of `severity` * 0.02 of its column's span, within its range."""
    low, high, is_number = _bounds(kind)
    bell = random_bell(key, len(kind.columns), stream=1)
    deviation = (high - low) * amount(severity, NOISE)[:, None]
    noisy = settled(tf.clip_by_value(rows + bell * deviation, low, high), kind)
    return tf.where(is_number & ~is_missing(rows, kind), noisy, rows)


def unit_slip(rows: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Rows) -> tf.Tensor:
    """Multiply or divide one number by its column's unit factor, where that gives another legal value. Any severity above 0 is one slip."""
    low, high, is_number = _bounds(kind)
    factor = tf.constant([column.unit_factor or 1.0 for column in kind.columns], tf.float64)
    # float64, rounded: TensorFlow's float32 division depends in its last bit on the vector width, and so on the row's place in the batch.
    values = tf.cast(rows, tf.float64)
    slipped = tf.cast(tf.stack([values * factor, values / factor], axis=1), tf.float32)
    possible = is_number & ~is_missing(rows, kind)
    # Before rounding to whole numbers, so that 0.4 is no legal 1.
    inside = (slipped >= low) & (slipped <= high)
    slipped = tf.where(inside, settled(slipped, kind), rows[:, None])
    allowed = inside & possible[:, None] & (slipped != rows[:, None])
    shape = tf.shape(allowed)
    once = tf.cast(severity > 0.0, tf.int32)
    chosen = tf.reshape(drawn(tf.reshape(allowed, [shape[0], 2 * len(kind.columns)]), once, key, stream=2), shape)
    return tf.where(chosen[:, 0], slipped[:, 0], tf.where(chosen[:, 1], slipped[:, 1], rows))


def missing_value(rows: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Rows) -> tf.Tensor:
    """Replace values by their column's missing code: at least one, at most one column in five, only where the column may be missing."""
    codes = tf.constant([0.0 if column.missing is None else column.missing for column in kind.columns], tf.float32)
    may_miss = tf.constant([column.missing is not None for column in kind.columns])
    lost = drawn(may_miss & ~is_missing(rows, kind), _few(severity, kind), key, stream=3)
    return tf.where(lost, codes, rows)


def category_swap(rows: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: Rows) -> tf.Tensor:
    """Replace categories by others of their column, all equally likely: at least one, at most one column in five."""
    codes = _codes(kind)
    num_codes = tf.constant([max(1, len(column.categories)) for column in kind.columns])
    place = tf.reduce_sum(tf.cast(rows[..., None] == codes, tf.int32) * tf.range(tf.shape(codes)[1]), axis=-1)
    others = tf.cast(num_codes - 1, tf.float32)
    step = 1 + tf.cast(random_uniform(key, len(kind.columns), stream=4) * others, tf.int32)
    swapped = tf.gather(tf.reshape(codes, [-1]), (place + step) % num_codes + tf.range(len(kind.columns)) * tf.shape(codes)[1])
    is_category = tf.constant([column.kind == "category" for column in kind.columns])
    return tf.where(drawn(is_category & ~is_missing(rows, kind), _few(severity, kind), key, stream=5), swapped, rows)


def _few(severity: tf.Tensor, kind: Rows) -> tf.Tensor:
    """Return (N,) int32 how many columns to change."""
    most = max(1, len(kind.columns) // 5)
    return tf.minimum(tf.cast(tf.math.ceil(amount(severity, SHARE * len(kind.columns))), tf.int32), most)


def _bounds(kind: Rows) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return per column the lowest and the highest number, and whether it holds numbers."""
    low, high = (tf.constant([getattr(column, end) for column in kind.columns], tf.float32) for end in ("low", "high"))
    return low, high, tf.constant([column.kind == "number" for column in kind.columns])


def _codes(kind: Rows) -> tf.Tensor:
    """Return (columns, most codes) float32, padded with infinity."""
    width = max(1, *(len(column.categories) for column in kind.columns))
    return tf.constant([[*map(float, column.categories), *[math.inf] * (width - len(column.categories))] for column in kind.columns], tf.float32)


MUTATORS: dict[str, Mutator] = {
    "within_range_noise": Mutator(within_range_noise, NOISE, "of the span, as deviation", "repeated measurements scatter by a fiftieth of the span"),
    "unit_slip": Mutator(
        unit_slip, 1.0, "whole", "the case is the same when one value was entered in another unit that looks plausible", counted=True
    ),
    "missing_value": Mutator(missing_value, SHARE, "of the columns", "the case is the same when one entry in five is not known", counted=True),
    "category_swap": Mutator(
        category_swap, SHARE, "of the columns", "one wrong entry in five leaves four that tell; not where one category decides", counted=True
    ),
}
