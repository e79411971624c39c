"""Large bodies read piece by piece: as they are read as a whole, refused as they are refused as a whole."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlops.serving.embedded import json_chunks, json_tensors, json_text
from airflow_mlops.serving.embedded.refusal import Refusal

FLOAT, INT, STRING, BOOL = (np.dtype(kind) for kind in (np.float32, np.int32, np.object_, np.bool_))
Types = dict[str, np.dtype[Any]]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_chunks, "_PIECE", 40)


def in_pieces(body: bytes, types: Types) -> Any:
    rows = json_chunks.found(body)
    return None if rows is None else json_chunks.inputs_of(rows, types)


def whole(body: bytes, types: Types) -> Any:
    return json_tensors.inputs_of(json_text.parse(body), types)


def same(found: Any, expected: Any) -> None:
    assert found is not None and found[1] == expected[1] and found[0].keys() == expected[0].keys()
    for name, array in found[0].items():
        assert (array.dtype, array.shape) == (expected[0][name].dtype, expected[0][name].shape)
        assert np.array_equal(array, expected[0][name], equal_nan=array.dtype.kind == "f")


IMAGES = np.arange(300.0).reshape(20, 5, 3, 1).tolist()


@pytest.mark.parametrize(
    ("rows", "types"),
    [
        ([1, 2, 3] * 50, {"x": INT}),
        ([0.5, 2, -3e7] * 50, {"x": FLOAT}),
        ([[1.5, 2.5, 3.5, 4.5]] * 50, {"x": FLOAT}),
        (IMAGES, {"x": FLOAT}),
        ([[[], []]] * 30, {"x": FLOAT}),
        ([True, False] * 30, {"x": BOOL}),
        (["a,b", "],[", 'q"],', "é"] * 30, {"x": STRING}),
        ([["a", "b],"], ["c", ""]] * 30, {"x": STRING}),
        ([{"b64": "YQ=="}, {"b64": ""}] * 30, {"x": STRING}),
        ([{"x": [1, 2]}, {"x": [3, 4]}] * 30, {"x": INT}),
        ([{"x": 1.0, "s": "},{"}, {"s": "b", "x": 2.0}] * 30, {"x": FLOAT, "s": STRING}),
        ([{"x": {"b64": "YQ=="}, "y": 1}] * 30, {"x": STRING, "y": INT}),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_of_every_kind_are_read_as_they_are_as_a_whole(rows: list[Any], types: Types, indent: int | None) -> None:
    for key in ("instances", "inputs"):
        if key == "inputs" and isinstance(rows[0], dict) and "b64" not in rows[0]:
            continue  # rows only
        for body in ({key: rows}, {"signature_name": "s", key: rows}, {key: rows, "signature_name": "s"}):
            text = json.dumps(body, indent=indent).encode()
            same(in_pieces(text, types), whole(text, types))
            found = json_chunks.found(text)
            assert found is not None and (found.signature, found.key) == (body.get("signature_name", ""), key)


def test_not_a_number_is_read_in_pieces_too() -> None:
    body = b'{"instances": [' + b"NaN, 1.0, -Infinity, " * 30 + b"2]}"
    same(in_pieces(body, {"x": FLOAT}), whole(body, {"x": FLOAT}))


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs": {"x": [1, 2]}}',
        b'{"signature_name": "s", "instances": [1], "signature_name": "t"}',
        b'{"signature_name": "\\u0041", "instances": [1]}',
        b'{"instances": [1, 2]} and more',
        b'{"instances": 1}',
        b"[1]",
        b"",
    ],
)
def test_what_is_not_one_list_is_left_to_be_read_as_a_whole(body: bytes) -> None:
    assert json_chunks.found(body) is None


@pytest.mark.parametrize(
    "rows",
    ["[1, 2]," * 30 + "[1, 2", "1," * 100, "1,,2", "1," * 50 + "2 3", '1, 2], "more": [1', '1, 2], "inputs": [1', "[1]," * 30 + '"b'],
)
def test_what_cannot_be_cut_is_left_to_be_read_as_a_whole(rows: str) -> None:
    assert in_pieces(b'{"instances": [' + rows.encode() + b"]}", {"x": INT}) is None


@pytest.mark.parametrize(
    ("rows", "types"),
    [
        ([[1, 2]] * 40 + [[1, 2, 3]] + [[1, 2]] * 40, {"x": INT}),
        ([[1, 2]] * 40 + [[[1, 2]]], {"x": INT}),
        ([1] * 100 + [1.5], {"x": INT}),
        ([1] * 100 + [2**31], {"x": INT}),
        ([1.0] * 100 + [True], {"x": FLOAT}),
        ([1.0] * 100 + ["a"], {"x": FLOAT}),
        ([{"x": 1}] * 40 + [{"y": 1}], {"x": INT}),
        ([{"x": 1, "y": 2}] * 40 + [{"x": 1}], {"x": INT, "y": INT}),
    ],
)
def test_what_is_wrong_is_refused_with_the_words_and_the_number_it_has_in_the_whole(rows: list[Any], types: Types) -> None:
    body = json.dumps({"instances": rows}).encode()
    with pytest.raises(Refusal) as expected:
        whole(body, types)
    with pytest.raises(Refusal) as found:
        in_pieces(body, types)
    assert (str(found.value), found.value.code) == (str(expected.value), expected.value.code)


LEAVES = st.one_of(st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text(max_size=4), st.none())
ROWS = st.lists(
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2), max_leaves=4)
)


@given(rows=ROWS, repeat=st.integers(1, 12), dtype=st.sampled_from([FLOAT, INT, STRING, BOOL]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_whatever_the_rows_are_pieces_give_what_the_whole_gives_or_nothing(rows: list[Any], repeat: int, dtype: np.dtype[Any]) -> None:
    body, types = json.dumps({"instances": rows * repeat}).encode(), {"x": dtype}
    json_chunks._PIECE = 40
    try:
        expected = whole(body, types)
    except Refusal:
        expected = None
    try:
        found = in_pieces(body, types)
    except Refusal:
        assert expected is None
        return
    if found is not None:
        assert expected is not None
        same(found, expected)
