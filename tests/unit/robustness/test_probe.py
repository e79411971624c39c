"""One graph gives the model's answer and every neuron, whatever the batch."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness.models import Probe, model_digest

layers = keras.layers
TEXTS = ["a good film", "a bad film", "good good", "an awful lot of words in one text"]


def same(left, right):
    return all(np.array_equal(mine, theirs, equal_nan=True) for mine, theirs in zip(vars(left).values(), vars(right).values(), strict=True))


def part(answers, rows):
    return type(answers)(*(column[rows] for column in vars(answers).values()))


def identity(*after, size=2):
    """A model that answers with its inputs (N, size), and what the layers `after` make of them."""
    model = keras.Sequential([layers.Input((size,)), layers.Dense(size), *after])
    model.layers[0].set_weights([np.eye(size, dtype=np.float32), np.zeros(size, np.float32)])
    return model


def reader(*, shape=(1,), vocabulary=("good", "bad", "film")):
    words = layers.TextVectorization(output_sequence_length=4)
    words.adapt(np.array([" ".join(vocabulary)]))
    return keras.Sequential([layers.Input(shape, dtype="string"), words, layers.Embedding(9, 4), layers.GlobalAveragePooling1D(), layers.Dense(2)])


def test_the_answer_is_that_of_the_model(digits):
    answers, outputs = digits.probe.answer(digits.inputs), digits.model.predict(digits.inputs, verbose=0)
    np.testing.assert_allclose(answers.outputs, outputs, atol=1e-5)
    assert np.array_equal(answers.prediction, outputs.argmax(axis=1))
    assert np.array_equal(answers.confidence, answers.outputs.max(axis=1))
    assert {column.dtype.name for column in (answers.outputs, answers.confidence, answers.neurons)} == {"float32"}


@pytest.mark.parametrize("num", [1, 15, 16, 17, 40])
def test_a_row_has_the_same_answer_to_the_bit_in_every_batch_at_every_place_and_among_any_neighbours(digits, num):
    probe, rng = Probe(digits.model, micro_batch=16), np.random.default_rng(num)
    everything = probe.answer(digits.inputs[:100])
    for _ in range(5):
        rows = rng.permutation(100)[:num]
        assert same(probe.answer(digits.inputs[rows]), part(everything, rows))
        among = np.concatenate([np.full((3, 8, 8, 1), np.nan, np.float32), digits.inputs[rows]])
        assert same(part(probe.answer(among), slice(3, None)), part(everything, rows))


def test_every_forward_pass_has_as_many_rows_as_the_micro_batch_and_is_traced_once():
    traced = []

    @keras.saving.register_keras_serializable("tests")
    class Spy(layers.Layer):
        def call(self, inputs):
            traced.append(inputs.shape)
            return inputs

    probe = Probe(keras.Sequential([layers.Input((2,)), Spy(), layers.Dense(2)]), micro_batch=7)
    during = len(traced)
    for num in (1, 7, 20):
        assert len(probe.answer(np.zeros((num, 2), np.float32)).outputs) == num
    assert traced[-1] == (7, 2)
    assert len(traced) == during


def test_no_input_has_no_answer(digits):
    answers = digits.probe.answer(digits.inputs[:0])
    assert [column.shape for column in vars(answers).values()] == [(0, 10), (0,), (0,), (0, 58)]


def test_batches_are_whole_micro_batches_in_order(digits):
    probe = Probe(digits.model, micro_batch=16)
    parts = list(probe.answer_all(digits.inputs[:50], 17))
    assert [len(answers.outputs) for answers in parts] == [32, 18]
    assert np.array_equal(np.concatenate([answers.neurons for answers in parts]), probe.answer(digits.inputs[:50]).neurons)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "64"])
def test_an_impossible_micro_batch_is_refused(digits, size):
    with pytest.raises(SpecError, match="micro_batch is"):
        Probe(digits.model, micro_batch=size)


def test_logits_become_probabilities():
    answers = Probe(identity()).answer(np.array([[0.0, np.log(3.0)]], np.float32))
    assert answers.prediction.tolist() == [1]
    assert answers.outputs[0] == pytest.approx([0.25, 0.75])
    assert answers.confidence[0] == pytest.approx(0.75)


def test_logits_that_look_like_probabilities_are_logits_in_every_batch():
    rows = np.array([[0.25, 0.75], [3.0, 1.0]], np.float32)
    for probe in (Probe(identity()), Probe(identity(layers.Activation("log_softmax")))):
        assert np.array_equal(probe.answer(rows[:1]).outputs[0], probe.answer(rows).outputs[0])
        assert probe.answer(rows[:1]).confidence[0] == pytest.approx(1 / (1 + np.exp(-0.5)))


@pytest.mark.parametrize("last", ["softmax", "sigmoid"])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_outputs_of_a_softmax_or_sigmoid_stay_as_they_are_in_any_precision(last, policy):
    activation = layers.Activation(last, dtype=keras.DTypePolicy(policy))
    rows = np.random.default_rng(0).normal(size=(50, 30)).astype(np.float32)
    model = identity(activation, size=30)
    assert np.array_equal(Probe(model, micro_batch=50).answer(rows).outputs, np.asarray(tf.cast(model(rows), tf.float32)))


def test_where_the_graph_does_not_tell_the_first_answers_decide_for_good():
    alike, logits = np.array([[0.25, 0.75]], np.float32), np.array([[3.0, -1.0]], np.float32)
    broken = np.full((1, 2), np.nan, np.float32)
    first_probabilities, first_logits = (Probe(identity(layers.Rescaling(1.0))) for _ in range(2))
    assert first_probabilities.answer(broken).prediction.tolist() == [-1]  # says nothing, decides nothing
    assert np.array_equal(first_probabilities.answer(alike).outputs, alike)
    first_logits.answer(logits)
    assert first_logits.answer(alike).outputs[0] == pytest.approx(np.exp(alike[0]) / np.exp(alike[0]).sum())
    assert np.array_equal(first_probabilities.answer(logits).outputs, logits)


@pytest.mark.parametrize("last", ["linear", "softmax"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_is_no_class_and_leaves_the_others_alone(last, value):
    rows = np.array([[0.0, 1.0], [value, 1.0], [2.0, 1.0]], np.float32)
    answers = Probe(identity(layers.Activation(last))).answer(rows)
    if not np.isfinite(np.asarray(identity(layers.Activation(last))(rows))[1]).all():
        assert (answers.prediction[1], answers.confidence[1]) == (-1, 0.0)
        assert np.isnan(answers.outputs[1]).all()
    assert answers.prediction[[0, 2]].tolist() == [1, 0]
    assert np.isfinite(answers.outputs[[0, 2]]).all()


def test_training_mode_layers_are_at_rest():
    model = keras.Sequential([layers.Input((4,)), layers.Dense(3), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(2)])
    rows = np.random.default_rng(0).normal(5, 2, (20, 4)).astype(np.float32)
    probe = Probe(model)
    assert same(probe.answer(rows), probe.answer(rows))
    np.testing.assert_allclose(probe.answer(rows).outputs, tf.nn.softmax(model(rows, training=False)), atol=1e-6)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_model_of_texts_takes_them_as_it_wants_them(shape):
    model = reader(shape=shape)
    expected = tf.nn.softmax(model(tf.constant(np.array(TEXTS, object).reshape(-1, *shape)))).numpy()
    for texts in (np.array(TEXTS), np.array(TEXTS, object), np.array(TEXTS, object)[:, None], np.array([text.encode() for text in TEXTS])):
        probe = Probe(model, micro_batch=3)
        probe.check(texts)
        np.testing.assert_allclose(probe.answer(texts).outputs, expected, atol=1e-6)
    assert [span.name for span in probe.layers] == [model.layers[-2].name, model.layers[-1].name]


def test_texts_and_numbers_are_not_mixed_up(digits):
    probe = Probe(reader(), micro_batch=2)
    with pytest.raises(RobustnessError, match="takes texts of shape"):
        probe.check(np.zeros((3, 1), np.float32))
    with pytest.raises(RobustnessError, match=r"Pass str only\."):
        probe.answer(np.array(["a", 3.0], object))
    with pytest.raises(RobustnessError, match="takes numbers of shape"):
        digits.probe.check(np.full((3, 8, 8, 1), "a"))


def test_whole_numbers_are_fed_as_such():
    model = keras.Sequential([layers.Input((3,), dtype="int32"), layers.Embedding(5, 4), layers.GlobalAveragePooling1D(), layers.Dense(2)])
    rows = np.array([[0, 1, 2], [4, 4, 4]])
    assert same(Probe(model).answer(rows), Probe(model).answer(rows.astype(np.float32)))


@pytest.mark.parametrize("shape", [(3, 28, 28, 1), (3, 8, 8, 3), (3, 8, 8), (3,), ()])
def test_inputs_of_another_shape_are_refused(digits, shape):
    for ask in (digits.probe.check, digits.probe.answer):
        with pytest.raises(RobustnessError, match="Prepare them as in training"):
            ask(np.zeros(shape, np.float32))


def test_a_model_of_any_image_size_takes_any():
    model = keras.Sequential([layers.Input((None, None, 1)), layers.Conv2D(2, 3), layers.GlobalAveragePooling2D(), layers.Dense(2)])
    probe = Probe(model, micro_batch=2)
    probe.check(np.zeros((3, 28, 20, 1), np.float32))
    assert len(probe.answer(np.zeros((3, 28, 20, 1), np.float32)).outputs) == len(probe.answer(np.zeros((3, 9, 9, 1), np.float32)).outputs) == 3


def test_labels_are_classes_of_the_model(digits):
    digits.probe.check_labels(digits.labels)
    digits.probe.check_labels(digits.labels[:0])
    for labels, message in (
        (np.array([0, 10]), "go from 0 to 10, and model .* has 10 outputs"),
        (np.array([-1, 3]), "go from -1 to 3"),
        (np.zeros((4, 10), int), r"expected one class number per input"),
        (np.array([0.0, 1.0]), r"The labels are float64 of shape \(2,\)"),
    ):
        with pytest.raises(RobustnessError, match=message):
            digits.probe.check_labels(labels)


class Pair(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs[0] + inputs[1])


class Failing(keras.Model):
    def call(self, inputs):
        raise ValueError("no luck")

    def get_build_config(self):
        return {"input_shape": (None, 2)}


def built(model, inputs):
    model(inputs)
    return model


def failing():
    model = Failing()
    model.built = True
    return model


def with_inputs_and_outputs(num_inputs, num_outputs):
    sources = [layers.Input((2,)) for _ in range(num_inputs)]
    joined = layers.Add()(sources) if num_inputs > 1 else sources[0]
    return keras.Model(sources, [layers.Dense(2)(joined) for _ in range(num_outputs)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: keras.Sequential([layers.Input((8,)), layers.Flatten()]), "no layer with neurons: .* found Flatten, Functional, InputLayer"),
        (lambda: keras.Model(source := layers.Input((2,)), source * 2.0), "no layer with neurons"),
        (lambda: keras.Sequential([layers.Dense(2)]), "Call it on one batch first"),
        (Pair, "Call it on one batch first"),
        (lambda: "model.keras", "is no built Keras model"),
        (lambda: with_inputs_and_outputs(2, 1), "has 2 inputs; expected one, because one is mutated. Wrap it"),
        (lambda: built(Pair(), [np.zeros((1, 2)), np.zeros((1, 2))]), "has several inputs, or none whose shape it can tell .*; expected one"),
        (lambda: with_inputs_and_outputs(1, 2), r"outputs of shape \[\(None, 2\), \(None, 2\)\]; expected one output \(N, classes\)"),
        (lambda: keras.Sequential([layers.Input((8, 3)), layers.Dense(2)]), r"outputs of shape \[\(None, 8, 2\)\]"),
        (lambda: keras.Sequential([layers.Input((8,)), layers.Dense(1)]), "concatenate 1 - p and p"),
        (lambda: keras.Sequential([layers.Input((8,), batch_size=5), layers.Dense(2)]), "Pass micro_batch=5"),
        (failing, "cannot run on 256 inputs float32 of shape .*no luck"),
    ],
)
def test_a_model_that_is_no_classifier_of_one_input_with_neurons_is_refused(make, message):
    with pytest.raises(RobustnessError, match=f"(?s){message}"):
        Probe(make())


def test_the_digest_survives_saving_and_tells_models_apart(digits, tmp_path):
    digits.model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert model_digest(loaded) == model_digest(digits.model)
    weights = loaded.get_weights()
    weights[0][0, 0, 0, 0] += 1e-6
    loaded.set_weights(weights)
    assert model_digest(loaded) != model_digest(digits.model)


def test_the_digest_covers_the_vocabulary_which_is_no_weight(tmp_path):
    model = reader()
    model.save(tmp_path / "model.keras")
    before = model_digest(model)
    assert model_digest(keras.saving.load_model(tmp_path / "model.keras")) == before
    model.layers[0].adapt(np.array(["other words altogether"]))
    assert model_digest(model) != before


def test_a_model_that_cannot_describe_itself_has_a_digest_of_its_weights():
    class Nameless(keras.Model):
        def __init__(self, function):
            super().__init__()
            self.function, self.dense = function, layers.Dense(2)

        def call(self, inputs):
            return self.dense(self.function(inputs))

    models = [built(Nameless(lambda x: x), np.zeros((1, 2), np.float32)) for _ in range(2)]
    assert model_digest(models[0]) != model_digest(models[1])
    models[1].set_weights(models[0].get_weights())
    assert model_digest(models[0]) == model_digest(models[1])
