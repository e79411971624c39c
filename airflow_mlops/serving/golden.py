"""Golden answers: what the model said when it was trained, and so what the served one must say.

They are kept as JSON, which people can read, and asked as tensors, for a server need not speak JSON: here is the way from one to the other.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from airflow_mlops.exceptions import RolloutFailed, ServingError
from airflow_mlops.serving import tensors
from airflow_mlops.serving.signatures import described, dimensions

GOLDEN_TOLERANCE = 1e-4  # absolute; float32 sums in another order differ by about 1e-6 on softmax outputs, another model by far more


def read_golden(path: Path, failure: type[ServingError]) -> dict[str, list[Any]]:
    """Return ``{"inputs": [...], "outputs": [...]}`` of the JSON file, one entry for each row; raise `failure` if it proves nothing.

    An input row is an object by input name where the model has several inputs; ``{"b64": "..."}`` stands for bytes.
    """
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise failure(f"The golden answers {path} cannot be read: {error}. Run the training stage again.") from error
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) and data[key] for key in ("inputs", "outputs")):
        raise failure(f'The golden answers {path} must be {{"inputs": [...], "outputs": [...]}} and not empty. Run the training stage again.')
    return data


def inputs_of(rows: list[Any], signature: Any) -> dict[str, tensors.Array]:
    """Return golden rows as one array, (N, ...), for each input of a `SignatureDef`; raise `ValueError`, saying why, if it takes no such rows."""
    return {name: _column(rows, name, info, len(signature.inputs)) for name, info in signature.inputs.items()}


def rows_of(outputs: Mapping[str, tensors.Array]) -> Any:
    """Return output arrays as the JSON values of golden answers: one for each row, an object by output name where there are several outputs.

    Strings are text, or ``{"b64": "..."}`` where the output's name ends in ``_bytes``, as by TensorFlow Serving's REST interface. Outputs of
    different numbers of rows come back by name, whole.
    """
    columns = {name: _plain(name, array) for name, array in outputs.items()}
    if len(columns) == 1:
        return next(iter(columns.values()))
    sizes = {array.shape[:1] for array in outputs.values()}
    if len(sizes) > 1 or () in sizes:
        return columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def check_answers(expected: Any, served: Any, who: str) -> None:
    """Raise `RolloutFailed` about `who` unless the `served` JSON values equal the `expected` ones within `GOLDEN_TOLERANCE`."""
    worst = _distance(expected, served)
    if math.isinf(worst):
        raise RolloutFailed(
            f"{who} answers the golden inputs in another shape or with other texts than when it was trained, or with NaN or infinity. "
            "Compare the published SavedModel's signature with the training's."
        )
    if worst > GOLDEN_TOLERANCE:
        raise RolloutFailed(
            f"{who} answers the golden inputs differently than when it was trained: by up to {worst:.3g}, allowed {GOLDEN_TOLERANCE:g}. "
            "Compare the published SavedModel and the server's TensorFlow with the training's."
        )


def _distance(want: Any, got: Any) -> float:
    """Return the largest absolute difference of two nested JSON values, infinity where they differ in shape or text, or are not finite."""
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        return max(map(_distance, want, got), default=0.0)
    if isinstance(want, dict) and isinstance(got, dict) and want.keys() == got.keys():
        return max((_distance(want[key], got[key]) for key in want), default=0.0)
    if isinstance(want, str) and want == got:
        return 0.0
    if isinstance(want, int | float) and isinstance(got, int | float) and math.isfinite(want - got):
        return float(abs(want - got))
    return math.inf


def _column(rows: list[Any], name: str, info: Any, num_inputs: int) -> tensors.Array:
    """Return the rows of one input as an array of its type, (N, ...)."""
    named = isinstance(rows[0], dict) and rows[0].keys() != {"b64"}
    if num_inputs > 1 and not named:
        raise ValueError(f"its rows are no objects by input name, and the signature has {num_inputs} inputs")
    try:
        values = [row[name] for row in rows] if named else rows
        column = _array(values, info.dtype)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"its rows give no {tensors.type_name(info.dtype)} for input {name!r} ({type(error).__name__}: {error})") from error
    dims = dimensions(info)
    if dims is not None and (
        not dims or len(dims) != column.ndim or any(want not in (-1, got) for want, got in zip(dims[1:], column.shape[1:], strict=True))
    ):
        raise ValueError(f"its rows have shape {list(column.shape[1:])}, and input {name!r} takes {described(info)}")
    return column


def _array(values: list[Any], code: int) -> tensors.Array:
    """Return nested lists as an array of a TensorFlow type; raise `ValueError` if they do not fit, or would lose something."""
    if code not in tensors.DTYPES:
        raise ValueError("there is no such type of values")
    if code == tensors.DT_STRING:
        return np.array(_texts(values), dtype=object)
    plain = np.array(values)
    with np.errstate(invalid="ignore"):
        array = plain.astype(tensors.DTYPES[code])
    if plain.dtype.kind not in "biuf" or (array.dtype.kind in "biu" and not np.array_equal(array, plain)):
        raise ValueError("a value is no such number")
    return array


def _texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_texts(item) for item in value]
    return base64.b64decode(value["b64"], validate=True) if isinstance(value, dict) else str(value).encode()


def _plain(name: str, array: tensors.Array) -> Any:
    if array.dtype.kind == "O":
        return _decoded(array.tolist(), as_base64=name.endswith("_bytes"))
    # What NumPy itself has no numbers for, bfloat16 and half, fits into a double.
    return array.tolist() if array.dtype.kind in "biuc" else array.astype(np.float64).tolist()


def _decoded(value: Any, *, as_base64: bool) -> Any:
    if isinstance(value, list):
        return [_decoded(item, as_base64=as_base64) for item in value]
    return {"b64": base64.b64encode(value).decode()} if as_base64 else value.decode(errors="replace")
