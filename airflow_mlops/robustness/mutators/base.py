"""What a mutator is, and the random numbers it may use.

TensorFlow's stateless random operations take one key per call, so a row's numbers would depend on its place in the batch. Here every ROW has its
own key: a counter-based hash (MurmurHash3's finaliser) of (key, counter), in integer arithmetic, equal to the bit on every batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tensorflow as tf

ValueRange: TypeAlias = tuple[float, float]
Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Ints: TypeAlias = npt.NDArray[np.integer[Any]]
Apply: TypeAlias = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, ValueRange], tf.Tensor]


@dataclass(frozen=True)
class Mutator:
    """A family of label-preserving changes.

    `apply(images (N, H, W, C) float32, severity (N,), key (N,) uint32, (low, high))` returns (N, H, W, C), not yet clipped. `low` and `high` bound
    the severities, in `unit`, at which a person still gives the original label; `neutral` changes nothing; `preserves` says why the bounds hold.
    """

    apply: Apply
    low: float
    high: float
    neutral: float
    unit: str
    affine: bool
    preserves: str


def random_bits(key: tf.Tensor, num: tf.Tensor | int, stream: int) -> tf.Tensor:
    """Return (N, num) uniformly distributed uint32, row i a function of `key[i]` and `stream` only."""
    counter = tf.cast(tf.range(num), tf.uint32) + tf.constant(stream * 0x9E3779B9 & 0xFFFFFFFF, tf.uint32)
    return _mix(_mix(counter)[None, :] + _mix(key ^ tf.constant(0x5BD1E995, tf.uint32))[:, None])


def random_uniform(key: tf.Tensor, num: tf.Tensor | int, stream: int) -> tf.Tensor:
    """Return (N, num) float32 uniform in [0, 1): 24 random bits each, so every value is exact."""
    bits = tf.bitwise.right_shift(random_bits(key, num, stream), tf.constant(8, tf.uint32))
    return tf.cast(bits, tf.float32) * tf.constant(2.0**-24)


def random_bell(key: tf.Tensor, num: tf.Tensor | int, stream: int) -> tf.Tensor:
    """Return (N, num) float32 of mean 0 and standard deviation 1, bell-shaped and within +-3.46.

    It is the sum of the four bytes of a random word (Irwin-Hall): integers are exact where log and cos of Box-Muller depend on the vector width.
    """
    bits = random_bits(key, num, stream)
    parts = [
        tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, tf.constant(shift, tf.uint32)), tf.constant(255, tf.uint32)) for shift in (0, 8, 16, 24)
    ]
    total = tf.cast(tf.add_n([tf.cast(part, tf.int32) for part in parts]), tf.float32)
    return (total - 510.0) * tf.constant((4 * (256.0**2 - 1) / 12) ** -0.5, tf.float32)


def per_row(values: tf.Tensor) -> tf.Tensor:
    """Return (N,) as (N, 1, 1, 1), to scale images row by row."""
    return values[:, None, None, None]


def _mix(bits: tf.Tensor) -> tf.Tensor:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ tf.bitwise.right_shift(bits, tf.constant(shift, tf.uint32))) * tf.constant(factor, tf.uint32)
    return bits ^ tf.bitwise.right_shift(bits, tf.constant(16, tf.uint32))
