"""Models in every form that is offered, each asked the same rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from airflow_mlops.artifacts import write_atomically
from airflow_mlops.exceptions import NonFiniteModel, SpecError, TrainingError
from airflow_mlops.training import export
from airflow_mlops.training.export import FORMATS, check_parity, save
from tests.unit.training.own_layers import Inverse

ROWS = np.random.default_rng(5).random((32, 4, 4, 1), dtype=np.float32)


def small_model(*middle: keras.layers.Layer) -> keras.Model:
    dense = keras.layers.Dense(3, activation="softmax", name="probabilities")
    return keras.Sequential([keras.Input((4, 4, 1), name="image"), keras.layers.Conv2D(8, 2), keras.layers.Flatten(), *middle, dense])


def test_the_saved_forms_answer_like_the_model(tmp_path: Path) -> None:
    model = small_model()
    exported = save(model, ROWS, tmp_path / "out")
    golden = json.loads(exported.golden.read_bytes())
    rows = np.asarray(golden["inputs"], np.float32)
    assert np.array_equal(rows[:8], ROWS[:8])
    expected = model.predict(rows, verbose=0)
    np.testing.assert_allclose(golden["outputs"], expected, rtol=1e-5)
    np.testing.assert_allclose(keras.saving.load_model(exported.model).predict(rows, verbose=0), expected, rtol=1e-5)
    signature = tf.saved_model.load(str(exported.saved_model)).signatures["serving_default"]
    assert list(signature.structured_input_signature[1]) == ["image"]


def two_inputs() -> keras.Model:
    a, b = keras.Input((4, 4, 1)), keras.Input((4, 4, 1))
    return keras.Model([a, b], keras.layers.Add()([a, b]))


def unserializable() -> keras.Model:
    class Doubling(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            raise RuntimeError("cannot be traced")

        def compute_output_spec(self, inputs: Any) -> Any:
            return keras.KerasTensor(inputs.shape, inputs.dtype)

    return keras.Sequential([keras.Input((4, 4, 1)), Doubling()])


def two_outputs() -> keras.Model:
    rows = keras.Input((4, 4, 1))
    return keras.Model(rows, {"one": keras.layers.Flatten()(rows), "other": keras.layers.Conv2D(1, 2)(rows)})


def test_a_model_of_several_outputs_is_refused_and_one_with_a_name_is_not(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has 2 outputs; one is served"):
        save(two_outputs(), ROWS, tmp_path / "two")
    rows = keras.Input((4, 4, 1), name="image")
    model = keras.Model({"image": rows}, {"named": keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(rows))})
    assert list(json.loads(save(model, ROWS, tmp_path / "one").signature.read_bytes())["outputs"]) == ["named"]


@pytest.mark.parametrize("make", [two_inputs, unserializable])
def test_a_model_that_cannot_be_served_is_an_error_at_once(tmp_path: Path, make: Callable[[], keras.Model]) -> None:
    with pytest.raises(TrainingError, match="cannot be saved and loaded again"):
        save(make(), ROWS, tmp_path / "out")
    assert not (tmp_path / "out" / "golden.json").exists()


def test_a_model_that_answers_nan_leaves_no_golden_file(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Rescaling(1e38), keras.layers.Rescaling(1e38)])
    with pytest.raises(NonFiniteModel, match="answers NaN or infinity"):
        save(model, ROWS, tmp_path / "out")
    assert not (tmp_path / "out" / "golden.json").exists()


def test_without_sample_rows_nothing_is_saved(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no sample row"):
        save(small_model(), ROWS[:0], tmp_path / "out")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_takes_any_number_of_rows_and_answers_as_the_model(tmp_path: Path, name: str) -> None:
    model = small_model()
    exported = save(model, ROWS, tmp_path, formats={name: "required"})
    assert (list(exported.formats), exported.problems) == ([name], {})
    for rows in (ROWS, ROWS[:1]):
        answers = FORMATS[name].answers(exported.formats[name], rows)
        np.testing.assert_allclose(answers, model.predict(rows, verbose=0), atol=1e-6)


def test_input_and_output_have_the_same_names_in_the_onnx_file_and_in_the_signature(tmp_path: Path) -> None:
    exported = save(small_model(), ROWS, tmp_path, formats={"onnx": "required"})
    said = json.loads(exported.signature.read_bytes())
    assert said["inputs"] == {"image": {"dtype": "float32", "shape": [-1, 4, 4, 1]}}
    assert said["outputs"] == {"output_0": {"dtype": "float32", "shape": [-1, 3]}}
    session = onnxruntime.InferenceSession(str(exported.formats["onnx"]))
    assert [tensor.name for tensor in (*session.get_inputs(), *session.get_outputs())] == ["image", "output_0"]


def test_the_input_example_is_a_request_for_the_golden_rows(tmp_path: Path) -> None:
    exported = save(small_model(), ROWS, tmp_path)
    example = json.loads(exported.example.read_bytes())
    assert example == {"signature_name": "serving_default", "instances": json.loads(exported.golden.read_bytes())["inputs"]}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_that_cannot_hold_the_model_is_left_out_with_a_sentence_unless_it_is_required(tmp_path: Path, name: str) -> None:
    model = small_model(Inverse())
    exported = save(model, ROWS, tmp_path / "optional", formats={name: "optional"}, code_allowed=True)
    assert exported.formats == {}
    assert exported.problems[name].startswith(f"The model cannot be offered as '{name}'. ")
    assert not list(exported.model.parent.glob(FORMATS[name].file))
    with pytest.raises(TrainingError, match=f"cannot be offered as '{name}'.* call the format optional"):
        save(model, ROWS, tmp_path / "required", formats={name: "required"}, code_allowed=True)


def test_a_format_that_answers_differently_is_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def round_weights(saved_model: Path, path: Path) -> None:
        converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model))
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        write_atomically(path, converter.convert())

    monkeypatch.setitem(export.FORMATS, "tflite", FORMATS["tflite"]._replace(convert=round_weights))
    exported = save(small_model(keras.layers.Dense(64)), ROWS, tmp_path, formats={"tflite": "optional"})
    assert exported.formats == {}
    assert "'tflite' answers row" in exported.problems["tflite"]
    assert not (tmp_path / "model.tflite").exists()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([[0.5, 0.5], [0.3, 0.7002]], "row 1 .* by up to 0.0002: expected at most 0.0001"),
        ([[0.5, 0.5], [0.3, float("nan")]], "row 1 .* by up to nan"),
        ([[0.5, 0.5]], r"in shape \(1, 2\); expected \(2, 2\)"),
    ],
)
def test_parity_names_format_row_and_difference(found: Any, words: str) -> None:
    with pytest.raises(TrainingError, match=f"'onnx' answers {words}"):
        check_parity("onnx", np.array([[0.5, 0.5], [0.3, 0.7]]), np.array(found))


def test_parity_wants_the_same_choice_even_where_the_difference_is_small() -> None:
    expected = np.array([[0.50001, 0.49999]])
    check_parity("onnx", expected, expected + 1e-5)
    with pytest.raises(TrainingError, match="and the same choice"):
        check_parity("onnx", expected, expected[:, ::-1])
    check_parity("onnx", np.array([[0.5, 0.5]]), np.array([[0.49999, 0.50001]]))  # a tie: both choices are the model's


@pytest.mark.parametrize(("formats", "words"), [({"onxx": "required"}, "Did you mean 'onnx'"), ({"onnx": "maybe"}, "expected 'required' or")])
def test_an_impossible_format_is_refused_before_anything_is_written(tmp_path: Path, formats: dict[str, str], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        save(small_model(), ROWS, tmp_path / "out", formats=formats)
    assert not (tmp_path / "out").exists()
