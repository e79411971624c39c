"""One training in several processes, by TensorFlow's `MultiWorkerMirroredStrategy`, which reads ``TF_CONFIG`` by itself.

Keras 3.15's ``model.fit`` cannot run under that strategy: before its first step it reduces a distributed batch, which the strategy refuses
("Attempt to convert a value (PerReplica...) to a Tensor"). `fit_together` is the loop that works, with several workers and with one.

Imports Keras and TensorFlow at the top: import it inside a stage only.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from airflow_mlops.exceptions import SpecError, WorkerLost
from airflow_mlops.training.callback import gpu_memory
from airflow_mlops.training.meeting import meet
from airflow_mlops.training.progress import Progress

if TYPE_CHECKING:
    from airflow_mlops.training.context import TrainingContext

log = logging.getLogger(__name__)

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
    log.info("Worker %d of %d waits for the others.", resolver.task_id, len(workers))
    meet(resolver.task_id, workers)
    return Worker(resolver.task_id, len(workers), tf.distribute.MultiWorkerMirroredStrategy(resolver))


def fit_together(context: TrainingContext, model: keras.Model, *, epochs: int, batch_size: int) -> list[float]:
    """Train a compiled `model` on the context's rows, all workers at once, and return each epoch's mean loss; all end with the same weights.

    Every worker has all rows and learns from its share of each batch, so that two workers do what one would. The order of the rows follows
    from the seed and the epoch alone, and rows that fill no whole batch are left out of that epoch. After each epoch the chief tells how far it is,
    logs the loss and keeps a checkpoint, from which all workers go on after an interruption. When one of them should stop, all do.

    :param batch_size: rows of a step, of all workers together; a multiple of the number of replicas, at most the number of rows.
    :raises SpecError: the batch cannot be shared out.
    :raises WorkerLost: another worker is gone; a retry goes on from the last checkpoint.
    """
    strategy, num_rows = model.distribute_strategy, len(context.inputs)
    replicas, resolver = strategy.num_replicas_in_sync, strategy.cluster_resolver
    if batch_size % replicas or not 0 < batch_size <= num_rows:
        raise SpecError(f"A batch of {batch_size} of {num_rows} rows cannot be shared by {replicas} replicas: give a multiple of that number.")
    step, losses = _step(model, strategy), list[float]()
    with strategy.scope():
        model.optimizer.build(model.trainable_variables)
        found = context.checkpoints.restore(model) if context.checkpoints else None
    is_chief = resolver is None or resolver.task_id == 0
    first, began = found.state["epoch"] if found else 0, time.monotonic()
    if _sum(strategy, first) != first * replicas:
        raise WorkerLost(f"Another worker does not go on from epoch {first}: it found another checkpoint than this one. Run the stage again.")
    for epoch in range(first, epochs):
        try:
            steps = [float(step(batch)) for batch in _batches(context, strategy, batch_size, epoch)]
            is_over = _anybody(strategy, context.should_stop())
        except _LOST as error:
            raise WorkerLost(f"Another worker is gone in epoch {epoch}: {error.message}. Run the stage again, from its checkpoint.") from error
        losses.append(sum(steps) / len(steps))
        context.log_metric("loss", losses[-1], epoch)
        if is_chief:
            seconds = (time.monotonic() - began) / (epoch + 1 - first)  # for an epoch
            examples = len(steps) * batch_size / seconds
            left = seconds * (epochs - epoch - 1)
            log.info("%s", Progress(epoch + 1, epochs, (epoch + 1) * len(steps), losses[-1], examples, gpu_memory(), left).line())
        if is_chief and context.checkpoints:
            context.checkpoints.save(model, (epoch + 1) * len(steps), epoch=epoch + 1)
        if is_over and not context.should_stop():
            raise WorkerLost(f"Another worker was told to stop after epoch {epoch}. Run the stage again, from its checkpoint.")
        if is_over:
            break
    return losses


def _anybody(strategy: Any, answer: bool) -> bool:
    """Return whether any worker answers yes: those that go on alone would wait for the others for ever."""
    return _sum(strategy, answer) > 0


def _sum(strategy: Any, number: float) -> float:
    """Return the sum of all replicas' numbers, of which each gives one."""
    return float(strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(lambda: tf.constant(float(number))), axis=None))


def _batches(context: TrainingContext, strategy: Any, batch_size: int, epoch: int) -> Any:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA  # every worker has all rows, there are no files
    options.deterministic = True
    rows = tf.data.Dataset.from_tensor_slices((context.inputs, context.labels)).shuffle(len(context.inputs), seed=context.seed + epoch)
    return strategy.experimental_distribute_dataset(rows.batch(batch_size, drop_remainder=True).with_options(options))


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
