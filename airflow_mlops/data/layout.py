"""How columns become model inputs; light, because DAG files name it."""

from __future__ import annotations

from typing import NamedTuple


class ArrayLayout(NamedTuple):
    """How columns become model inputs: all columns but `label_column`, in the frame's order, fill `input_shape` row by row (C order).

    Values are multiplied by `scale` (as in Keras' ``Rescaling``); labels are integers in ``0 .. num_classes - 1``.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    label_column: str = "label"
    scale: float = 1.0
