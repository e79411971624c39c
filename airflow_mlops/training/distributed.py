"""One training in several processes, by TensorFlow's `MultiWorkerMirroredStrategy`, which reads ``TF_CONFIG`` by itself.

Keras 3.15's ``model.fit`` can not run under that strategy: before its first step it reduces a distributed batch, which the strategy refuses
("Attempt to convert a value (PerReplica...) to a Tensor"). `fit_together` is the loop that works, with several workers and with one.

Imports Keras and TensorFlow at the top: import it inside a stage only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from airflow_mlops.exceptions import SpecError, WorkerLost

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)


@dataclass(frozen=True)
class Worker:
    """This process among those that train together: worker `index` of `num_workers`; `strategy` is what the model must be made under."""

    index: int
    num_workers: int
    strategy: Any

    @property
    def is_chief(self) -> bool:
        """Whether this worker is the one that writes what others read."""
        return self.index == 0


def join() -> Worker:
    """Return this process's part in the training that ``TF_CONFIG`` describes, once all workers are there; without it, the only worker.

    Call it before TensorFlow does anything else.
    """
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    workers = resolver.cluster_spec().as_dict().get("worker", [])
    if len(workers) < 2:
        return Worker(0, 1, tf.distribute.get_strategy())
    return Worker(resolver.task_id, len(workers), tf.distribute.MultiWorkerMirroredStrategy(resolver))


def fit_together(
    model: keras.Model,
    inputs: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    epochs: int,
    batch_size: int,
    seed: int = 1,
    first_epoch: int = 0,
    after_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> list[float]:
    """Train a compiled `model` on all workers at once and return the mean loss of each epoch; every worker ends with the same weights.

    Every worker has all rows and learns from its share of each batch, so that two workers do what one would. The order of the rows follows
    from `seed` and the epoch alone: a training that goes on from a checkpoint sees the rows that the whole one would have seen. Rows that
    fill no whole batch are left out of that epoch.

    :param inputs: (N, *input_shape), and `labels` (N,).
    :param batch_size: rows of a step, of all workers together; a multiple of the number of replicas, at most N.
    :param first_epoch: the epoch to begin with, counted from 0, and `epochs` the one to end before.
    :param after_epoch: gets each epoch's number and mean loss, on every worker; only the chief should write.
    :raises SpecError: the batch can not be shared out.
    :raises WorkerLost: another worker is gone; a retry goes on from the last checkpoint.
    """
    strategy = model.distribute_strategy
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas or not 0 < batch_size <= len(inputs):
        raise SpecError(f"A batch of {batch_size} of {len(inputs)} rows can not be shared by {replicas} replicas: give a multiple of that number.")
    with strategy.scope():
        model.optimizer.build(model.trainable_variables)
    step = _step(model, strategy)
    losses = []
    for epoch in range(first_epoch, epochs):
        try:
            steps = [float(step(batch)) for batch in _batches(strategy, (inputs, labels), batch_size, seed + epoch)]
        except _LOST as error:
            raise WorkerLost(
                f"Another worker is gone in epoch {epoch}: {error.message}. Run the stage again: it goes on from its checkpoint."
            ) from error
        losses.append(sum(steps) / len(steps))
        after_epoch(epoch, losses[-1])
    return losses


def weights_digest(model: keras.Model) -> str:
    """Return ``sha256:<64 hex digits>`` over the bytes of all weights, in the model's order."""
    return f"sha256:{hashlib.sha256(b''.join(weight.numpy().tobytes() for weight in model.weights)).hexdigest()}"


def _batches(strategy: Any, rows: tuple[Any, Any], batch_size: int, seed: int) -> Any:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA  # every worker has all rows, there are no files
    options.deterministic = True
    shuffled = tf.data.Dataset.from_tensor_slices(rows).shuffle(len(rows[0]), seed=seed)
    return strategy.experimental_distribute_dataset(shuffled.batch(batch_size, drop_remainder=True).with_options(options))


def _step(model: keras.Model, strategy: Any) -> Any:
    def learn(inputs: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(inputs, labels, model(inputs, training=True))  # Keras divides it by the number of replicas
        model.optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True))
        return loss

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def step(batch: Any) -> Any:
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(learn, args=batch), axis=None)

    return step
