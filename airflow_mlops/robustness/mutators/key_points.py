"""Mutators of poses: (N, joints, 2 or 3) key points x, y in 0..1 of the picture, with an optional confidence.

A joint that was not found stays not found. Maps of the whole pose are similarities: where the result would leave the picture it is slid, and if
it is larger than the picture shrunk, back into it, so that no angle between limbs changes. Every sum over joints is one of integers: the order in
which floats are added depends on the batch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import tensorflow as tf

from airflow_mlops.robustness.mutators.base import Mutator, amount, drawn, random_bell, random_sign, random_uniform

if TYPE_CHECKING:
    from airflow_mlops.robustness.kinds.key_points import KeyPoints

JITTER, SHARE, ENLARGED, SHIFTED, DEGREES = 0.02, 0.2, 0.2, 0.2, 15.0
_UNIT = 2.0**24  # a coordinate as a whole number, exact for float32 in [0.5, 1] and to 6e-8 below
_INWARD = 2.0**-10


def found(points: tf.Tensor, kind: KeyPoints) -> tf.Tensor:
    """Return (N, joints) whether a joint was found: x and y are not both `kind.missing`."""
    return tf.reduce_any(points[..., :2] != kind.missing, axis=-1)


def settled(points: tf.Tensor, places: tf.Tensor, kind: KeyPoints) -> tf.Tensor:
    """Return `points` (N, joints, 2 or 3) with its found joints at `places` (N, joints, 2), clipped to the picture and still found there."""
    places = tf.clip_by_value(places, 0.0, 1.0)
    looks_missing = tf.reduce_all(places == kind.missing, axis=-1, keepdims=True)
    inward = tf.constant([_INWARD if kind.missing < 0.5 else -_INWARD, 0.0])
    places = tf.where(looks_missing, places + inward, places)
    return tf.concat([tf.where(found(points, kind)[..., None], places, points[..., :2]), points[..., 2:]], axis=-1)


def mirror(points: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: KeyPoints) -> tf.Tensor:
    """Mirror left and right: x becomes 1 - x, and what was the left joint is the right one. Any severity above 0 is the whole mirror."""
    flipped = settled(points, tf.stack([1.0 - points[..., 0], points[..., 1]], axis=-1), kind)
    order = tf.range(tf.shape(points)[1])
    if kind.swapped_joints:
        pairs = [*kind.swapped_joints, *((right, left) for left, right in kind.swapped_joints)]
        order = tf.tensor_scatter_nd_update(order, [[here] for here, _ in pairs], [there for _, there in pairs])
    return tf.where((severity > 0.0)[:, None, None], tf.gather(flipped, order, axis=1), points)


def jitter(points: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: KeyPoints) -> tf.Tensor:
    """Move each joint by bell-shaped noise with a standard deviation of `severity` * 0.02 of the pose's longer side."""
    low, high = _box(points[..., :2], found(points, kind))
    deviation = tf.reduce_max(high - low, axis=-1, keepdims=True) * amount(severity, JITTER)[:, None, None]
    shape = tf.shape(points[..., :2])
    bell = tf.reshape(random_bell(key, shape[1] * shape[2], stream=1), shape)
    return settled(points, points[..., :2] + bell * deviation, kind)


def joint_dropout(points: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: KeyPoints) -> tf.Tensor:
    """Lose joints, with confidence 0: above severity 0 at least one and never more than a fifth of those found, so none of fewer than five."""
    present = found(points, kind)
    num_found = tf.reduce_sum(tf.cast(present, tf.int32), axis=1)
    wanted = tf.math.ceil(amount(severity, SHARE) * tf.cast(num_found, tf.float32))
    lost = drawn(present, tf.minimum(tf.cast(wanted, tf.int32), num_found // 5), key, stream=2)
    gone = tf.concat([tf.fill(tf.shape(points[..., :2]), float(kind.missing)), tf.zeros_like(points[..., 2:])], axis=-1)
    return tf.where(lost[..., None], gone, points)


def scale(points: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: KeyPoints) -> tf.Tensor:
    """Make the pose larger or, as the key decides, smaller by `severity` * 0.2 about its centroid."""
    growth = amount(severity, ENLARGED) * random_sign(key, stream=3)
    places = points[..., :2]
    return _fitted(points, places + (places - _centroid(points, kind)) * growth[:, None, None], kind)


def shift(points: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: KeyPoints) -> tf.Tensor:
    """Move the pose by `severity` * 0.2 of the picture along one axis, as the key decides, and by at most as much along the other."""
    full, part = random_sign(key, stream=4), 2.0 * random_uniform(key, 1, stream=5)[:, 0] - 1.0
    along_x = random_sign(key, stream=6) > 0.0
    direction = tf.stack([tf.where(along_x, full, part), tf.where(along_x, part, full)], axis=-1)
    return _fitted(points, points[..., :2] + amount(severity, SHIFTED)[:, None, None] * direction[:, None, :], kind)


def rotation(points: tf.Tensor, severity: tf.Tensor, key: tf.Tensor, kind: KeyPoints) -> tf.Tensor:
    """Turn the pose by `severity` * 15 degrees, either way, about its centroid; `kind.aspect` makes it a rotation of the picture's pixels."""
    # float64, rounded: TensorFlow's cos depends in its last bit on the vector width, and so on the row's place in the batch.
    angle = tf.cast(severity * random_sign(key, stream=7), tf.float64) * math.radians(DEGREES)
    sine, shrunk = tf.sin(angle), tf.cos(angle) - 1.0
    down, right, both = (tf.cast(factor, tf.float32)[:, None] for factor in (sine * kind.aspect, sine * (-1.0 / kind.aspect), shrunk))
    away = points[..., :2] - _centroid(points, kind)
    x, y = away[..., 0], away[..., 1]
    # What is added to a joint is 0 at severity 0, so that the joint stays to the bit.
    turned = tf.stack([x * both + y * right, x * down + y * both], axis=-1)
    return _fitted(points, points[..., :2] + turned, kind)


def _box(places: tf.Tensor, present: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the lowest and the highest x, y (N, 1, 2) of the joints that are present; of none, (inf, -inf), which no joint will use."""
    present = present[..., None]
    low = tf.reduce_min(tf.where(present, places, math.inf), axis=1, keepdims=True)
    return low, tf.reduce_max(tf.where(present, places, -math.inf), axis=1, keepdims=True)


def _centroid(points: tf.Tensor, kind: KeyPoints) -> tf.Tensor:
    """Return the mean place (N, 1, 2) of the joints found, in steps of 6e-8."""
    present = tf.cast(found(points, kind), tf.int64)[..., None]
    total = tf.reduce_sum(tf.cast(points[..., :2] * _UNIT, tf.int64) * present, axis=1, keepdims=True)
    num = tf.maximum(tf.reduce_sum(present, axis=1, keepdims=True), 1)
    return tf.cast(tf.cast(total, tf.float64) / (tf.cast(num, tf.float64) * _UNIT), tf.float32)


def _fitted(points: tf.Tensor, places: tf.Tensor, kind: KeyPoints) -> tf.Tensor:
    """Return `points` at `places`, shrunk if the pose is larger than the picture, and slid into it."""
    low, high = _box(places, found(points, kind))
    size = tf.reduce_max(high - low, axis=-1, keepdims=True)
    # float64, rounded: for the same reason as in `rotation`; exactly 0 for what fits.
    excess = tf.cast(1.0 / tf.cast(tf.maximum(size, 1.0), tf.float64) - 1.0, tf.float32)
    high = high + (high - low) * excess
    slide = tf.maximum(-low, 0.0) - tf.maximum(high - 1.0, 0.0)
    return settled(points, places + (places - low) * excess + slide, kind)


MUTATORS: dict[str, Mutator] = {
    "jitter": Mutator(
        jitter, JITTER, "of the pose's size, as deviation", "people who mark joints differ by more than that from each other (COCO: 0.025 to 0.107)"
    ),
    "joint_dropout": Mutator(joint_dropout, SHARE, "of the joints found", "a person sees the pose when one joint in five is hidden", counted=True),
    "mirror": Mutator(
        mirror, 1.0, "whole", "the mirrored picture shows the same pose with left and right exchanged", "mirrored", moves=True, counted=True
    ),
    "scale": Mutator(scale, ENLARGED, "of the size", "a pose is the same nearer to the camera; no angle changes", moves=True),
    "shift": Mutator(shift, SHIFTED, "of the side", "a pose is the same elsewhere in the picture; nothing leaves it", moves=True),
    "rotation": Mutator(rotation, DEGREES, "degrees", "cameras are held within 15 degrees of level; no angle between limbs changes", moves=True),
}
