"""Joining requests and taking them apart again, on arrays alone."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlops.exceptions import SpecError
from airflow_mlops.serving.embedded import batching
from airflow_mlops.serving.embedded.orders import BatchingParameters
from airflow_mlops.serving.tensors import Array

PLAIN = BatchingParameters()
PADDED = BatchingParameters(pad_variable_length_inputs=True)


def floats(*shape: int) -> Array:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def strings(values: list[Any]) -> Array:
    return np.array(values, object)


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [
        ({"x": floats(3)}, 3),
        ({"x": floats(3, 2), "y": floats(3)}, 3),
        ({"x": floats(0, 2)}, 0),
        ({"x": floats(3), "y": floats(2)}, None),
        ({"x": floats(3), "y": np.float32(1).reshape(())}, None),
        ({"x": np.float32(1).reshape(())}, None),
        ({}, None),
    ],
)
def test_the_rows_of_a_request_are_the_dimension_that_all_inputs_share(inputs: Any, rows: int | None) -> None:
    assert batching.num_rows(inputs) == rows


def test_requests_are_alike_if_only_their_rows_differ() -> None:
    def alike(left: Any, right: Any, parameters: BatchingParameters = PLAIN) -> bool:
        return batching.likeness(left, parameters) == batching.likeness(right, parameters)

    x = {"x": floats(2, 3)}
    assert alike(x, {"x": floats(5, 3)})
    assert alike({"x": floats(2), "y": floats(2, 3)}, {"y": floats(1, 3), "x": floats(1)})  # whatever the order they came in
    assert not alike(x, {"x": floats(2, 4)}) and alike(x, {"x": floats(2, 4)}, PADDED)
    for parameters in (PLAIN, PADDED):
        for other in ({"x": floats(2, 3).astype(np.float64)}, {"x": floats(2)}, {"y": floats(2, 3)}, {**x, "y": floats(2)}):
            assert not alike(x, other, parameters)
        assert not alike({"x": floats(1).astype(np.float16)}, {"x": floats(1).astype(ml_dtypes.bfloat16)}, parameters)


@given(st.lists(st.integers(1, 12), max_size=20), st.integers(1, 10))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_batches_hold_every_request_once_in_order_and_no_more_rows_than_allowed(rows: list[int], largest: int) -> None:
    found = list(batching.batches(rows, largest))
    assert [number for batch in found for number in batch] == list(range(len(rows)))
    for batch, following in zip(found, [*found[1:], None], strict=False):
        total = sum(rows[number] for number in batch)
        assert total <= largest or len(batch) == 1  # one that is too large alone has nobody with it
        assert following is None or total + rows[following[0]] > largest  # no smaller batch than necessary


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.sampled_from([(), (4, 8, 32), (25,)]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_what_is_joined_is_taken_apart_again(rows: list[int], allowed: tuple[int, ...]) -> None:
    parameters = BatchingParameters(max_batch_size=allowed[-1] if allowed else 128, allowed_batch_sizes=allowed)
    requests = [{"x": floats(size, 2) + 100 * number, "s": strings([b"%d" % number] * size)} for number, size in enumerate(rows)]
    together = batching.joined(requests, parameters)
    total = batching.num_rows(together)
    assert total is not None and total >= sum(rows)
    if allowed:
        assert total == min(size for size in allowed if size >= sum(rows))
    parts = batching.split(together, rows, total)
    assert parts is not None
    for request, part in zip(requests, parts, strict=True):
        assert part.keys() == request.keys()
        assert all(np.array_equal(part[name], request[name]) and part[name].dtype == request[name].dtype for name in part)


def test_a_batch_is_padded_with_rows_that_are_there_already() -> None:
    parameters = BatchingParameters(max_batch_size=4, allowed_batch_sizes=(4,))
    together = batching.joined([{"x": floats(1, 2) + 7}, {"x": floats(1, 2)}], parameters)
    assert together["x"].tolist() == [[7, 8], [0, 1], [7, 8], [7, 8]]


def test_one_request_of_an_allowed_size_is_not_copied() -> None:
    request = {"x": floats(4, 2)}
    assert batching.joined([request], BatchingParameters(max_batch_size=4, allowed_batch_sizes=(2, 4)))["x"] is request["x"]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_, np.complex64])
def test_inputs_of_different_lengths_are_padded_with_zeros_to_the_longest(kind: Any) -> None:
    short, long = np.ones((1, 1, 3), kind), np.ones((2, 2, 1), kind)
    joined = batching.joined([{"x": short}, {"x": long}], PADDED)["x"]
    assert (joined.shape, joined.dtype) == ((3, 2, 3), np.dtype(kind))
    assert np.array_equal(joined[0].astype(complex), [[1, 1, 1], [0, 0, 0]])
    assert np.array_equal(joined[1:].astype(complex), [[[1, 0, 0], [1, 0, 0]]] * 2)


def test_strings_of_different_lengths_are_padded_with_empty_ones() -> None:
    joined = batching.joined([{"s": strings([[b"a"]])}, {"s": strings([[b"b", b"c"]])}], PADDED)["s"]
    assert joined.tolist() == [[b"a", b""], [b"b", b"c"]]
    assert all(isinstance(value, bytes) for value in joined.ravel())


@pytest.mark.parametrize("shape", [(), (2,), (4, 3), (1, 3)])
def test_outputs_that_have_not_one_row_for_each_input_row_cannot_be_taken_apart(shape: tuple[int, ...]) -> None:
    assert batching.split({"y": floats(3), "z": floats(*shape)}, [1, 2], 3) is None
    assert batching.split({"y": floats(3)}, [1, 2], 3) is not None


def test_a_large_request_is_cut_into_pieces_of_which_only_the_last_is_smaller() -> None:
    found = list(batching.pieces({"x": floats(7, 2), "y": floats(7)}, 7, 3))
    assert [len(piece["x"]) for piece in found] == [len(piece["y"]) for piece in found] == [3, 3, 1]
    assert np.array_equal(np.concatenate([piece["x"] for piece in found]), floats(7, 2))


class TestParameters:
    @pytest.mark.parametrize("name", ["max_batch_size", "max_enqueued_batches", "num_batch_threads"])
    def test_there_must_be_at_least_one_of_everything(self, name: str) -> None:
        for value in (0, -1):
            with pytest.raises(SpecError, match=f"{name} is {value}; expected at least 1"):
                BatchingParameters(**{name: value})

    @pytest.mark.parametrize("name", ["batch_timeout_micros", "max_execution_batch_size"])
    def test_nothing_is_negative(self, name: str) -> None:
        BatchingParameters(**{name: 0})
        with pytest.raises(SpecError, match="must not be negative"):
            BatchingParameters(**{name: -1})

    @pytest.mark.parametrize("sizes", [(4, 2, 8), (4, 4, 8), (0, 8), (4,), (4, 16)])
    def test_the_allowed_sizes_increase_up_to_the_largest_batch(self, sizes: tuple[int, ...]) -> None:
        BatchingParameters(max_batch_size=8, allowed_batch_sizes=(4, 8))
        with pytest.raises(SpecError, match="expected increasing numbers up to 8, the largest batch"):
            BatchingParameters(max_batch_size=8, allowed_batch_sizes=sizes)

    def test_with_splitting_the_largest_run_is_the_largest_execution(self) -> None:
        assert BatchingParameters(max_batch_size=8, max_execution_batch_size=4).largest_run == 8
        assert BatchingParameters(max_batch_size=8, max_execution_batch_size=4, enable_large_batch_splitting=True).largest_run == 4
        assert BatchingParameters(max_batch_size=8, enable_large_batch_splitting=True).largest_run == 8
        BatchingParameters(max_batch_size=8, max_execution_batch_size=4, enable_large_batch_splitting=True, allowed_batch_sizes=(2, 4))
