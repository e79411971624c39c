"""No row ever changes side: not when rows are added, reordered, repeated or relabelled."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlops.data.arrays import ArrayLayout, LabelledArrays, to_arrays
from airflow_mlops.data.split import below, split
from airflow_mlops.exceptions import DatasetError, SpecError

LAYOUT = ArrayLayout(input_shape=(4,), num_classes=10)


def rows(num_rows: int, seed: int = 0) -> LabelledArrays:
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(generator.normal(size=(num_rows, 4)), columns=list("abcd"))
    return to_arrays(frame.assign(label=generator.integers(0, 10, num_rows)), LAYOUT)


def joined(*parts: LabelledArrays) -> LabelledArrays:
    return LabelledArrays(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("inputs", "labels", "row_digests")))


@pytest.fixture(scope="module")
def arrays() -> LabelledArrays:
    return rows(5000)


def test_every_row_is_on_exactly_one_side_with_its_own_label(arrays: LabelledArrays) -> None:
    train, held_out = split(arrays)
    label_of = dict(zip(arrays.row_digests, arrays.labels, strict=True))
    assert len(train) + len(held_out) == len(arrays)
    assert not set(train.row_digests) & set(held_out.row_digests)
    assert all(label_of[digest] == label for side in (train, held_out) for digest, label in zip(side.row_digests, side.labels, strict=True))


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_the_fraction_is_about_the_one_asked_for(arrays: LabelledArrays, fraction: float) -> None:
    five_sigma = 5 * np.sqrt(fraction * (1 - fraction) / len(arrays))
    assert len(split(arrays, fraction).held_out) / len(arrays) == pytest.approx(fraction, abs=five_sigma)


def test_adding_and_reordering_rows_moves_no_old_row(arrays: LabelledArrays) -> None:
    old = split(arrays)
    order = np.random.default_rng(1).permutation(8000)
    new = split(joined(arrays, rows(3000, seed=2)).where(order))
    assert set(old.held_out.row_digests) <= set(new.held_out.row_digests)
    assert set(old.train.row_digests) <= set(new.train.row_digests)


def test_a_repeated_and_relabelled_row_stays_on_its_side(arrays: LabelledArrays) -> None:
    relabelled = LabelledArrays(arrays.inputs, (arrays.labels + 1) % 10, arrays.row_digests)
    train, held_out = split(joined(arrays, relabelled))
    assert not set(train.row_digests) & set(held_out.row_digests)
    assert len(held_out) == 2 * len(split(arrays).held_out)


def test_a_larger_fraction_keeps_what_a_smaller_one_held_out(arrays: LabelledArrays) -> None:
    assert set(split(arrays, 0.1).held_out.row_digests) < set(split(arrays, 0.3).held_out.row_digests)


def test_an_empty_side_is_refused(arrays: LabelledArrays) -> None:
    same = arrays.where(np.zeros(50, dtype=np.int64))
    with pytest.raises(DatasetError, match=r"side is empty: 50 rows with 1 distinct inputs"):
        split(same)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_an_impossible_fraction_is_refused(arrays: LabelledArrays, fraction: float) -> None:
    with pytest.raises(SpecError, match="held_out_fraction"):
        split(arrays, fraction)


VALUES = st.integers(-(2**20), 2**20) | st.floats(-1e6, 1e6, width=32)
TABLES = st.lists(st.lists(VALUES, min_size=4, max_size=4), min_size=1, max_size=12)
AS_OTHER_TYPES = {
    "float": lambda column: column.astype(float),
    "float32": lambda column: column.astype("float32"),
    "objects": lambda column: column.astype(object),
    "texts": lambda column: column.map(repr),
    "categories": lambda column: column.astype(object).astype("category"),
    "nullable": lambda column: column.astype(float).astype("Float64"),
}


def table(values: list[list[float]]) -> pd.DataFrame:
    return pd.DataFrame(values, columns=list("abcd")).assign(label=0)


@given(TABLES, st.permutations(["a", "b", "c", "d", "label"]), st.sampled_from(sorted(AS_OTHER_TYPES)))
def test_neither_the_order_of_the_columns_nor_their_types_change_the_arrays_or_the_side_of_a_row(
    values: list[list[float]], order: list[str], other: str
) -> None:
    named = LAYOUT._replace(columns=("a", "b", "c", "d"))
    delivered = table(values)[order].apply(AS_OTHER_TYPES[other])
    one, two = to_arrays(table(values), LAYOUT), to_arrays(delivered, named)
    assert np.array_equal(one.inputs, two.inputs)
    assert one.row_digests.tolist() == two.row_digests.tolist() == to_arrays(delivered, LAYOUT).row_digests.tolist()


@given(TABLES, st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_what_a_smaller_fraction_holds_out_a_larger_one_does_too(values: list[list[float]], one: float, two: float) -> None:
    arrays = to_arrays(table(values), LAYOUT)
    assert not (below(arrays, min(one, two)) & ~below(arrays, max(one, two))).any()


@given(TABLES)
def test_rows_of_the_same_inputs_are_on_the_same_side_and_a_swapped_pair_of_values_is_another_row(values: list[list[float]]) -> None:
    twice = to_arrays(table([*values, *values]), LAYOUT).row_digests.reshape(2, -1)
    assert (twice[0] == twice[1]).all()
    swapped = to_arrays(table([[row[1], row[0], *row[2:]] for row in values]), LAYOUT).row_digests
    for row, digest, other in zip(values, twice[0], swapped, strict=True):
        assert (digest == other) == (np.float32(row[0]) == np.float32(row[1]))


def test_zero_has_no_sign_and_a_column_of_another_name_makes_another_row() -> None:
    zeros = to_arrays(table([[0.0, 1, 2, 3], [-0.0, 1, 2, 3]]), LAYOUT).row_digests
    assert zeros[0] == zeros[1]
    renamed = to_arrays(table([[0.0, 1, 2, 3]]).rename(columns={"a": "e"}), LAYOUT).row_digests
    assert renamed[0] != zeros[0]
