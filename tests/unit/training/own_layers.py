"""Layers and models of a team's own, as a module that registers them: each way in which an answer may depend on more than its row, and none."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

OWN = keras.saving.register_keras_serializable("purity")


@OWN
class StochasticDepth(layers.Layer):
    """As in Keras' own models: drops whole branches while it learns."""

    def __init__(self, rate: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.numbers = rate, keras.random.SeedGenerator(1)

    def call(self, x: Any, training: bool | None = None) -> Any:
        if not training:
            return x
        return x * ops.floor(1.0 - self.rate + keras.random.uniform((ops.shape(x)[0], 1, 1, 1), seed=self.numbers)) / (1.0 - self.rate)


@OWN
class Subclassed(keras.Model):
    """Its `call` takes no `training`, and its augmentation learns by default."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.flip, self.drop, self.flat, self.dense = layers.RandomFlip(), layers.Dropout(0.5), layers.Flatten(), layers.Dense(3, "softmax")

    def call(self, x: Any) -> Any:
        return self.dense(self.flat(self.drop(self.flip(x))))


@OWN
class LearnsByDefault(Subclassed):
    def call(self, x: Any, training: bool = True) -> Any:
        return self.dense(self.flat(self.drop(self.flip(x, training=training), training=training)))


@OWN
class Fourier(layers.Layer):
    """Numbers of one seed are no chance: they are the same in every answer."""

    def call(self, x: Any) -> Any:
        flat = ops.reshape(x, (-1, 768))
        return ops.cos(flat @ keras.random.normal((768, 8), seed=7))


@OWN
class AlwaysDrops(layers.Layer):
    """Keras' guide of own layers has one like it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.numbers = keras.random.SeedGenerator(1)

    def call(self, x: Any) -> Any:
        return keras.random.dropout(x, 0.1, seed=self.numbers)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


@OWN
class MonteCarlo(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = layers.Dropout(0.1, name="monte_carlo_dropout")
        self.flat, self.dense = layers.Flatten(), layers.Dense(3, activation="softmax")

    def call(self, x: Any) -> Any:
        return self.dense(self.flat(self.inner(x, training=True)))


@OWN
class ForcedStatistics(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm = layers.BatchNormalization(name="forced_norm")

    def call(self, x: Any) -> Any:
        return self.norm(x, training=True)


@OWN
class Counter(layers.Layer):
    def build(self, shape: Any) -> None:
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")

    def call(self, x: Any) -> Any:
        self.seen.assign_add(1.0)
        return x + self.seen * 1e-9


@OWN
class Unused(Counter):
    """The answer does not depend on its number; the model is another one after every request all the same."""

    def call(self, x: Any) -> Any:
        self.seen.assign_add(1.0)
        return x


@OWN
class TensorFlowNoise(layers.Layer):
    def call(self, x: Any) -> Any:
        return x + tf.random.normal(tf.shape(x), stddev=1e-7)


@OWN
class Generator(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.numbers = tf.random.Generator.from_seed(1)

    def call(self, x: Any) -> Any:
        return x + self.numbers.normal(tf.shape(x), stddev=1e-7)


@OWN
class InABranch(layers.Layer):
    def call(self, x: Any) -> Any:
        return tf.cond(tf.reduce_sum(x) > 1e9, lambda: x + tf.random.uniform(tf.shape(x)), lambda: x)


@OWN
class InALoop(layers.Layer):
    def call(self, x: Any) -> Any:
        return tf.while_loop(lambda i, _: i < 2, lambda i, y: (i + 1, y + tf.random.uniform((), maxval=1e-7)), (0, x))[1]


@OWN
class Clock(layers.Layer):
    def call(self, x: Any) -> Any:
        return x + tf.cast(tf.timestamp() * 1e-20, tf.float32)


@OWN
class Python(layers.Layer):
    def call(self, x: Any) -> Any:
        return tf.ensure_shape(tf.numpy_function(lambda value: value, [x], tf.float32), x.shape)


@OWN
class BatchMean(layers.Layer):
    """Statistics of the batch without a variable, which no search of the graph finds."""

    def call(self, x: Any) -> Any:
        return (x - ops.mean(x, axis=0, keepdims=True)) * 3.0


@OWN
class PlaceInTheBatch(layers.Layer):
    def call(self, x: Any) -> Any:
        return x + keras.random.normal(ops.shape(x), seed=3)


@OWN
class PythonChance(layers.Layer):
    def call(self, x: Any) -> Any:
        return x * np.random.default_rng().random()


@OWN
class PythonClock(layers.Layer):
    def call(self, x: Any) -> Any:
        return x * (1.0 + time.perf_counter_ns() % 1000 / 1000)


@OWN
class PythonCounter(layers.Layer):
    calls = 0

    def call(self, x: Any) -> Any:
        self.calls += 1
        return x * (1.0 + self.calls % 7 / 7)


@OWN
class Inverse(layers.Layer):
    """What no converter here has an operation for."""

    def call(self, x: Any) -> Any:
        return tf.math.erfinv(tf.math.igamma(x * x + 1.0, x * x + 0.5))


@OWN
class Forgetful(layers.Layer):
    """What it learns is in an attribute that is not saved."""

    factor = 1.0

    def call(self, x: Any) -> Any:
        return x * self.factor


@OWN
class OwnLoss(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred)


class OwnMetric(keras.metrics.Mean):
    """Without a registration: whatever only the training needs may lack one."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return super().update_state(ops.max(y_pred, axis=-1))


class OwnSchedule(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step: Any) -> Any:
        return 0.01 / (1.0 + ops.cast(step, "float32"))

    def get_config(self) -> dict[str, Any]:
        return {}


class OwnOptimizer(keras.optimizers.Adam):
    """Whose configuration Keras cannot even write."""

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError


def unregistered(x: Any) -> Any:
    """An activation that only its own module knows."""
    return ops.tanh(x)


class Unregistered(layers.Layer):
    def call(self, x: Any) -> Any:
        return x * 2.0
