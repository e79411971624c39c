"""Requests in JSON as tensors: by the rules of the original, and the quick way by the same rules as the careful one."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_mlops.serving.embedded import json_tensors, json_text
from airflow_mlops.serving.embedded.refusal import Refusal

FLOAT, DOUBLE, INT, LONG, UINT8, UINT64, BOOL, STRING = (
    np.dtype(t) for t in (np.float32, np.float64, np.int32, np.int64, np.uint8, np.uint64, np.bool_, np.object_)
)
INTEGERS = [np.dtype(t) for t in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32, np.uint64)]
NUMBERS = [FLOAT, DOUBLE, *INTEGERS]
Types = dict[str, np.dtype[Any]]


def tensors(body: str | bytes, types: Types) -> dict[str, Any]:
    return json_tensors.inputs_of(json_text.parse(body.encode() if isinstance(body, str) else body), types)[0]


def rows(body: str, types: Types) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in tensors(body, types).items()}


@pytest.mark.parametrize(
    ("body", "types", "expected"),
    [
        ('{"instances": [1, 2.5]}', {"x": FLOAT}, {"x": [1.0, 2.5]}),
        ('{"instances": [[1, 2], [3, 4]]}', {"x": INT}, {"x": [[1, 2], [3, 4]]}),
        ('{"instances": [NaN, -Infinity]}', {"x": DOUBLE}, {"x": pytest.approx([float("nan"), float("-inf")], nan_ok=True)}),
        ('{"instances": [NaN, Infinity]}', {"x": FLOAT}, {"x": pytest.approx([float("nan"), float("inf")], nan_ok=True)}),
        ('{"instances": [true, false]}', {"x": BOOL}, {"x": [True, False]}),
        ('{"instances": ["é", {"b64": "AAE="}]}', {"x": STRING}, {"x": ["é".encode(), b"\x00\x01"]}),
        ('{"instances": [["a"], ["b\\u0000"]]}', {"x": STRING}, {"x": [[b"a"], [b"b\x00"]]}),
        ('{"instances": [{"b64": ""}]}', {"x": STRING}, {"x": [b""]}),
        ('{"instances": [{"a": 1, "b": [2]}, {"b": [4], "a": 3}]}', {"a": INT, "b": FLOAT}, {"a": [1, 3], "b": [[2.0], [4.0]]}),
        ('{"instances": [{"x": 1}, {"x": 2}]}', {"x": INT}, {"x": [1, 2]}),
        ('{"instances": [{"b64": {"b64": "YQ=="}}]}', {"b64": STRING}, {"b64": [b"a"]}),
        ('{"inputs": 3}', {"x": INT}, {"x": 3}),
        ('{"inputs": {"b64": "YQ=="}}', {"x": STRING}, {"x": b"a"}),
        ('{"inputs": {"a": [1], "b": [[2]]}}', {"a": INT, "b": FLOAT}, {"a": [1], "b": [[2.0]]}),
        ('{"inputs": {"a": true, "b": 2, "c": "c"}}', {"a": BOOL, "b": FLOAT, "c": STRING}, {"a": True, "b": 2.0, "c": b"c"}),
        ('  {"instances": [1]} trailing', {"x": INT}, {"x": [1]}),
        ('{"instances": [[], []]}', {"x": FLOAT}, {"x": [[], []]}),
        ('{"inputs": []}', {"x": LONG}, {"x": []}),
        ('{"instances": [9223372036854775807, -9223372036854775808]}', {"x": LONG}, {"x": [2**63 - 1, -(2**63)]}),
        ('{"instances": [18446744073709551615]}', {"x": UINT64}, {"x": [2**64 - 1]}),
        ('{"instances": [1e39, -1e39]}', {"x": FLOAT}, {"x": [math.inf, -math.inf]}),
        ('{"instances": [1180591620717411303424]}', {"x": DOUBLE}, {"x": [float(2**70)]}),
        ('{"instances": [256, -1]}', {"x": UINT8}, {"x": [0, 255]}),  # small integers are int32 on the way, and cut
        ('{"instances": [1], "signature_name": "s", "more": {"x": [true, null]}}', {"x": INT}, {"x": [1]}),
    ],
)
def test_json_becomes_tensors(body: str, types: Types, expected: dict[str, Any]) -> None:
    assert rows(body, types) == expected


@pytest.mark.parametrize(
    ("body", "types", "words"),
    [
        ("", {"x": INT}, "The document is empty"),
        ("{", {"x": INT}, "JSON Parse error"),
        ("[1]", {"x": INT}, "Is not object"),
        ("NaN", {"x": INT}, "Is not object"),
        ("[" * 100_000, {"x": INT}, "JSON Parse error"),
        ('{"instances": [' + "9" * 5000 + "]}", {"x": INT}, "JSON Parse error"),
        ('{"instances": [1e400]}', {"x": DOUBLE}, "Number too big to be stored in double"),
        ('{"instances": [-1e400, NaN]}', {"x": DOUBLE}, "Number too big to be stored in double"),
        ("{}", {"x": INT}, "Missing 'inputs' or 'instances' key"),
        ('{"instances": [1], "inputs": [1]}', {"x": INT}, "expecting only one of"),
        ('{"instances": 1}', {"x": INT}, "to be an list/array"),
        ('{"instances": {"x": [1]}}', {"x": INT}, "to be an list/array"),
        ('{"instances": []}', {"x": INT}, "No values in 'instances' array"),
        ('{"instances": [1]}', {}, "Failed to get input map for signature: DEFAULT"),
        ('{"instances": [1]}', {"a": INT, "b": INT}, "expecting list of objects"),
        ('{"inputs": [1]}', {"a": INT, "b": INT}, "expecting an object"),
        ('{"instances": [{"a": 1}]}', {"a": INT, "b": INT}, "keys must be equal to: a,b"),
        (
            '{"instances": [{"x": 1}, {"x": 1, "y": 2}]}',
            {"x": INT},
            "Failed to process element: 1 key: y of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does not have named input: y",
        ),
        ('{"instances": [{"x": 1}, 2]}', {"x": INT}, "Expecting object but got list at item 1"),
        ('{"instances": [1, {"x": 2}]}', {"x": INT}, "Expecting value/list but got object at item 1"),
        ('{"instances": [[1, 2], [3]]}', {"x": INT}, "element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: 1"),
        ('{"instances": [[], [3]]}', {"x": INT}, "Expecting tensor size: 0 but got: 1"),
        ('{"instances": [[1, 2], 3]}', {"x": INT}, "Expecting tensor size: 2 but got: 1"),
        ('{"instances": [1, [2]]}', {"x": INT}, r"Expecting shape \[\] but got: \[1\]"),
        ('{"instances": [[1, 2], [3, 4], [[5, 6]]]}', {"x": INT}, r"Expecting shape \[2\] but got: \[1,2\]"),
        ('{"instances": [[[1, 2], [3]]]}', {"x": INT}, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ('{"instances": [[[1, 2], 3]]}', {"x": INT}, "JSON Value: 3 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
        ('{"instances": [[1, [2]]]}', {"x": INT}, "Encountered list at unexpected level: 1 expected < 1"),
        ('{"instances": [{"x": 1, "z": 2}]}', {"x": INT}, "element: 0 key: z of .* does not have named input: z"),
        ('{"instances": [1.5]}', {"x": INT}, "not of expected type"),
        ('{"instances": [1.0]}', {"x": INT}, "not of expected type"),
        ('{"instances": [1e3]}', {"x": LONG}, "not of expected type"),
        ('{"instances": [NaN]}', {"x": INT}, "not of expected type"),
        ('{"instances": [true]}', {"x": INT}, "not of expected type"),
        ('{"instances": [1, false]}', {"x": INT}, "not of expected type"),
        ('{"instances": [1.5, true]}', {"x": FLOAT}, "not of expected type"),
        ('{"instances": [1]}', {"x": BOOL}, "not of expected type"),
        ('{"instances": ["1"]}', {"x": FLOAT}, "not of expected type"),
        ('{"instances": ["true"]}', {"x": BOOL}, "not of expected type"),
        ('{"instances": [1]}', {"x": STRING}, "not of expected type: string"),
        ('{"instances": [null]}', {"x": FLOAT}, "not of expected type"),
        ('{"instances": [{"b64": "YQ=="}]}', {"x": FLOAT}, "not of expected type"),
        ('{"instances": [2147483648]}', {"x": UINT8}, "JSON Value: 2147483648 Type: Number is not of expected type: uint8"),
        ('{"instances": [-1]}', {"x": UINT64}, "JSON Value: -1 Type: Number is not of expected type: uint64"),
        ('{"instances": [6]}', {"x": np.dtype(np.uint16)}, "Error: UNIMPLEMENTED: Conversion of JSON Value: 6 to type: uint16"),
        ('{"instances": [9223372036854775808]}', {"x": LONG}, "Type: Number is not of expected type: int64"),
        ('{"instances": [' + "9" * 400 + "]}", {"x": FLOAT}, "Number too big to be stored in double"),
        ('{"instances": [{"b64": "?"}]}', {"x": STRING}, "Unable to base64 decode"),
        ('{"instances": [{"b64": "Y"}]}', {"x": STRING}, "Unable to base64 decode"),
        ('{"instances": [{"b64": "YQ="}]}', {"x": STRING}, "Unable to base64 decode"),
        ('{"instances": [{"b64": "YQ==", "more": 1}]}', {"x": STRING}, "does not have named input: b64"),
        ('{"instances": [{"b64": 1}]}', {"x": STRING}, "does not have named input: b64"),
        ('{"instances": [[{"b64": 1}]]}', {"x": STRING}, "not formatted correctly for base64 data"),
        ('{"instances": [{"x": {"b64": "YQ==", "more": 1}}]}', {"x": STRING}, "not formatted correctly for base64 data"),
        ('{"instances": [[{"a": 1}]]}', {"x": INT}, "Type: Object is not of expected type: int32"),
        ('{"inputs": {"a": 1}}', {"a": INT, "b": INT}, "Missing named input: b"),
        ('{"inputs": ' + "[" * 40 + "1" + "]" * 40 + "}", {"x": INT}, "nested 40 deep"),
        ('{"inputs": ' + "[" * 70 + "1" + "]" * 70 + "}", {"x": INT}, "nested 70 deep"),
        ('{"instances": [1]}', {"x": np.dtype(np.float16)}, "Conversion of JSON Value: 1 to type: half"),
        ('{"instances": [1]}', {"x": np.dtype(np.complex64)}, "Conversion of JSON Value: 1 to type: complex64"),
    ],
)
def test_json_that_does_not_fit_is_refused_with_a_reason(body: str, types: Types, words: str) -> None:
    with pytest.raises(Refusal, match=words) as refused:
        rows(body, types)
    assert refused.value.http_status == 400


@pytest.mark.parametrize("body", [b"\xff\xfe{\x00", b"\x00"])
def test_bytes_that_are_no_json_are_refused(body: bytes) -> None:
    with pytest.raises(Refusal, match="JSON Parse error"):
        tensors(body, {"x": STRING})


def test_bytes_that_are_no_text_are_a_string_s_bytes_and_a_mark_of_their_order_is_no_part_of_it() -> None:
    assert rows('{"instances": ["a"]}', {"x": STRING}) == {"x": [b"a"]}
    assert tensors(b'\xef\xbb\xbf{"instances": ["\xff\x80"]}', {"x": STRING})["x"].tolist() == [b"\xff\x80"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("  ", "The document is empty."),
        ("instances = [1, 2]", "Invalid value. at offset: 0"),
        ('{"instances": }', "Invalid value. at offset: 14"),
        ("{instances: [1]}", "Missing a name for object member. at offset: 1"),
        ('{"instances" [1]}', "Missing a colon after a name of object member. at offset: 13"),
        ('{"instances": [1] "x": 1}', "Missing a comma or } after an object member. at offset: 18"),
        ('{"instances": [{"a": "]"} 2]}', "Missing a comma or ] after an array element. at offset: 26"),
        ('{"instances": ["a]}', "Missing a closing quotation mark in string."),
        ('{"instances": ["\\q"]}', "Invalid escape character in string."),
        ('{"instances": ["\\u12x4"]}', "Incorrect hex digit after \\\\u escape in string."),
        ('{"instances": ["\\ud800"]}', "The surrogate pair in string is invalid."),
        ('{"instances": ["\n"]}', "Invalid encoding in string."),
    ],
)
def test_what_is_no_json_is_refused_in_the_words_of_the_original_s_parser(body: str, words: str) -> None:
    with pytest.raises(Refusal, match=f"JSON Parse error: {words}"):
        tensors(body, {"x": STRING})


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        ([1, [True, "é"]], '[1, [true, "é"]]'),
        ({}, "{}"),
        ({"x": [1], "y": {"z": 1e30}}, '{\n    "x": [1],\n    "y": {\n        "z": 1e30\n    }\n}'),
    ],
)
def test_a_value_is_shown_as_the_original_shows_it(value: Any, shown: str) -> None:
    assert json_text.show(value) == shown


@pytest.mark.parametrize("value", [[1] * 10**6, {str(number): number for number in range(10**5)}, "x" * 10**6], ids=["list", "object", "string"])
def test_of_a_long_value_only_its_beginning_is_shown(value: Any) -> None:
    assert 250 < len(json_text.show(value)) <= 1024
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert json_text.show(deep) == "[" * 256


def test_a_string_that_no_text_can_hold_is_refused() -> None:
    with pytest.raises(Refusal):
        tensors('{"instances": ["\\ud800"]}', {"x": STRING})


def test_the_signatures_name_is_a_string_or_not_there() -> None:
    assert json_tensors.signature_name(json_text.parse(b'{"signature_name": "s"}')) == "s"
    assert json_tensors.signature_name(json_text.parse(b"{}")) == ""
    with pytest.raises(Refusal, match="must be a string"):
        json_tensors.signature_name(json_text.parse(b'{"signature_name": 1}'))


def test_rows_and_columns_are_told_apart() -> None:
    assert json_tensors.inputs_of(json_text.parse(b'{"instances": [1]}'), {"x": INT})[1]
    assert not json_tensors.inputs_of(json_text.parse(b'{"inputs": [1]}'), {"x": INT})[1]


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return nested lists: whole ones of one shape, and ones that fit together nowhere."""
    shapes = st.lists(st.integers(0, 3), max_size=3)

    def whole(shape: list[int]) -> st.SearchStrategy[Any]:
        strategy = leaves
        for size in reversed(shape):
            strategy = st.lists(strategy, min_size=size, max_size=size)
        return strategy

    return st.one_of(shapes.flatmap(whole), st.recursive(leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=6))


# Beyond 2**53 an integer is read on two ways to a float32, see below.
SAFE = st.integers(-(2**53), 2**53)
EDGES = st.sampled_from([limit + offset for dtype in INTEGERS for limit in (np.iinfo(dtype).min, np.iinfo(dtype).max) for offset in (-1, 0, 1)])
FLOATS = st.floats(allow_nan=True, allow_infinity=True)
LEAVES = st.one_of(SAFE, FLOATS, st.floats(width=32), st.just(3.5e38), st.just("1"), st.none())
INTEGER_LEAVES = st.one_of(EDGES, SAFE, st.integers(-300, 300), st.just(1.0), st.integers(2**64, 2**70))


def carefully(value: Any, dtype: np.dtype[Any]) -> Any:
    try:
        with np.errstate(over="ignore"):
            return json_tensors._checked(value, dtype)
    except Refusal:
        return None


def plain(value: Any, dtype: np.dtype[Any]) -> bool:
    """Return whether `value` is a list of numbers, nested or not, that the quick way is for: small integers, or fractions for a fraction's type."""
    try:
        array = np.array(value)
    except ValueError:
        return False
    kinds = "i" if dtype.kind in "iu" else "if"
    return isinstance(value, list) and array.size > 0 and array.dtype.kind in kinds and bool(np.all(np.abs(array) < 2**31))


def agree(value: Any, dtype: np.dtype[Any]) -> None:
    """The quick way gives what the careful one gives; it leaves to that what is refused, and what is no whole block of plain numbers."""
    quick, careful = json_tensors._numbers(value, dtype), carefully(value, dtype)
    if quick is None:
        assert careful is None or not plain(value, dtype), "the quick way left plain numbers to the careful one"
        return
    assert careful is not None, "the quick way took what is to be refused"
    assert (quick.dtype, quick.shape) == (careful.dtype, careful.shape)
    assert np.array_equal(quick, careful, equal_nan=dtype.kind == "f")


@given(value=nested(LEAVES), dtype=st.sampled_from([FLOAT, DOUBLE]))
@example(value=[2**53 + 1, 0.5], dtype=DOUBLE)
@example(value=[2**53 + 1], dtype=DOUBLE)
@example(value=[[1.0], []], dtype=FLOAT)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_quick_and_the_careful_way_agree_on_floats(value: Any, dtype: np.dtype[Any]) -> None:
    agree(value, dtype)


@given(value=nested(INTEGER_LEAVES), dtype=st.sampled_from(INTEGERS))
@example(value=[2**63, -1], dtype=LONG)
@example(value=[2**63, -1], dtype=UINT64)
@example(value=[], dtype=LONG)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_quick_and_the_careful_way_agree_on_integers(value: Any, dtype: np.dtype[Any]) -> None:
    agree(value, dtype)


def test_both_ways_round_a_large_integer_to_the_same_float() -> None:
    agree([2**60 + 2**36 + 1], FLOAT)


@given(value=nested(st.one_of(SAFE, st.floats(allow_nan=False, allow_infinity=False))), dtype=st.sampled_from(NUMBERS))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_document_of_numbers_is_read_as_the_careful_way_reads_it(value: Any, dtype: np.dtype[Any]) -> None:
    body = json.dumps({"inputs": value})
    if carefully(value, dtype) is None:
        with pytest.raises(Refusal):
            tensors(body, {"x": dtype})
    else:
        with np.errstate(over="ignore"):
            assert np.array_equal(tensors(body, {"x": dtype})["x"], carefully(value, dtype))


@given(value=nested(st.one_of(st.booleans(), st.integers(0, 1), st.floats(0, 1))), dtype=st.sampled_from(NUMBERS))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_bool_never_passes_as_a_number(value: Any, dtype: np.dtype[Any]) -> None:
    body = json.dumps({"inputs": value})
    if "true" in body or "false" in body:
        with pytest.raises(Refusal):
            tensors(body, {"x": dtype})


def test_a_bool_elsewhere_in_the_document_does_not_spoil_numbers() -> None:
    assert rows('{"inputs": {"a": [true], "b": [1, 2.5]}}', {"a": BOOL, "b": FLOAT}) == {"a": [True], "b": [1.0, 2.5]}
    assert rows('{"inputs": {"true": [1]}}', {"true": INT}) == {"true": [1]}


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_what_comes_out_is_an_array_of_the_signatures_type(dtype: np.dtype[Any]) -> None:
    for body in ('{"inputs": [[1, 2], [3, 4]]}', '{"inputs": [[1, 2], [3, 4]], "signature_name": "true"}'):  # quickly, and carefully
        array = tensors(body, {"x": dtype})["x"]
        assert (array.dtype, array.shape, array.tolist()) == (dtype, (2, 2), [[1, 2], [3, 4]])


@given(st.binary(max_size=30) | st.text(max_size=30).map(str.encode))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_garbage_is_refused_and_nothing_else(body: bytes) -> None:
    try:
        tensors(body, {"x": FLOAT})
    except Refusal as refused:
        assert refused.http_status == 400


DIRTY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["b64", "x", "y"]), inner, max_size=2),
    max_leaves=8,
)


@given(value=DIRTY, key=st.sampled_from(["instances", "inputs"]), dtype=st.sampled_from([*NUMBERS, BOOL, STRING]), two=st.booleans())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_json_is_a_tensor_or_refused_and_nothing_else(value: Any, key: str, dtype: np.dtype[Any], two: bool) -> None:
    types = {"x": dtype, "y": dtype} if two else {"x": dtype}
    try:
        found = tensors(json.dumps({key: value}), types)
    except Refusal:
        return
    assert found.keys() == types.keys()
    assert all(array.dtype == dtype for array in found.values())
