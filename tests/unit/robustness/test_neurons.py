"""Every kind of Keras model shows its neurons, and is afterwards as it was."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from airflow_mlops.robustness.models import Probe
from airflow_mlops.robustness.neurons import sublayers, watched

layers = keras.layers


def names(probe):
    return [(span.name, span.stop - span.start) for span in probe.layers]


def images(*shape, num=6):
    return np.random.default_rng(0).normal(size=(num, *shape)).astype(np.float32)


def means(values):
    return values.reshape(len(values), -1, values.shape[-1]).mean(axis=1)


def block(name, width=3):
    return keras.Sequential([layers.Input((None, None, 1)), layers.Conv2D(width, 3, name="conv"), layers.MaxPooling2D(name="pool")], name=name)


def test_neurons_are_channel_means_and_dense_units_by_layer_type(digits):
    inputs, probe = digits.inputs[:20], digits.probe
    assert names(probe) == [("conv", 8), ("pool", 8), ("hidden", 32), ("classes", 10)]
    assert probe.num_neurons == 58
    values, expected = inputs, []
    for layer in digits.model.layers:
        values = np.asarray(layer(values))
        if layer.name != "flat":
            expected.append(means(values))
    np.testing.assert_allclose(probe.answer(inputs).neurons, np.concatenate(expected, axis=1), atol=1e-5)


def test_layer_types_can_be_chosen(digits):
    assert names(Probe(digits.model, layer_types=(layers.Dense, layers.Flatten))) == [("flat", 72), ("hidden", 32), ("classes", 10)]


def test_layers_of_nested_models_have_neurons_under_names_of_their_own():
    source = layers.Input((8, 8, 1))
    joined = layers.Concatenate()([block("left")(source), block("right", 2)(source)])
    inner = keras.Model(source, layers.Dense(4, name="pool")(layers.Flatten()(joined)))
    outer = layers.Input((8, 8, 1))
    probe = Probe(keras.Model(outer, layers.Dense(2, name="classes")(inner(outer))))
    assert names(probe) == [("conv", 3), ("pool", 3), ("conv#2", 2), ("pool#2", 2), ("pool#3", 4), ("classes", 2)]
    assert [span.start for span in probe.layers[1:]] == [span.stop for span in probe.layers[:-1]]


def test_each_call_of_a_shared_layer_has_its_own_neurons():
    shared, source = layers.Dense(3, name="shared"), layers.Input((3,))
    model = keras.Model(source, layers.Dense(2, name="classes")(shared(shared(source))))
    probe, inputs = Probe(model), images(3)
    assert names(probe) == [("shared", 3), ("shared#2", 3), ("classes", 2)]
    once = np.asarray(shared(inputs))
    np.testing.assert_allclose(probe.answer(inputs).neurons[:, :6], np.concatenate([once, shared(once)], axis=1), atol=1e-6)


class Tower(keras.Model):
    """Layers in attributes, private ones, lists and dicts, and one that never runs."""

    def __init__(self):
        super().__init__()
        self.first = layers.Conv2D(3, 3, name="first")
        self._pool = layers.GlobalMaxPooling2D(name="pool")
        self.blocks = [layers.Dense(4, name="listed"), (layers.Dense(5, name="tupled"),)]
        self.heads = {"used": layers.Dense(2, name="used"), "unused": layers.Dense(7, name="unused")}

    def call(self, inputs):
        values = self._pool(self.first(inputs))
        return self.heads["used"](self.blocks[1][0](self.blocks[0](values)))


def test_a_subclassed_model_shows_every_layer_that_runs():
    model, inputs = Tower(), images(8, 8, 1)
    outputs = model(inputs)
    model.heads["unused"](np.zeros((1, 2), np.float32))
    probe = Probe(model, micro_batch=4)
    assert names(probe) == [("first", 3), ("pool", 3), ("listed", 4), ("tupled", 5), ("used", 2)]
    answers = probe.answer(inputs)
    np.testing.assert_allclose(answers.neurons[:, -2:], outputs, atol=1e-5)
    np.testing.assert_allclose(answers.outputs, tf.nn.softmax(outputs), atol=1e-5)


def test_a_subclassed_model_inside_a_functional_one_shows_its_layers():
    source = layers.Input((8, 8, 1))
    assert [name for name, _ in names(Probe(keras.Model(source, Tower()(source))))] == ["first", "pool", "listed", "tupled", "used"]


class Branching(keras.Model):
    """A layer that runs for some inputs only; Keras cannot find out the input shape of this model, so it says it."""

    def __init__(self):
        super().__init__()
        self.always, self.seldom = layers.Dense(2, name="always"), layers.Dense(2, name="seldom")

    def call(self, inputs):
        values = self.always(inputs)
        return tf.cond(tf.reduce_sum(inputs) > 1e9, lambda: self.seldom(values), lambda: values)

    def get_build_config(self):
        return {"input_shape": (None, 3)}


def test_a_layer_in_a_branch_is_left_out_and_the_rest_is_seen():
    model = Branching()
    model(images(3) + 1e9)
    probe = Probe(model)
    assert names(probe) == [("always", 2)]
    np.testing.assert_allclose(probe.answer(images(3)).neurons, model(images(3)), atol=1e-5)


def test_a_dense_layer_over_time_counts_each_unit_once():
    dense = layers.Dense(4, name="dense")
    model = keras.Sequential([layers.Input((3, 2)), layers.TimeDistributed(dense), layers.LSTM(3), layers.Dense(2, name="classes")])
    probe, inputs = Probe(model), images(3, 2)
    assert names(probe) == [("dense", 4), ("classes", 2)]
    np.testing.assert_allclose(probe.answer(inputs).neurons[:, :4], np.asarray(dense(inputs)).mean(axis=1), atol=1e-6)


def test_a_model_over_time_counts_each_channel_once():
    frames = block("frames")
    source = layers.Input((5, 8, 8, 1))
    model = keras.Model(source, layers.Dense(2, name="classes")(layers.Flatten()(layers.TimeDistributed(frames)(source))))
    probe, inputs = Probe(model), images(5, 8, 8, 1)
    assert names(probe) == [("conv", 3), ("pool", 3), ("classes", 2)]
    steps = np.asarray(frames.layers[0](inputs.reshape(30, 8, 8, 1))).reshape(6, 5, 6, 6, 3)
    np.testing.assert_allclose(probe.answer(inputs).neurons[:, :3], means(steps), atol=1e-5)


def test_a_bidirectional_layer_can_be_looked_at_from_outside_and_inside():
    model = keras.Sequential([layers.Input((4, 2)), layers.Bidirectional(layers.LSTM(3, name="lstm"), name="both"), layers.Dense(2, name="classes")])
    probe = Probe(model, layer_types=(layers.LSTM, layers.Bidirectional))
    assert sorted(names(probe)) == [("backward_lstm", 3), ("both", 6), ("forward_lstm", 3)]


class Cell(layers.Layer):
    """A recurrent cell with a dense layer in it, which runs inside a loop of the graph."""

    state_size = 3

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3, name="inside")

    def build(self, shape):
        self.dense.build((shape[0], shape[1]))

    def call(self, inputs, states):
        values = self.dense(inputs) + states[0]
        return values, [values]


def test_layers_in_a_loop_and_on_constants_have_no_value_per_input_and_are_left_out():
    class Constant(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3, name="constant")

        def call(self, inputs):
            return inputs + self.dense(tf.ones((1, 4)))

    model = keras.Sequential([layers.Input((4, 2)), layers.RNN(Cell()), Constant(), layers.Dense(2, name="classes")])
    assert names(Probe(model)) == [("classes", 2)]


def test_channels_first_and_last_are_the_same_neurons():
    models = []
    for form, shape in (("channels_last", (6, 8, 2)), ("channels_first", (2, 6, 8))):
        models.append(keras.Sequential([layers.Input(shape), layers.MaxPooling2D(2, data_format=form), layers.Flatten(), layers.Dense(2)]))
    last, first = (Probe(model, layer_types=(layers.MaxPooling2D,)) for model in models)
    inputs = images(6, 8, 2)
    assert last.num_neurons == first.num_neurons == 2
    np.testing.assert_allclose(first.answer(inputs.transpose(0, 3, 1, 2)).neurons, last.answer(inputs).neurons, atol=1e-6)


def test_channels_first_over_time_are_channels_too():
    pool = layers.TimeDistributed(layers.MaxPooling2D(2, data_format="channels_first", name="pool"))
    model = keras.Sequential([layers.Input((5, 2, 6, 8)), pool, layers.Flatten(), layers.Dense(2, name="classes")])
    probe, inputs = Probe(model), images(5, 2, 6, 8)
    assert names(probe) == [("pool", 2), ("classes", 2)]
    np.testing.assert_allclose(probe.answer(inputs).neurons[:, :2], inputs.reshape(6, 5, 2, 3, 2, 4, 2).max((4, 6)).mean((1, 3, 4)), atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_means_of_half_precision_activations_are_taken_in_float32(policy):
    conv = layers.Conv2D(2, 1, dtype=policy)
    model = keras.Sequential([layers.Input((40, 40, 1)), conv, layers.GlobalMaxPooling2D(), layers.Dense(2, activation="softmax", dtype="float32")])
    conv.set_weights([np.full((1, 1, 1, 2), 257.0), np.zeros(2)])  # a sum of 1600 such values is beyond float16, and none of bfloat16's own
    inputs = np.random.default_rng(0).uniform(0.5, 1, (4, 40, 40, 1)).astype(np.float32)
    halves = tf.cast(conv(inputs), tf.float32).numpy()
    answers = Probe(model).answer(inputs)
    np.testing.assert_allclose(answers.neurons[:, :2], means(halves), rtol=1e-6)
    assert np.isfinite(answers.outputs).all()


def test_a_quantised_layer_is_seen_too():
    model = keras.Sequential([layers.Input((4,)), layers.Dense(8, name="hidden"), layers.Dense(2, name="classes")])
    model.quantize("int8")
    probe, inputs = Probe(model), images(4)
    assert names(probe) == [("hidden", 8), ("classes", 2)]
    np.testing.assert_allclose(probe.answer(inputs).neurons[:, :8], model.layers[0](inputs), atol=1e-5)


@pytest.mark.parametrize("error", [None, KeyError])
def test_a_watched_model_is_afterwards_as_it_was(error):
    model = keras.Sequential([layers.Input((2,)), layers.Dense(3), layers.Dense(2)])
    own = model.layers[1].call
    vars(model.layers[1])["call"] = own
    before = [dict(vars(layer)) for layer in sublayers(model)]
    calls = None
    try:
        with watched(model, (layers.Dense,)) as calls:
            model(images(2))
            assert "call" in vars(model.layers[0])
            if error:
                raise error
    except KeyError:
        assert error
    assert [dict(vars(layer)) for layer in sublayers(model)] == before
    assert [call.layer for call in calls] == model.layers
    model(images(2))
    assert len(calls) == 2


def test_a_model_that_was_probed_still_trains_and_is_saved(digits, tmp_path):
    model = keras.models.clone_model(digits.model)
    Probe(model)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(digits.inputs[:64], digits.labels[:64], verbose=0)
    model.save(tmp_path / "model.keras")
    assert names(Probe(keras.saving.load_model(tmp_path / "model.keras"))) == names(digits.probe)


def test_layers_that_learn_and_have_no_neurons_are_named_once():
    seen = keras.Input((12, 2))
    hidden = layers.MultiHeadAttention(2, 4, name="attention")(seen, seen)
    hidden = layers.LayerNormalization()(layers.LSTM(8, return_sequences=True, name="memory")(hidden))
    hidden = layers.Bidirectional(layers.GRU(4), name="both_ways")(hidden)
    model = keras.Model(seen, keras.Sequential([keras.Input((8,)), layers.Dense(2, activation="softmax")], name="head")(hidden))
    assert Probe(model).uncounted == ["attention", "memory", "both_ways"]


def test_a_model_whose_every_layer_is_seen_has_nothing_uncounted(digits):
    assert digits.probe.uncounted == []
    normalized = [layers.Input((8, 8, 1)), layers.Conv2D(3, 3), layers.BatchNormalization(), layers.PReLU(), layers.Flatten()]
    assert Probe(keras.Sequential([*normalized, layers.Dense(2, activation="softmax")])).uncounted == []
