"""Several requests as one run of the model: which fit together, how they are joined, padded and taken apart. No IO."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np

from airflow_mlops.serving.embedded.orders import BatchingParameters
from airflow_mlops.serving.tensors import Array

Tensors = Mapping[str, Array]
_MOST_PADDING = 4  # times what the requests hold themselves


def num_rows(inputs: Tensors) -> int | None:
    """Return dimension 0 that all inputs share, None if they do not: such a request runs alone."""
    sizes = {array.shape[0] if array.ndim else None for array in inputs.values()}
    return sizes.pop() if len(sizes) == 1 else None


def likeness(inputs: Tensors, parameters: BatchingParameters) -> Hashable:
    """Return what two requests must have in common to be joined: types and all sizes but the first (only their number when padded)."""
    if parameters.pad_variable_length_inputs:
        return tuple(sorted((name, array.dtype.str, array.ndim) for name, array in inputs.items()))
    return tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in inputs.items()))


def batches(rows: Sequence[int], largest: int) -> Iterator[list[int]]:
    """Yield the numbers of the requests that go together, in order and at most `largest` rows each; none is split here."""
    batch: list[int] = []
    total = 0
    for number, size in enumerate(rows):
        if batch and total + size > largest:
            yield batch
            batch, total = [], 0
        batch.append(number)
        total += size
    if batch:
        yield batch


def joined(requests: Sequence[Tensors], parameters: BatchingParameters) -> dict[str, Array]:
    """Return the inputs of alike requests one below the other, padded as `parameters` say; raise `ValueError` if that would be mostly padding."""
    together = {name: _stacked([request[name] for request in requests]) for name in requests[0]}
    rows = next(iter(together.values())).shape[0]
    padding = next((size for size in parameters.allowed_batch_sizes if size >= rows), rows) - rows
    if padding:  # rows that are there already: zeros may be no valid input
        together = {name: np.concatenate([array, np.repeat(array[:1], padding, axis=0)]) for name, array in together.items()}
    return together


def split(outputs: Tensors, rows: Sequence[int], total: int) -> list[dict[str, Array]] | None:
    """Return each request's part of the outputs, or None if an output does not have exactly `total` rows, as many as the run was given."""
    if any(not array.ndim or array.shape[0] != total for array in outputs.values()):
        return None
    ends = np.cumsum(rows)
    return [{name: array[end - size : end] for name, array in outputs.items()} for end, size in zip(ends, rows, strict=True)]


def pieces(inputs: Tensors, rows: int, largest: int) -> Iterator[dict[str, Array]]:
    """Yield one large request as several of at most `largest` rows."""
    for start in range(0, rows, largest):
        yield {name: array[start : start + largest] for name, array in inputs.items()}


def _stacked(arrays: Sequence[Array]) -> Array:
    if len(arrays) == 1:
        return arrays[0]
    if len({array.shape[1:] for array in arrays}) > 1:
        widest = np.max([array.shape[1:] for array in arrays], axis=0)
        rows = sum(array.shape[0] for array in arrays)
        if rows * math.prod(map(int, widest)) > _MOST_PADDING * sum(array.size for array in arrays):
            raise ValueError("They are too unlike to be padded to one size")
        empty = b"" if arrays[0].dtype.kind == "O" else 0
        arrays = [
            np.pad(array, [(0, 0), *((0, int(most - size)) for most, size in zip(widest, array.shape[1:], strict=True))], constant_values=empty)
            for array in arrays
        ]
    return np.concatenate(arrays)
