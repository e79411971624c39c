"""The weights of a model, compared number by number: its Keras file differs with every save, because it holds the time."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_mlops.exceptions import TrainingError

if TYPE_CHECKING:
    import keras
    import numpy as np
    from numpy.typing import NDArray

_MEMBER, _OPTIMIZER = "model.weights.h5", "optimizer/"


class Difference(NamedTuple):
    """The first tensor of two models that differs, by its place in the file, and the largest absolute difference of any tensor (inf: shapes)."""

    tensor: str
    largest: float


def weights_digest(model: keras.Model) -> str:
    """Return ``sha256:<64 hex digits>`` over the bytes of all weights, in the model's order."""
    digest = hashlib.sha256()
    for weight in model.weights:  # one after the other: a model may fill half of the memory
        digest.update(weight.numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def read_weights(keras_file: Path) -> dict[str, NDArray[np.generic]]:
    """Return every weight of a ``.keras`` file by its place in it, in order, without the optimizer's; raise `TrainingError` if it has none."""
    import h5py  # type: ignore[import-untyped]

    found: dict[str, NDArray[np.generic]] = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith(_OPTIMIZER):
            found[name] = item[()]

    try:
        with zipfile.ZipFile(keras_file) as archive, h5py.File(io.BytesIO(archive.read(_MEMBER)), "r") as stored:
            stored.visititems(keep)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{keras_file} holds no weights of a Keras model ({error}). Give a file that model.save() wrote.") from error
    return found


def difference(first: Path, second: Path) -> Difference | None:
    """Return how the weights of two ``.keras`` files differ, None if every one is the same to the bit."""
    import numpy as np

    one, other = read_weights(first), read_weights(second)
    names = [name for name in {**one, **other} if _bits(one.get(name)) != _bits(other.get(name))]
    if not names:
        return None
    if any(name not in one or name not in other or one[name].shape != other[name].shape for name in names):
        return Difference(names[0], float("inf"))
    return Difference(names[0], max(float(np.max(np.abs(one[n].astype(np.float64) - other[n].astype(np.float64)))) for n in names))


def _bits(values: NDArray[np.generic] | None) -> tuple[str, tuple[int, ...], bytes] | None:
    return None if values is None else (values.dtype.str, values.shape, values.tobytes())
