"""Tensors as JSON: the shortest digits that mean the same, NaN bare, one object per row."""

from __future__ import annotations

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_mlops.serving.embedded import json_answers
from airflow_mlops.serving.embedded.refusal import Refusal
from airflow_mlops.serving.tensors import Array

NUMBERS = (np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32, np.uint64)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def strings(*values: bytes) -> Array:
    array: Array = np.empty(len(values), object)
    array[:] = values
    return array


def answer(*, as_rows: bool = True, **outputs: Array) -> Any:
    return json.loads(json_answers.predictions(outputs, as_rows=as_rows))


def written(number: float, beside: float = 0.0) -> str:
    """Return the text of one float32, written beside another."""
    text = json_answers.predictions({"y": np.array([number, beside], np.float32)}, as_rows=True).decode()
    return text.removeprefix('{"predictions":').strip(" []}").split(",")[0]


def digits(text: str) -> int:
    """Return how many digits a number is written with, not counting zeros that only place the point."""
    return len(text.lstrip("-").lower().split("e")[0].replace(".", "").strip("0")) or 1


@pytest.mark.parametrize("beside", [0.0, math.nan], ids=["among numbers", "beside a NaN"])
@pytest.mark.parametrize(
    ("number", "text"), [(0.1, "0.1"), (1.0, "1.0"), (3.4e38, "3.4e+38"), (np.pi, "3.1415927"), (-0.0, "-0.0"), (16777216.0, "16777216.0")]
)
def test_floats_are_written_with_the_fewest_digits_that_mean_the_same_float32(number: float, text: str, beside: float) -> None:
    assert written(number, beside) == text


@given(number=FLOATS, beside=st.sampled_from([0.0, math.nan]))
@example(number=float(np.float32(1e-45)), beside=0.0)
@example(number=float(np.finfo(np.float32).max), beside=math.nan)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_float32_is_read_back_as_itself_and_no_shorter_number_would_be(number: float, beside: float) -> None:
    text = written(number, beside)
    assert np.float32(text) == np.float32(number)
    assert math.copysign(1, float(text)) == math.copysign(1, number)
    with np.errstate(over="ignore"):
        for precision in range(digits(text) - 1):
            assert np.float32(f"{number:.{precision}e}") != np.float32(number), f"{text} could be {number:.{precision}e}"


@given(st.lists(st.floats(), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_float64_is_read_back_as_itself(numbers: list[float]) -> None:
    found = answer(y=np.array(numbers))["predictions"]
    assert np.array_equal(np.array(found, np.float64), np.array(numbers), equal_nan=True)


def test_a_whole_float_has_a_point_and_an_integer_has_none() -> None:
    outputs = {"f": np.array([2], np.float32), "d": np.array([2], np.float64), "i": np.array([2])}
    assert json_answers.predictions(outputs, as_rows=False) == b'{"outputs":{"f":[2.0],"d":[2.0],"i":[2]}}'


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinity_are_written_bare(dtype: Any) -> None:
    text = json_answers.predictions({"y": np.array([np.nan, np.inf, -np.inf, 0.5], dtype)}, as_rows=True)
    assert text == b'{"predictions": [NaN, Infinity, -Infinity, 0.5]}'
    assert json_answers.predictions({"y": np.array(np.nan, dtype)}, as_rows=False) == b'{"outputs": NaN}'


@pytest.mark.parametrize("odd", [1.5, math.nan, math.inf])
def test_outputs_of_every_type_stand_beside_each_other_with_and_without_a_nan(odd: float) -> None:
    outputs: dict[str, Array] = {np.dtype(kind).name: np.array([[1, 2], [3, 4]], kind) for kind in NUMBERS}
    outputs |= {"odd": np.array([odd, 0.1], np.float32), "bool": np.array([True, False]), "text": strings(b"a", "é".encode())}
    outputs["text_bytes"] = strings(b"\xff", b"")
    first, second = answer(**outputs)["predictions"]
    assert {first[np.dtype(kind).name] == [1, 2] and second[np.dtype(kind).name] == [3, 4] for kind in NUMBERS} == {True}
    assert repr(first["odd"]) == repr(odd) and second["odd"] == 0.1
    assert (first["bool"], second["bool"], first["text"], second["text"]) == (True, False, "a", "é")
    assert (first["text_bytes"], second["text_bytes"]) == ({"b64": "/w=="}, {"b64": ""})
    columns = answer(as_rows=False, **outputs)["outputs"]
    assert columns.keys() == first.keys() == outputs.keys()
    assert all(repr(columns[name]) == repr([first[name], second[name]]) for name in outputs)


@pytest.mark.parametrize("dtype", NUMBERS, ids=lambda kind: np.dtype(kind).name)
def test_the_limits_of_every_type_are_written_as_they_are(dtype: Any) -> None:
    info: Any = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    limits = np.array([info.min, info.max], dtype)
    assert np.array_equal(np.array(answer(y=limits)["predictions"], dtype), limits)


def test_several_outputs_are_objects_by_name() -> None:
    outputs = {"a": np.array([1, 2]), "b": np.array([[True], [False]])}
    assert answer(**outputs) == {"predictions": [{"a": 1, "b": [True]}, {"a": 2, "b": [False]}]}
    assert answer(as_rows=False, **outputs) == {"outputs": {"a": [1, 2], "b": [[True], [False]]}}


def test_one_output_is_written_without_its_name() -> None:
    assert answer(a=np.array([[1], [2]])) == {"predictions": [[1], [2]]}
    assert answer(as_rows=False, a=np.array([[1], [2]])) == {"outputs": [[1], [2]]}


def test_binary_outputs_come_back_in_base64_when_their_name_says_so() -> None:
    assert answer(image_bytes=strings(b"\xff"), name=strings(b"cat")) == {"predictions": [{"image_bytes": {"b64": "/w=="}, "name": "cat"}]}
    assert answer(image_bytes=strings(b"\x00\xff")) == {"predictions": [{"b64": "AP8="}]}
    nested = np.array([[b"a", b"b"]], object)
    assert answer(x_bytes=nested) == {"predictions": [[{"b64": "YQ=="}, {"b64": "Yg=="}]]}


def test_strings_that_are_no_text_are_answered_with_signs_of_replacement() -> None:
    assert answer(y=strings(b"a\xffb")) == {"predictions": ["a�b"]}
    assert answer(y=strings(b"\xff", b'"\\\n\x00')) == {"predictions": ["�", '"\\\n\x00']}


def test_a_nan_beside_a_string_changes_nothing_of_it() -> None:
    text = 'é € \U0001f600 " \\ \n'
    assert answer(text=strings(text.encode()), y=np.array([np.nan]))["predictions"][0]["text"] == text


def test_outputs_without_a_common_batch_are_refused_as_rows_and_given_as_columns() -> None:
    for outputs, words in (
        ({"loss": np.array(1.5)}, "Tensor name: loss has no shape information"),
        ({"y": np.zeros(2), "loss": np.array(1.5)}, "Tensor name: loss has no shape information"),
        ({"a": np.zeros(2), "b": np.zeros(3)}, "Tensor name: b has inconsistent batch size: 3 expecting: 2"),
    ):
        with pytest.raises(Refusal, match=words) as refused:
            json_answers.predictions(outputs, as_rows=True)
        assert refused.value.http_status == 400
    assert answer(as_rows=False, loss=np.array(1.5)) == {"outputs": 1.5}
    assert answer(as_rows=False, loss=np.array(0.1, np.float32), n=np.array(2), ok=np.array(True), s=np.array(b"a", object)) == {
        "outputs": {"loss": 0.1, "n": 2, "ok": True, "s": "a"}
    }


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 2), (2, 0, 3)])
def test_empty_tensors_keep_their_shape_as_far_as_json_has_one(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, np.float32)
    assert answer(y=array) == {"predictions": array.tolist()}
    assert answer(y=array, z=array) == {"predictions": [{"y": row, "z": row} for row in array.tolist()]}
    assert answer(as_rows=False, y=array, z=array) == {"outputs": {"y": array.tolist(), "z": array.tolist()}}


def test_an_array_that_does_not_lie_in_one_piece_is_written_in_its_order() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for view in (array.T, array[::2], array[:, ::-1], np.asfortranarray(array)):
        assert answer(y=view) == {"predictions": view.tolist()}
        assert answer(y=view, z=view)["predictions"][1] == {"y": view.tolist()[1], "z": view.tolist()[1]}


@pytest.mark.parametrize("dtype", [np.float16, np.uint16, ml_dtypes.bfloat16, np.complex64, np.complex128], ids=lambda kind: np.dtype(kind).name)
def test_types_that_json_has_no_form_for_are_refused(dtype: Any) -> None:
    with pytest.raises(
        Refusal, match=r"Failed to write JSON value for tensor type: (half|uint16|bfloat16|complex64|complex128): output 'y'; ask by gRPC"
    ) as refused:
        json_answers.predictions({"x": np.zeros(2), "y": np.zeros(2, dtype)}, as_rows=True)
    assert refused.value.http_status == 400


def test_results_of_classify_and_regress_are_written_alike() -> None:
    assert json_answers.results([[("yes", 0.5)]], np.array([0.5], np.float32)) == b'{"results":[[["yes",0.5]]]}'
    assert json_answers.results([math.nan, 0.5], np.array([math.nan, 0.5], np.float32)) == b'{"results": [NaN, 0.5]}'
    assert json_answers.results(json_answers.shortest(np.array([0.1, 1], np.float32)), np.zeros(1)) == b'{"results":[0.1,1.0]}'


@pytest.mark.parametrize("as_rows", [True, False])
def test_a_large_answer_is_written_in_pieces_as_it_is_written_whole(monkeypatch: pytest.MonkeyPatch, as_rows: bool) -> None:
    numbers = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    odd = numbers.copy()
    odd[7, 1] = np.nan
    answers: list[dict[str, Array]] = [{"y": numbers}, {"y": odd}, {"y": strings(*[b"a", b"]"] * 25)}, {"y": numbers, "z": np.arange(50)}]
    expected = [repr(answer(as_rows=as_rows, **one)) for one in answers]
    monkeypatch.setattr(json_answers, "_PIECE", 20)
    assert [repr(answer(as_rows=as_rows, **one)) for one in answers] == expected
    assert answer(as_rows=False, y=np.float32(1.5)) == {"outputs": 1.5}
