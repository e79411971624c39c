"""What a mutator is, and the random numbers it may use.

TensorFlow's stateless random operations take one key per call, so a row's numbers would depend on its place in the batch. Here every ROW has its
own key: a counter-based hash (MurmurHash3's finaliser) of (key, counter), in integer arithmetic, equal to the bit on every batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from airflow_mlops.exceptions import SpecError, unknown_name

ValueRange: TypeAlias = tuple[float, float]
Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Ints: TypeAlias = npt.NDArray[np.integer[Any]]
Apply: TypeAlias = Callable[[Any, Any, Any, Any], Any]
Relation: TypeAlias = Literal["same", "mirrored", "negated"]


@dataclass(frozen=True)
class Mutator:
    """One way to change an input, with a scale of severities and the range in which its effect on the answer is known.

    `apply(inputs (N, ...), severity (N,) float32 in [0, 1], key (N,) uint32, kind)` returns (N, ...), which the kind then makes legal (clips).
    Severity 0 changes nothing, to the bit; severity 1 is `limit` in `unit`. `preserves` says why up to there a person expects the answer that
    `relation` states: "same", "mirrored" (the label's partner in the kind's `mirrored_labels`, or itself) or "negated" (any other answer, or
    the partner in `negated_labels`). A mutator that `moves` (affine maps) becomes the reference that later steps are measured from; a chain
    holds at most one such step (DeepHunter, section 3.2). One that is `counted` changes whole places, or all, and one at least above severity 0:
    a chain holds it once, so that no sum of small severities exceeds the limit, and what a severity comes to is seen in the mutant.
    """

    apply: Apply
    limit: float
    unit: str
    preserves: str
    relation: Relation = "same"
    moves: bool = False
    counted: bool = False

    def __post_init__(self) -> None:
        if self.relation not in get_args(Relation):
            raise unknown_name("relation of a mutator", self.relation, get_args(Relation))
        if isinstance(self.limit, bool) or not isinstance(self.limit, (int, float)) or not 0.0 < self.limit < math.inf:
            raise SpecError(f"The limit of a mutator is {self.limit!r}; expected a number above 0, what severity 1 is in {self.unit!r}.")


def random_bits(key: tf.Tensor, num: tf.Tensor | int, stream: int) -> tf.Tensor:
    """Return (N, num) uniformly distributed uint32, row i a function of `key[i]` and `stream` only."""
    counter = tf.cast(tf.range(num), tf.uint32) + tf.constant(stream * 0x9E3779B9 & 0xFFFFFFFF, tf.uint32)
    return _mix(_mix(counter)[None, :] + _mix(key ^ tf.constant(0x5BD1E995, tf.uint32))[:, None])


def random_uniform(key: tf.Tensor, num: tf.Tensor | int, stream: int) -> tf.Tensor:
    """Return (N, num) float32 uniform in [0, 1): 24 random bits each, so every value is exact."""
    bits = tf.bitwise.right_shift(random_bits(key, num, stream), tf.constant(8, tf.uint32))
    return tf.cast(bits, tf.float32) * tf.constant(2.0**-24)


def random_sign(key: tf.Tensor, stream: int) -> tf.Tensor:
    """Return (N,) +1.0 or -1.0, a fair coin of each row's key: the direction in which it changes."""
    top = tf.bitwise.right_shift(random_bits(key, 1, stream)[:, 0], tf.constant(31, tf.uint32))
    return tf.cast(top, tf.float32) * 2.0 - 1.0


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


def amount(severity: tf.Tensor, limit: float) -> tf.Tensor:
    """Return severity * limit (N,) float32, by way of float64.

    TensorFlow's optimiser regroups `a * b * constant`, in one graph so and in another otherwise, and the last bit differs; it does not see through
    a cast.
    """
    return tf.cast(tf.cast(severity, tf.float64) * limit, tf.float32)


def drawn(allowed: tf.Tensor, num: tf.Tensor, key: tf.Tensor, *, stream: int) -> tf.Tensor:
    """Return (N, K) bool: `num` (N,) places of each row, or as many as are `allowed` (N, K), all equally likely; fewer are a part of more."""
    lottery = tf.where(allowed, random_uniform(key, tf.shape(allowed)[1], stream), -1.0)
    rank = tf.argsort(tf.argsort(lottery, direction="DESCENDING", stable=True), stable=True)
    return allowed & (rank < num[:, None])


def per_row(values: tf.Tensor) -> tf.Tensor:
    """Return (N,) as (N, 1, 1, 1), to scale images row by row."""
    return values[:, None, None, None]


def _mix(bits: tf.Tensor) -> tf.Tensor:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ tf.bitwise.right_shift(bits, tf.constant(shift, tf.uint32))) * tf.constant(factor, tf.uint32)
    return bits ^ tf.bitwise.right_shift(bits, tf.constant(16, tf.uint32))
