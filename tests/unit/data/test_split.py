"""No row ever changes side: not when rows are added, reordered, repeated or relabelled."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from airflow_mlops.data.arrays import ArrayLayout, LabelledArrays, to_arrays
from airflow_mlops.data.split import split
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


def test_a_hundred_thousand_rows_are_digested_and_split_in_seconds() -> None:
    begin = time.perf_counter()
    split(rows(100_000))
    assert time.perf_counter() - begin < 5.0
