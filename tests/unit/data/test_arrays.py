"""What a model cannot be trained on is refused with the column, what was found and what was expected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from airflow_mlops.data.arrays import ArrayLayout, input_columns, to_arrays
from airflow_mlops.exceptions import DatasetError

LAYOUT = ArrayLayout(input_shape=(2, 1), num_classes=3, scale=0.5)


def frame(**changes: Any) -> pd.DataFrame:
    return pd.DataFrame({"a": [0, 2, 4], "label": [0, 1, 2], "b": [1, 3, 5]} | changes)


def test_columns_become_scaled_inputs_in_the_frames_order_and_integer_labels() -> None:
    arrays = to_arrays(frame(), LAYOUT)
    assert arrays.inputs.dtype == np.float32 and arrays.labels.dtype == np.int64
    assert arrays.inputs.tolist() == [[[0.0], [0.5]], [[1.0], [1.5]], [[2.0], [2.5]]]
    assert arrays.labels.tolist() == [0, 1, 2]
    assert len(arrays) == 3 and arrays.row_digests.shape == (3,)


def test_a_row_digest_is_that_of_the_inputs_alone() -> None:
    one = to_arrays(frame(), LAYOUT).row_digests
    relabelled = to_arrays(frame(label=[2, 2, 2]), LAYOUT).row_digests
    rescaled = to_arrays(frame(), LAYOUT._replace(scale=7.0)).row_digests
    as_floats = to_arrays(frame(a=[-0.0, 2.0, 4.0]), LAYOUT).row_digests
    assert one.tolist() == relabelled.tolist() == rescaled.tolist() == as_floats.tolist()
    assert len(set(one)) == 3
    assert to_arrays(frame(a=[1, 2, 4]), LAYOUT).row_digests[0] != one[0]


def test_integral_float_labels_are_labels() -> None:
    assert to_arrays(frame(label=[0.0, 1.0, 2.0]), LAYOUT).labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 3], r"1 of 3 labels are unusable, for example 3 \(first in row 2\); expected integers in 0\.\.2"),
        ([-1, 1, 2], "for example -1"),
        ([0, 1.5, 2], "for example 1.5"),
        ([0, None, 2], "for example nan"),
        ([0, float("inf"), 2], "for example inf"),
        (["0", "one", "2"], "expected integers"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: list[Any], said: str) -> None:
    with pytest.raises(DatasetError, match=said) as caught:
        to_arrays(frame(label=labels), LAYOUT)
    assert "'label'" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1, None, 3], r"1 of 3 values are missing, infinite or too large for float32 \(first in row 1\)"),
        ([float("inf"), 1, 3], "1 of 3"),
        ([1, 1e300, 3], "too large for float32"),
        (["x", "y", "z"], "expected numbers"),
        (pd.to_datetime(["2026-01-01"] * 3), "datetime64.*expected numbers"),
        (pd.to_timedelta([1, 2, 3], unit="s"), "timedelta64.*expected numbers"),
    ],
)
def test_inputs_that_are_no_numbers_are_refused(values: Any, said: str) -> None:
    with pytest.raises(DatasetError, match=said) as caught:
        to_arrays(frame(b=values), LAYOUT)
    assert "'b'" in str(caught.value)


def test_a_wrong_number_of_columns_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"3 different input columns \('a', 'b', 'c'\); expected 2 for the shape \(2, 1\)"):
        to_arrays(frame(c=[0, 0, 0]), LAYOUT)
    with pytest.raises(DatasetError, match=r"1 different input columns"):
        to_arrays(frame(), LAYOUT._replace(columns=("a", "a")))


def test_a_missing_label_column_and_an_empty_frame_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"no column 'digit': found 'a', 'label', 'b'\."):
        to_arrays(frame(), LAYOUT._replace(label_column="digit"))
    with pytest.raises(DatasetError, match=r"no column 'label': found 'x', ' label'"):
        to_arrays(pd.DataFrame({"x": [1], " label": [0]}), LAYOUT)
    with pytest.raises(DatasetError, match="no rows"):
        to_arrays(frame()[:0], LAYOUT)


def test_columns_that_are_named_are_taken_by_name_and_others_are_no_inputs() -> None:
    named = LAYOUT._replace(columns=("b", "a"))
    arrays = to_arrays(frame(c=["an id", "of", "a row"]), named)
    assert arrays.inputs.reshape(3, 2).tolist() == [[0.5, 0.0], [1.5, 1.0], [2.5, 2.0]]
    assert arrays.row_digests.tolist() == to_arrays(frame(), LAYOUT).row_digests.tolist()
    with pytest.raises(DatasetError, match=r"lacks 'c': expected the input columns 'a', 'c'\."):
        to_arrays(frame(), LAYOUT._replace(columns=("a", "c")))


def test_columns_that_are_known_from_before_are_all_and_only_those_of_the_file() -> None:
    assert input_columns(frame(), LAYOUT, ("b", "a")) == ("b", "a")
    with pytest.raises(DatasetError, match=r"lacks 'z' and has 'b', which the model does not know: expected the input columns 'a', 'z'\."):
        input_columns(frame(), LAYOUT, ("a", "z"))
    with pytest.raises(DatasetError, match=r"The dataset has 'c', which the model does not know"):
        input_columns(frame(c=[0, 0, 0]), LAYOUT, ("a", "b"))
