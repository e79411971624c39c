"""Examples in JSON as `tf.Example` messages, which TensorFlow parses itself: here, as protocol buffers read them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded import json_text
from airflow_mlops.serving.embedded.json_examples import examples_of
from airflow_mlops.serving.embedded.refusal import Refusal


def features(body: Any) -> list[dict[str, Any]]:
    """Return per example its features as (kind, values)."""
    text = body if isinstance(body, str) else json.dumps(body)
    found = examples_of(json_text.parse(text.encode()))
    assert found.shape == (len(found),)
    return [{name: values(feature) for name, feature in protos.example_pb2.Example.FromString(row).features.feature.items()} for row in found]


def values(feature: Any) -> tuple[str | None, list[Any]]:
    kind = feature.WhichOneof("kind")
    return kind, list(getattr(feature, kind).value) if kind else []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2, ("int64_list", [2])),
        ([2, -3], ("int64_list", [2, -3])),
        (2.0, ("float_list", [2.0])),
        ([0.5, 2.0], ("float_list", [0.5, 2.0])),
        (1e300, ("float_list", [math.inf])),
        (-(2**63), ("int64_list", [-(2**63)])),
        ("é", ("bytes_list", ["é".encode()])),
        ({"b64": "AP8="}, ("bytes_list", [b"\x00\xff"])),
        (["a", {"b64": "Yg=="}], ("bytes_list", [b"a", b"b"])),
        ([], (None, [])),
        (True, ("int64_list", [1])),
        ([1, False], ("int64_list", [1, 0])),
        ({"b64": "YQ"}, ("bytes_list", [b"a"])),
        (2**64, ("float_list", [2.0**64])),
        (-(2**63) - 1, ("float_list", [-(2.0**63)])),
    ],
)
def test_an_integer_is_int64_a_decimal_is_float_and_a_string_is_bytes(value: Any, expected: Any) -> None:
    assert features({"examples": [{"f": value}]}) == [{"f": expected}]


def test_nan_is_a_decimal() -> None:
    ((kind, found),) = (feature for feature in features('{"examples": [{"f": [NaN, Infinity, 1.5]}]}')[0].values())
    assert kind == "float_list" and math.isnan(found[0]) and found[1:] == [math.inf, 1.5]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1, 2.0], "Unexpected element type in feature: f expecting type: int64"),
        ([1.0, 2], "Unexpected element type in feature: f expecting type: float"),
        (["a", 1], "Unexpected element type in feature: f expecting type: bytes"),
        ([1, "a"], "Unexpected element type in feature: f expecting type: int64"),
        ([0.5, {"b64": "?"}], "Unexpected element type in feature: f expecting type: float"),
        ([1, None], "Feature: f has element with unexpected JSON type: Null"),
        (None, "Feature: f has element with unexpected JSON type: Null"),
        ([[1], 2], "Feature: f has element with unexpected JSON type: Array"),
        ({"a": 1}, "Feature: f has element with unexpected JSON type: Object"),
        ([1, {"b64": "YQ==", "c": 1}], "Feature: f has element with unexpected JSON type: Object"),
        ([20, 18446744073709551603], "Feature: f has uint64_t element. Only int64_t is supported."),
    ],
)
def test_values_of_two_kinds_or_of_none_are_refused(value: Any, words: str) -> None:
    with pytest.raises(Refusal) as refused:
        features({"examples": [{"f": 1}, {"f": value}]})
    assert (str(refused.value), refused.value.http_status) == (words, 400)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**80])
def test_an_integer_of_more_than_64_bits_is_never_another_number(value: int) -> None:
    """What a parser makes of it is a float of the same size, or an error."""
    try:
        ((kind, found),) = features({"examples": [{"f": value}]})[0].values()
    except Refusal as refused:
        assert "Only int64_t is supported" in str(refused)
    else:
        assert (kind, found) == ("float_list", [pytest.approx(value)])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "key 'examples' is expected and was not found"),
        ({"instances": [1]}, "key 'examples' is expected and was not found"),
        ({"examples": None}, "to be an list/array"),
        ({"examples": {"x": 1}}, "to be an list/array"),
        ({"examples": []}, "is an empty array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{}, [1]]}, "Example must be JSON object but got JSON Array"),
        ({"examples": ["a"]}, "Example must be JSON object but got JSON String"),
        ({"examples": [None]}, "Example must be JSON object but got JSON Null"),
        ({"examples": [True]}, "Example must be JSON object but got JSON True"),
        ({"examples": [{}], "context": [1]}, "Example must be JSON object but got JSON Array"),
        ({"context": False}, "Example must be JSON object but got JSON False"),
        ({"examples": [{}], "context": {"f": None}}, "Feature: f has element with unexpected JSON type: Null"),
        ({"examples": [{"f": {"b64": "?"}}]}, "Unable to base64 decode"),
    ],
)
def test_what_are_no_examples_is_refused_with_a_reason(body: Any, words: str) -> None:
    with pytest.raises(Refusal, match=words) as refused:
        features(body)
    assert refused.value.http_status == 400


@pytest.mark.parametrize("example", [{"f": "\ud800"}, {"\ud800": 1}], ids=["value", "name"])
def test_a_string_that_no_text_can_hold_is_refused(example: Any) -> None:
    with pytest.raises(Refusal):
        features({"examples": [example]})


def test_every_example_has_what_the_context_says_unless_it_says_so_itself() -> None:
    body = {"context": {"user": "ann", "age": [1, 2]}, "examples": [{"x": 1.5}, {"age": 0.5, "x": 2.5}]}
    assert features(body) == [
        {"user": ("bytes_list", [b"ann"]), "age": ("int64_list", [1, 2]), "x": ("float_list", [1.5])},
        {"user": ("bytes_list", [b"ann"]), "age": ("float_list", [0.5]), "x": ("float_list", [2.5])},
    ]


def test_a_feature_may_be_named_like_base64() -> None:
    assert features({"examples": [{"b64": "YQ=="}]}) == [{"b64": ("bytes_list", [b"YQ=="])}]


def test_an_example_may_be_empty() -> None:
    assert features({"examples": [{}, {"x": 1}]}) == [{}, {"x": ("int64_list", [1])}]
    assert features({"context": {"c": 1}, "examples": [{}]}) == [{"c": ("int64_list", [1])}]


INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
LISTS = st.one_of(*(st.lists(kind, min_size=1, max_size=3) for kind in (INT64, st.floats(width=32, allow_nan=False), TEXT)))


@given(st.lists(st.dictionaries(TEXT, LISTS, max_size=3), min_size=1, max_size=3), st.dictionaries(TEXT, LISTS, max_size=3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_whatever_features_there_are_they_arrive(examples: list[dict[str, list[Any]]], context: dict[str, list[Any]]) -> None:
    def plain(feature: tuple[str | None, list[Any]]) -> list[Any]:
        return [value.decode() if isinstance(value, bytes) else value for value in feature[1]]

    found = features({"examples": examples, "context": context})
    assert [{name: plain(feature) for name, feature in row.items()} for row in found] == [{**context, **example} for example in examples]
