"""Served features are the features of the training: one graph, whoever runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from airflow_mlops.exceptions import TrainFunctionError, UnsafeModel
from airflow_mlops.robustness.models import Probe
from airflow_mlops.training.export import save
from airflow_mlops.training.features import BATCH, Features, save_features

ROWS = np.random.default_rng(5).random((32, 8, 8, 1), dtype=np.float32)
MEAN = tf.constant(np.float32(0.3))


def features(pixels: tf.Tensor) -> tf.Tensor:
    """Logarithms, a mean and whitened pixels: sums and roundings that two implementations would not get equal to the bit."""
    flat = tf.reshape(pixels, (-1, 64))
    return tf.concat([tf.math.log(flat + 0.1), (flat - MEAN) / tf.math.reduce_std(flat, 1, keepdims=True), tf.reduce_mean(flat, 1, keepdims=True)], 1)


def made(function: Any, place: Path, **options: Any) -> Features:
    save_features(function, (8, 8, 1), place)
    return Features(place, **options)


def served(saved_model: Path, rows: np.ndarray) -> np.ndarray:
    return np.asarray(tf.saved_model.load(str(saved_model)).signatures["serving_default"](pixels=tf.constant(rows))["output_0"])


def test_served_features_are_those_of_the_training_to_the_bit(tmp_path: Path) -> None:
    """The model answers with what it is given, so that the features themselves come out of the server's signature."""
    layer = made(features, tmp_path / "features")
    model = keras.Sequential([keras.Input((129,)), keras.layers.Flatten()])
    exported = save(model, ROWS, tmp_path / "out", features=layer)
    learned_from = layer.of(ROWS)
    assert learned_from.shape == (32, 129)
    assert np.array_equal(served(exported.saved_model, ROWS), learned_from)
    np.testing.assert_allclose(learned_from, np.asarray(features(tf.constant(ROWS))), rtol=1e-5)


def test_a_trained_model_answers_raw_rows_as_it_answers_their_features_to_the_bit(tmp_path: Path) -> None:
    layer = made(features, tmp_path / "features")
    model = keras.Sequential([keras.Input((129,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(layer.of(ROWS), np.arange(32) % 3, verbose=0)
    exported = save(model, ROWS, tmp_path / "out", features=layer, formats={"onnx": "required", "tflite": "required"})
    assert np.array_equal(served(exported.saved_model, ROWS), np.asarray(model(layer.of(ROWS), training=False)))
    assert json.loads(exported.signature.read_bytes())["inputs"] == {"pixels": {"dtype": "float32", "shape": [-1, 8, 8, 1]}}
    assert keras.saving.load_model(exported.model).input_shape == (None, 129)


def test_the_robustness_campaign_sees_the_neurons_behind_the_features_and_one_model_wherever_they_lie(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((129,)), keras.layers.Dense(3, activation="softmax", name="probabilities")])
    here = made(features, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    probe, moved = Probe(here.before(model)), Probe(Features(tmp_path / "there").before(model))
    assert [layer.name for layer in probe.layers] == ["probabilities"]
    np.testing.assert_allclose(probe.answer(ROWS).outputs, np.asarray(model(here.of(ROWS))), rtol=1e-5)
    assert probe.digest == moved.digest


def test_other_features_are_another_model(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(3, activation="softmax")])
    flat = made(lambda rows: tf.reshape(rows, (-1, 64)), tmp_path / "flat")
    doubled = made(lambda rows: tf.reshape(rows, (-1, 64)) * 2.0, tmp_path / "doubled")
    assert Probe(flat.before(model)).digest != Probe(doubled.before(model)).digest


@pytest.mark.parametrize("num_rows", [0, 1, BATCH, BATCH + 1])
def test_any_number_of_rows_has_features(tmp_path: Path, num_rows: int) -> None:
    rows = np.random.default_rng(6).random((num_rows, 8, 8, 1), dtype=np.float32)
    found = made(lambda rows: tf.reshape(rows, (-1, 64)), tmp_path / "features").of(rows)
    assert np.array_equal(found, rows.reshape(num_rows, 64))


def raises(rows: Any) -> Any:
    raise ZeroDivisionError("bins is 0")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (raises, "ZeroDivisionError: bins is 0"),
        (lambda rows: np.asarray(rows).sum(), "NotImplementedError: Cannot convert a symbolic"),
        (lambda rows: {"a": rows}, "TypeError: it returned {'a'"),
        (lambda rows: tf.reduce_mean(rows), "TypeError: it returned .*a row for each raw row is expected"),
        (lambda rows, more: rows, "ValueError: too many values"),
    ],
)
def test_a_function_that_cannot_be_served_is_refused_before_the_training(tmp_path: Path, function: Any, words: str) -> None:
    with pytest.raises(TrainFunctionError, match=rf"features function cannot be saved: {words}.*operations of TensorFlow only"):
        save_features(function, (8, 8, 1), tmp_path / "features")


def test_features_that_read_files_are_refused_wherever_they_are_loaded(tmp_path: Path) -> None:
    def reading(rows: tf.Tensor) -> tf.Tensor:
        return rows + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)

    save_features(reading, (8, 8, 1), tmp_path / "features")
    with pytest.raises(UnsafeModel, match="ReadFile"):
        Features(tmp_path / "features")
    assert Features(tmp_path / "features", code_allowed=True).of(ROWS).shape == ROWS.shape
