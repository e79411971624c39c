"""How columns become model inputs; light, because DAG files name it."""

from __future__ import annotations

from typing import NamedTuple


class ArrayLayout(NamedTuple):
    """How columns become model inputs: `columns`, in this order, fill `input_shape` row by row (C order).

    Values are multiplied by `scale` (as in Keras' ``Rescaling``); labels are integers in ``0 .. num_classes - 1``. Columns that are named are
    taken by name, and others of the file are no inputs. Without names all columns but `label_column` are inputs: in the order of the champion,
    where there is one with the same shape, else in that of the file; a later file must have the same ones.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    label_column: str = "label"
    scale: float = 1.0
    columns: tuple[str, ...] = ()
