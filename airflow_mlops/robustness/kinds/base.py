"""What every kind of input shares: one compiled graph that applies all mutators of a campaign, and the constraint of DeepHunter's Eq. 1."""

from __future__ import annotations

import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.robustness import constraints
from airflow_mlops.robustness.mutators.base import Floats, Ints, Mutator

TRACING = threading.Lock()  # arms that begin at the same time wait for one graph instead of making it each


@dataclass(frozen=True)
class InputKind(ABC):
    """What mutators must know of the inputs (value range, joints, columns, synonyms); a member is a frozen dataclass, hashable, and JSON both ways.

    mirrored_labels: pairs of classes that swap under a "mirrored" mutator ("left arm up" and "right arm up").
    negated_labels: pairs of classes that swap under a "negated" one ("praise" and "complaint"); without its pair, any other answer is right.

    `mutators` is the visible dict that users add theirs to; `default` names those a campaign uses unless told otherwise.
    """

    name: ClassVar[str]
    mutators: ClassVar[dict[str, Mutator]]
    default: ClassVar[tuple[str, ...]]
    legend: ClassVar[str] = "Left the seed, right its mutant."  # what the report says of `show`
    shows_both: ClassVar[bool] = False  # `show` of a mutant holds what there is to see of its original
    mirrored_labels: tuple[tuple[int, int], ...] = field(default=(), kw_only=True)
    negated_labels: tuple[tuple[int, int], ...] = field(default=(), kw_only=True)

    @abstractmethod
    def checked(self, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return (N, ...) inputs in the type the campaign computes with; raise `RobustnessError` for what no mutator of this kind can take."""

    @abstractmethod
    def legal(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return mutants (N, ...) clipped to legal values."""

    @abstractmethod
    def distances(self, reference: npt.NDArray[Any], mutants: npt.NDArray[Any]) -> tuple[Ints, Floats]:
        """Return per row (L0: number of places changed, L-infinity: largest change, 1.0 being the whole legal span)."""

    @abstractmethod
    def size(self, inputs: npt.NDArray[Any]) -> Any:
        """Return the number of places that L0 counts in: one number, or (N,) where rows differ (words of a text)."""

    @abstractmethod
    def show(self, original: Any, shown: Any) -> str:
        """Return `shown`, one seed or one mutant of `original`, as HTML for the report; everything taken from data is escaped."""

    def satisfied(self, l0: Ints, linf: Floats, size: Any) -> npt.NDArray[np.bool_]:
        """Return (N,) whether mutants are still the same input, by Eq. 1 unless a kind says otherwise."""
        return constraints.satisfied(l0, linf, size=size, span=1.0)

    def mutate(self, inputs: npt.NDArray[Any], mutator: Ints, severity: Floats, key: Ints, *, names: Sequence[str]) -> npt.NDArray[Any]:
        """Return one legal mutant per row: the same row always gives the same bits, whatever the batch around it.

        `mutator` (N,) are positions in `names`; `severity` (N,) in [0, 1]; `key` (N,) random 32-bit keys.
        """
        sizes = np.bincount(mutator, minlength=len(names)).astype(np.int32)
        with TRACING:
            graph = _graph(self, tuple(self.mutators[name] for name in names), inputs.shape[1:])
        columns = inputs, severity.astype(np.float32), key.astype(np.uint32)
        if (np.diff(mutator) >= 0).all():  # grouped already: the images need not be copied twice
            return _as_many(np.asarray(graph(tf.constant(sizes), *map(tf.constant, columns))), inputs, names)
        order = np.argsort(mutator, kind="stable")
        grouped = _as_many(graph(tf.constant(sizes), *(tf.constant(column[order]) for column in columns)).numpy(), inputs, names)
        mutants: npt.NDArray[Any] = np.empty(inputs.shape, grouped.dtype)
        mutants[order] = grouped
        return mutants


def _as_many(mutants: npt.NDArray[Any], inputs: npt.NDArray[Any], names: Sequence[str]) -> npt.NDArray[Any]:
    if len(mutants) != len(inputs):
        raise RobustnessError(f"{', '.join(names)} made {len(mutants)} mutants of {len(inputs)} inputs; each must return a mutant for every row.")
    return mutants


@functools.lru_cache(maxsize=32)
def _graph(kind: InputKind, mutators: tuple[Mutator, ...], shape: tuple[int, ...]) -> Callable[..., tf.Tensor]:
    """One graph for campaign and replay alike: another graph could be optimised differently and differ in the last bit.

    `shape` is that of one input, so that mutators know it while the graph is made.
    """

    def apply(sizes: tf.Tensor, *columns: tf.Tensor) -> tf.Tensor:
        parts = [tf.split(column, sizes, num=len(mutators)) for column in columns]
        mutants = [tf.ensure_shape(mutator.apply(*rows, kind), (None, *shape)) for mutator, *rows in zip(mutators, *parts, strict=True)]
        return kind.legal(tf.concat(mutants, axis=0))

    signature = [
        tf.TensorSpec((len(mutators),), tf.int32),
        tf.TensorSpec((None, *shape), tf.float32),
        tf.TensorSpec((None,), tf.float32),
        tf.TensorSpec((None,), tf.uint32),
    ]
    try:
        graph: Callable[..., tf.Tensor] = tf.function(apply, input_signature=signature).get_concrete_function()
    except Exception as error:  # whatever a user's mutator raises
        for mutator in mutators if len(mutators) > 1 else ():
            _graph(kind, (mutator,), shape)  # raises for the one to blame
        name = next((name for name, known in kind.mutators.items() if known is mutators[0]), "?")
        raise RobustnessError(
            f"Mutator {name!r} cannot be applied: {' '.join(str(error).split())[-400:]} Expected a function, in TensorFlow, of inputs "
            f"(N, {', '.join(map(str, shape))}) float32, severities (N,), keys (N,) and the kind, that returns mutants of the inputs' shape and type."
        ) from error
    return graph
