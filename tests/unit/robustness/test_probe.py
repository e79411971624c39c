"""One graph gives the model's answer and every neuron."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.robustness.models import Probe, model_digest


def test_neurons_are_channel_means_and_dense_units_by_layer_type(digits):
    inputs, probe = digits.inputs[:20], digits.probe
    assert [(span.name, span.stop - span.start) for span in probe.layers] == [("conv", 8), ("pool", 8), ("hidden", 32), ("classes", 10)]
    answers = probe.answer(inputs)
    values, expected = inputs, []
    for layer in digits.model.layers:
        values = np.asarray(layer(values))
        if layer.name != "flat":
            expected.append(values.mean(axis=(1, 2)) if values.ndim == 4 else values)
    np.testing.assert_allclose(answers.neurons, np.concatenate(expected, axis=1), atol=1e-5)


def test_the_answer_is_that_of_the_model(digits):
    answers, outputs = digits.probe.answer(digits.inputs), digits.model.predict(digits.inputs, verbose=0)
    assert np.array_equal(answers.prediction, outputs.argmax(axis=1))
    np.testing.assert_allclose(answers.confidence, outputs.max(axis=1), atol=1e-5)


def test_layer_types_can_be_chosen(digits):
    probe = Probe(digits.model, layer_types=(keras.layers.Dense,))
    assert [span.name for span in probe.layers] == ["hidden", "classes"]


def test_logits_become_probabilities():
    model = keras.Sequential([keras.layers.Input((1, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.layers[-1].set_weights([np.eye(2, dtype=np.float32), np.zeros(2, np.float32)])
    answers = Probe(model).answer(np.array([0.0, np.log(3.0)], np.float32).reshape(1, 1, 2, 1))
    assert answers.prediction.tolist() == [1]
    assert answers.confidence[0] == pytest.approx(0.75)


def test_a_nan_output_is_no_class():
    model = keras.Sequential([keras.layers.Input((1, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    images = np.array([[0.0, 1.0], [np.nan, 1.0]], np.float32).reshape(2, 1, 2, 1)
    answers = Probe(model).answer(images)
    assert answers.prediction[0] >= 0
    assert (answers.prediction[1], answers.confidence[1]) == (-1, 0.0)


def test_a_model_without_neuron_layers_is_refused():
    model = keras.Sequential([keras.layers.Input((8, 8, 1)), keras.layers.Flatten()])
    with pytest.raises(RobustnessError, match="no layer with neurons"):
        Probe(model)


def test_an_unbuilt_model_is_refused():
    with pytest.raises(RobustnessError, match="Call it on one batch first"):
        Probe(keras.Sequential([keras.layers.Dense(2)]))


def test_the_digest_survives_saving_and_tells_models_apart(digits, tmp_path):
    digits.model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert model_digest(loaded) == model_digest(digits.model)
    weights = loaded.get_weights()
    weights[0][0, 0, 0, 0] += 1e-6
    loaded.set_weights(weights)
    assert model_digest(loaded) != model_digest(digits.model)


def test_a_model_with_two_outputs_is_refused():
    source = keras.layers.Input((2,))
    model = keras.Model(source, [keras.layers.Dense(2)(source), keras.layers.Dense(3)(source)])
    with pytest.raises(RobustnessError, match="one output"):
        Probe(model)


@pytest.mark.parametrize("shape", [(3, 28, 28, 1), (3, 8, 8, 3), (3, 8, 8)])
def test_inputs_of_another_shape_are_refused(digits, shape):
    with pytest.raises(RobustnessError, match="Prepare them as in training"):
        digits.probe.check(np.zeros(shape, np.float32))


def test_a_model_of_any_image_size_takes_any():
    layers = keras.layers
    model = keras.Sequential([layers.Input((None, None, 1)), layers.Conv2D(2, 3), layers.GlobalAveragePooling2D(), layers.Dense(2)])
    Probe(model).check(np.zeros((3, 28, 20, 1), np.float32))
