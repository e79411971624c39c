"""Golden answers: what the model said when it was trained, and so what the served one must say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from airflow_mlops.exceptions import RolloutFailed, ServingError

GOLDEN_TOLERANCE = 1e-4  # absolute; float32 sums in another order differ by about 1e-6 on softmax outputs, another model by far more


def read_golden(path: Path, failure: type[ServingError]) -> dict[str, list[Any]]:
    """Return ``{"inputs": [...], "outputs": [...]}`` of the JSON file, one entry for each row; raise `failure` if it proves nothing.

    An input row is an object by input name where the model has several inputs; ``{"b64": "..."}`` stands for bytes.
    """
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise failure(f"The golden answers {path} can not be read: {error}. Run the training stage again.") from error
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) and data[key] for key in ("inputs", "outputs")):
        raise failure(f'The golden answers {path} must be {{"inputs": [...], "outputs": [...]}} and not empty. Run the training stage again.')
    return data


def check_answers(expected: Any, served: Any, who: str) -> None:
    """Raise `RolloutFailed` about `who` unless the `served` JSON values equal the `expected` ones within `GOLDEN_TOLERANCE`."""
    worst = _distance(expected, served)
    if math.isinf(worst):
        raise RolloutFailed(
            f"{who} answers the golden inputs in another shape than when it was trained, or with NaN or infinity. "
            "Compare the published SavedModel's signature with the training's."
        )
    if worst > GOLDEN_TOLERANCE:
        raise RolloutFailed(
            f"{who} answers the golden inputs differently than when it was trained: by up to {worst:.3g}, allowed {GOLDEN_TOLERANCE:g}. "
            "Compare the published SavedModel and the server's TensorFlow with the training's."
        )


def _distance(want: Any, got: Any) -> float:
    """Return the largest absolute difference of two nested JSON values, infinity where they differ in shape or are not finite numbers."""
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        return max(map(_distance, want, got), default=0.0)
    if isinstance(want, dict) and isinstance(got, dict) and want.keys() == got.keys():
        return max((_distance(want[key], got[key]) for key in want), default=0.0)
    if isinstance(want, int | float) and isinstance(got, int | float) and math.isfinite(want - got):
        return float(abs(want - got))
    return math.inf
