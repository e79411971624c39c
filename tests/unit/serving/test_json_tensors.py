from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from airflow_mlops.serving.embedded import json_tensors
from airflow_mlops.serving.embedded.refusal import Refusal

FLOAT, DOUBLE, INT, UINT8, BOOL, STRING = (np.dtype(t) for t in (np.float32, np.float64, np.int32, np.uint8, np.bool_, np.object_))


def rows(body: str, types: dict[str, np.dtype[Any]]) -> dict[str, Any]:
    tensors, _ = json_tensors.inputs_of(json_tensors.parse(body.encode()), types)
    return {name: tensor.tolist() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("body", "types", "expected"),
    [
        ('{"instances": [1, 2.5]}', {"x": FLOAT}, {"x": [1.0, 2.5]}),
        ('{"instances": [[1, 2], [3, 4]]}', {"x": INT}, {"x": [[1, 2], [3, 4]]}),
        ('{"instances": [NaN, -Infinity]}', {"x": DOUBLE}, {"x": pytest.approx([float("nan"), float("-inf")], nan_ok=True)}),
        ('{"instances": [true, false]}', {"x": BOOL}, {"x": [True, False]}),
        ('{"instances": ["é", {"b64": "AAE="}]}', {"x": STRING}, {"x": ["é".encode(), b"\x00\x01"]}),
        ('{"instances": [{"a": 1, "b": [2]}, {"b": [4], "a": 3}]}', {"a": INT, "b": FLOAT}, {"a": [1, 3], "b": [[2.0], [4.0]]}),
        ('{"inputs": 3}', {"x": INT}, {"x": 3}),
        ('{"inputs": {"a": [1], "b": [[2]]}}', {"a": INT, "b": FLOAT}, {"a": [1], "b": [[2.0]]}),
        ('  {"instances": [1]} trailing', {"x": INT}, {"x": [1]}),
    ],
)
def test_json_becomes_tensors(body: str, types: dict[str, np.dtype[Any]], expected: dict[str, Any]) -> None:
    assert rows(body, types) == expected


@pytest.mark.parametrize(
    ("body", "types", "words"),
    [
        ("", {"x": INT}, "The document is empty"),
        ("{", {"x": INT}, "JSON Parse error"),
        ("[1]", {"x": INT}, "Is not object"),
        ("[" * 100_000, {"x": INT}, "JSON Parse error"),
        ('{"instances": [' + "9" * 5000 + "]}", {"x": INT}, "JSON Parse error"),
        ("{}", {"x": INT}, "Missing 'inputs' or 'instances' key"),
        ('{"instances": [1], "inputs": [1]}', {"x": INT}, "expecting only one of"),
        ('{"instances": 1}', {"x": INT}, "to be an list/array"),
        ('{"instances": []}', {"x": INT}, "No values in 'instances' array"),
        ('{"instances": [1]}', {"a": INT, "b": INT}, "expecting list of objects"),
        ('{"instances": [{"a": 1}]}', {"a": INT, "b": INT}, "keys must be equal to: a,b"),
        ('{"instances": [{"x": 1}, 2]}', {"x": INT}, "Expecting object but got list at item 1"),
        ('{"instances": [1, {"x": 2}]}', {"x": INT}, "Expecting value/list but got object at item 1"),
        ('{"instances": [[1, 2], [3]]}', {"x": INT}, "unexpected size"),
        ('{"instances": [[1, 2], 3]}', {"x": INT}, "incorrect level"),
        ('{"instances": [1, [2]]}', {"x": INT}, "unexpected level"),
        ('{"instances": [1.5]}', {"x": INT}, "not of expected type"),
        ('{"instances": [true]}', {"x": INT}, "not of expected type"),
        ('{"instances": [1]}', {"x": BOOL}, "not of expected type"),
        ('{"instances": ["1"]}', {"x": FLOAT}, "not of expected type"),
        ('{"instances": [null]}', {"x": FLOAT}, "not of expected type"),
        ('{"instances": [256]}', {"x": UINT8}, "out of range"),
        ('{"instances": [' + "9" * 400 + "]}", {"x": FLOAT}, "too large"),
        ('{"instances": [{"b64": "?"}]}', {"x": STRING}, "Unable to base64 decode"),
        ('{"inputs": {"a": 1}}', {"a": INT, "b": INT}, "Missing named input: b"),
        ('{"inputs": ' + "[" * 40 + "1" + "]" * 40 + "}", {"x": INT}, "nested 40 deep"),
        ('{"instances": [1]}', {"x": np.dtype(np.float16)}, "not of expected type"),
    ],
)
def test_json_that_does_not_fit_is_refused_with_a_reason(body: str, types: dict[str, np.dtype[Any]], words: str) -> None:
    with pytest.raises(Refusal, match=words) as refused:
        rows(body, types)
    assert refused.value.http_status == 400


def test_floats_are_written_with_the_fewest_digits_that_mean_the_same_float32() -> None:
    numbers = np.array([0.1, 1.0, 1e-7, 3.4e38, np.pi], np.float32)
    text = json.dumps(json_tensors.answer({"y": numbers}, as_rows=True))
    assert text == '{"predictions": [0.1, 1.0, 1e-07, 3.4e+38, 3.1415927]}'


def test_nan_and_infinity_are_written_bare() -> None:
    text = json.dumps(json_tensors.answer({"y": np.array([np.nan, np.inf, -np.inf], np.float32)}, as_rows=True))
    assert text == '{"predictions": [NaN, Infinity, -Infinity]}'


def test_several_outputs_are_objects_by_name() -> None:
    outputs = {"a": np.array([1, 2]), "b": np.array([[True], [False]])}
    assert json_tensors.answer(outputs, as_rows=True) == {"predictions": [{"a": 1, "b": [True]}, {"a": 2, "b": [False]}]}
    assert json_tensors.answer(outputs, as_rows=False) == {"outputs": {"a": [1, 2], "b": [[True], [False]]}}


def test_binary_outputs_come_back_in_base64_when_their_name_says_so() -> None:
    outputs = {"image_bytes": np.array([b"\xff"], object), "name": np.array([b"cat"], object)}
    assert json_tensors.answer(outputs, as_rows=True) == {"predictions": [{"image_bytes": {"b64": "/w=="}, "name": "cat"}]}


def test_outputs_without_a_common_batch_are_refused_as_rows_and_given_as_columns() -> None:
    with pytest.raises(Refusal, match="has no shape information"):
        json_tensors.answer({"loss": np.array(1.5)}, as_rows=True)
    with pytest.raises(Refusal, match="inconsistent batch sizes"):
        json_tensors.answer({"a": np.zeros(2), "b": np.zeros(3)}, as_rows=True)
    assert json_tensors.answer({"loss": np.array(1.5)}, as_rows=False) == {"outputs": 1.5}
