"""Keras' ``fit`` that survives an interruption: checkpoints, progress and metrics, told to stop by a clock or by a signal.

Imports Keras and TensorFlow at the top: import it inside a stage only.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from airflow_mlops.exceptions import NonFiniteModel, SpecError
from airflow_mlops.training.memories import best_weights, memory, remember
from airflow_mlops.training.progress import Progress

if TYPE_CHECKING:
    from airflow_mlops.training.context import TrainingContext

log = logging.getLogger(__name__)

REPORT_SECONDS = 5.0  # within an epoch; at its end one is enough
NUM_SHARES = 100  # of a training, that are reported however short they are: a curve of less shows nothing, of more nobody sees


def fit_model(
    context: TrainingContext,
    model: keras.Model,
    *,
    epochs: int,
    batch_size: int = 32,
    steps_per_epoch: int | None = None,
    checkpoint_epochs: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    **arguments: Any,
) -> dict[str, list[float]]:
    """Train a compiled `model` on the context's rows and return its metrics by epoch, those before an interruption too.

    A checkpoint is kept whenever `CheckpointManager.every_seconds` have passed, at the end of every `checkpoint_epochs` epochs, and when
    `should_stop` answers. A later process goes on at the batch after it and, as far as Keras' operations are deterministic, to the same weights; only
    the metrics of the epoch that was cut are means of its rest. `EarlyStopping` and `ReduceLROnPlateau` go on as well, other callbacks begin anew.

    :param epochs: as Keras', of `steps_per_epoch` batches each, by default of as many as the rows fill.
    :param arguments: further ones of Keras' ``fit``; not those that say what is learned from in which order.
    :raises NonFiniteModel: the loss is NaN or infinite; such weights are never kept.
    :raises SpecError: one of `arguments` would change the rows or their order, or a number is less than 1, by which Keras would train nothing.
    """
    if own := {"x", "y", "shuffle", "initial_epoch", "sample_weight", "validation_split"} & arguments.keys():
        raise SpecError(f"context.fit takes no {', '.join(sorted(own))}: it decides the rows and their order itself. Use Keras' own fit for others.")
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("steps_per_epoch", steps_per_epoch or 1)):
        if value < 1:
            raise SpecError(f"context.fit is given {name}={value}; give 1 or more.")
    per_pass = math.ceil(len(context.inputs) / batch_size)
    history = keras.callbacks.History()
    keeper = _Keeper(context, steps_per_epoch or per_pass, batch_size, [history, *callbacks], checkpoint_epochs)
    if keeper.passed:  # a later fit of this training was reached already; what it began with is in its checkpoint
        metrics = keeper.passed[len(context.histories)]
        context.histories.append(metrics)
        return metrics
    keeper.restore(model)
    model.fit(
        _batches(context, batch_size, keeper.position),
        epochs=epochs,
        # Whose time is over trains no further, in a later fit neither; a training that only begins has one batch at least, to be something.
        initial_epoch=epochs if keeper.done or ((keeper.position or context.histories) and context.should_stop()) else keeper.epoch,
        steps_per_epoch=keeper.steps_per_epoch,
        callbacks=[_Uncut(keeper), history, *callbacks, keeper],
        shuffle=False,  # the rows come shuffled
        **{"verbose": 0, **arguments},
    )
    context.histories.append(history.history)
    return dict(history.history)


def order(seed: int, num_rows: int, batch_size: int, first: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of batch `first` and of all after it: pass for pass over `num_rows` rows, each shuffled by `seed` and its number."""
    per_pass = math.ceil(num_rows / batch_size)
    number, batch = divmod(first, per_pass)
    while True:
        rows = np.random.default_rng((seed, number)).permutation(num_rows)
        for start in range(batch * batch_size, num_rows, batch_size):
            yield rows[start : start + batch_size]
        number, batch = number + 1, 0


def _batches(context: TrainingContext, batch_size: int, first: int) -> tf.data.Dataset:
    with tf.device("CPU"):
        inputs, labels = tf.convert_to_tensor(context.inputs), tf.convert_to_tensor(context.labels)
    rows = tf.data.Dataset.from_generator(
        lambda: order(context.seed, len(context.inputs), batch_size, first), output_signature=tf.TensorSpec((None,), tf.int64)
    )
    return rows.map(lambda chosen: (tf.gather(inputs, chosen), tf.gather(labels, chosen))).prefetch(2)


class _Uncut(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Comes first: an epoch that was only cut to its rest is an end of nothing, unless a callback after this one says so."""

    def __init__(self, keeper: _Keeper) -> None:
        super().__init__()
        self.keeper = keeper

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        if not self.keeper.told:
            self.model.stop_training = False


class _Keeper(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Comes last, so that it keeps what the others remember of an epoch."""

    def __init__(
        self,
        context: TrainingContext,
        steps_per_epoch: int,
        batch_size: int,
        others: Sequence[keras.callbacks.Callback],
        checkpoint_epochs: int | None,
    ) -> None:
        super().__init__()
        self.context, self.steps_per_epoch, self.batch_size = context, steps_per_epoch, batch_size
        self.others, self.checkpoint_epochs = others, checkpoint_epochs
        self.base = self.position = 0  # batches before this fit, and of it
        self.epoch = self.in_epoch = self.skipped = 0  # whole epochs, batches of the one that is not, those of it that an earlier attempt saw
        self.done = self.told = False
        self.began = self.saved_at = self.reported_at = time.monotonic()
        self.first = 0
        self.spent = 0.0
        self.checkpoint = context.checkpoints.latest() if context.checkpoints else None
        later = self.checkpoint is not None and len(self.checkpoint.state["histories"]) > len(context.histories)
        self.passed: Sequence[dict[str, list[float]]] = self.checkpoint.state["histories"] if self.checkpoint and later else ()

    def restore(self, model: keras.Model) -> None:
        """Set `model` to the checkpoint, if there is one of this fit."""
        state = self.checkpoint.state if self.checkpoint else {"histories": []}
        if self.context.checkpoints is None or self.checkpoint is None or len(state["histories"]) < len(self.context.histories):
            self.base = self.checkpoint.step if self.checkpoint else 0
            self.checkpoint = None
            return
        self.checkpoint = self.context.checkpoints.restore(model)
        self.base = state["base"]
        self.position, self.epoch, self.in_epoch, self.done = state["position"], state["epoch"], state["in_epoch"], state["done"]
        self.spent, self.first = state["seconds"], self.position

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        if self.checkpoint is not None:
            remember(self.others, self.checkpoint)
            self._log_again(self.checkpoint.state["memories"][0]["history"])

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self.skipped = self.in_epoch if epoch == self.epoch else 0
        self.epoch, self.in_epoch = epoch, self.skipped

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        now, before = time.monotonic(), self.in_epoch
        self.in_epoch = self.skipped + batch + 1
        self.position += self.in_epoch - before
        self.told = self.context.should_stop()
        if now - self.reported_at >= REPORT_SECONDS:
            self._report(now, self.epoch, logs)
        if self.in_epoch >= self.steps_per_epoch:  # Keras would go on for as many batches as were skipped
            self.model.stop_training = self.model.stop_training or self.told or bool(self.skipped)
        elif self.told:
            self._save(now, logs)
            self.model.stop_training = True
        elif self.context.checkpoints and now - self.saved_at >= self.context.checkpoints.every_seconds:
            self._save(now, logs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        now = time.monotonic()
        for name, value in (logs or {}).items():
            self.context.log_metric(_metric(name), float(value), epoch)
        if self.in_epoch < self.steps_per_epoch:
            return  # cut by should_stop, and saved at its last batch
        self.epoch, self.in_epoch = epoch + 1, 0
        self.done = self.model.stop_training and not self.told
        ends_share = (epoch + 1) % max(1, self.params["epochs"] // NUM_SHARES) == 0 or epoch + 1 == self.params["epochs"]
        if self.done or now - self.reported_at >= 1.0 or ends_share:
            self._report(now, epoch + 1, logs)
        often = self.context.checkpoints is not None and now - self.saved_at >= self.context.checkpoints.every_seconds
        if often or self.told or (self.checkpoint_epochs and (epoch + 1) % self.checkpoint_epochs == 0):
            self._save(now, logs)

    def _save(self, now: float, logs: Mapping[str, float] | None) -> None:
        if self.context.checkpoints is None:
            return
        _check_loss(logs, self.position)
        self.context.checkpoints.save(
            self.model,
            self.base + self.position,
            best_weights(self.others),
            base=self.base,
            position=self.position,
            epoch=self.epoch,
            in_epoch=self.in_epoch,
            done=self.done,
            seconds=self.spent + now - self.began,
            histories=self.context.histories,
            memories=[memory(callback) for callback in self.others],
        )
        self.saved_at = time.monotonic()

    def _report(self, now: float, epochs: int, logs: Mapping[str, float] | None) -> None:
        loss = _check_loss(logs, self.position)
        rate = (self.position - self.first) / max(now - self.began, 1e-9)
        left = (self.params["epochs"] * self.steps_per_epoch - self.position) / rate if rate else None
        deadline = self.context.deadline
        if left is not None and deadline is not None:
            left = min(left, max(deadline - time.time(), 0.0))
        progress = Progress(epochs, self.params["epochs"], self.position, loss, rate * self.batch_size, gpu_memory(), left)
        log.info("%s", progress.line())
        self.reported_at = now

    def _log_again(self, history: Mapping[str, Sequence[float]]) -> None:
        """Give this attempt's run the metrics of the epochs before it."""
        for name, values in history.items():
            for epoch, value in enumerate(values):
                self.context.log_metric(_metric(name), value, epoch)


def _metric(name: str) -> str:
    return name if name.startswith("val_") else f"train_{name}"


def _check_loss(logs: Mapping[str, float] | None, step: int) -> float | None:
    if not logs or "loss" not in logs:
        return None
    loss = float(logs["loss"])
    if not math.isfinite(loss):
        raise NonFiniteModel(f"The loss is {loss} at step {step}: the training diverged. Lower the learning rate or check the inputs.")
    return loss


def gpu_memory() -> int | None:
    """Return the most bytes of the first GPU that were in use at a time, None without one."""
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"]) if tf.config.list_logical_devices("GPU") else None
