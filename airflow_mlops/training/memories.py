"""What Keras' callbacks remember of earlier epochs: a part of the training, without which patience would begin anew after an interruption.

Imports Keras at the top: import it inside a stage only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

from airflow_mlops.exceptions import CheckpointMismatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from airflow_mlops.training.checkpoints import Checkpoint

MEMORIES: Mapping[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.History: ("epoch", "history"),
}


def memory(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """Return what `callback` remembers as JSON-ready data; nothing of a kind that is not in `MEMORIES`."""
    names = next((names for kind, names in MEMORIES.items() if isinstance(callback, kind)), ())
    return {name: _plain(getattr(callback, name)) for name in names}


def best_weights(callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, NDArray[Any]]:
    """Return the weights that callbacks keep of the best epoch, by the number of the callback and of the weight."""
    return {
        f"{number}/{index}": weight
        for number, callback in enumerate(callbacks)
        if isinstance(callback, tuple(MEMORIES))
        for index, weight in enumerate(getattr(callback, "best_weights", None) or ())
    }


def remember(callbacks: Sequence[keras.callbacks.Callback], checkpoint: Checkpoint) -> None:
    """Give `callbacks` back what they remembered when `checkpoint` was saved; they must be the same ones in the same order.

    :raises CheckpointMismatch: there are more or fewer of them.
    """
    if len(callbacks) != len(checkpoint.state["memories"]):
        raise CheckpointMismatch(
            f"The checkpoint {checkpoint.path} was saved with more or fewer callbacks than this attempt has. Give context.fit the same ones in the "
            "same order in every attempt, or remove the checkpoint to begin anew."
        )
    for number, (callback, remembered) in enumerate(zip(callbacks, checkpoint.state["memories"], strict=True)):
        for name, value in remembered.items():
            setattr(callback, name, value)
        weights = {int(name.partition("/")[2]): value for name, value in checkpoint.arrays.items() if name.startswith(f"{number}/")}
        if weights:
            callback.best_weights = [weights[index] for index in sorted(weights)]


def _plain(value: Any) -> Any:
    """Return `value` with plain numbers in the place of NumPy's and TensorFlow's."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, int | str) else float(value)
