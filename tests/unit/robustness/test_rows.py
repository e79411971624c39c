"""Each mutator of rows makes the error its name says, and only legal values."""

from __future__ import annotations

import re

import numpy as np
import pytest

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness.kinds import Column, Rows
from airflow_mlops.robustness.mutators.base import Mutator

KIND = Rows(
    columns=(
        Column("height <cm>", low=50, high=250, missing=-1, unit_factor=2.5),
        Column("age", low=0, high=100, whole=True),
        Column("sex", "category", categories=(1, 2), missing=0),
        Column("ward", "category", categories=(10, 20, 40)),
        Column("dose", low=0.0, high=1000.0, unit_factor=1000),
    )
)
ROW = [100.0, 50.0, 1.0, 20.0, 0.5]
NUM = 64


def mutants(name, row=ROW, severity=1.0, kind=KIND, num=NUM):
    """Return mutants of one row under the keys 0 to `num` - 1."""
    rows = kind.checked(np.repeat(np.array([row], np.float32), num, axis=0))
    keys = np.arange(num, dtype=np.uint32)
    made = kind.mutate(rows, np.zeros(num, int), np.full(num, severity, np.float32), keys, names=[name])
    assert np.array_equal(kind.checked(made), made)
    return made


def distinct(rows):
    return sorted(set(map(tuple, rows.tolist())))


def test_noise_moves_numbers_by_a_fiftieth_of_their_span_and_categories_not_at_all():
    noisy = mutants("within_range_noise", num=2_000)
    assert (noisy[:, 0] - 100.0).std() == pytest.approx(0.02 * 200, rel=0.05)
    assert np.abs(noisy[:, 0] - 100.0).max() <= 3.47 * 0.02 * 200
    assert np.array_equal(noisy[:, 1], np.rint(noisy[:, 1]))
    assert (noisy[:, 1] - 50.0).std() == pytest.approx(2.0, rel=0.06)
    assert (noisy[:, 2:4] == ROW[2:4]).all()
    assert noisy[:, 4].min() == 0.0  # clipped


def test_noise_leaves_missing_values_missing():
    row = [-1.0, *ROW[1:]]
    assert (mutants("within_range_noise", row)[:, 0] == -1.0).all()


def test_a_unit_slip_multiplies_or_divides_one_number_where_the_result_is_legal():
    grams = float(np.float32(0.0005))
    # 100 / 2.5 is too small to be a height, 0.5 can be 500 or 0.0005.
    assert distinct(mutants("unit_slip")) == [(100.0, 50.0, 1.0, 20.0, grams), (100.0, 50.0, 1.0, 20.0, 500.0), (250.0, 50.0, 1.0, 20.0, 0.5)]


def test_a_unit_slip_without_a_legal_result_changes_nothing():
    kind = Rows(columns=(Column("size", low=1, high=2, unit_factor=10), Column("kind", "category", categories=(1, 2))))
    assert distinct(mutants("unit_slip", [1.5, 1.0], kind=kind)) == [(1.5, 1.0)]


def test_a_unit_slip_of_a_missing_value_or_of_zero_does_not_exist():
    assert distinct(mutants("unit_slip", [-1.0, 50.0, 1.0, 20.0, 0.0])) == [(-1.0, 50.0, 1.0, 20.0, 0.0)]


def test_a_unit_slip_of_whole_numbers_is_rounded_only_when_it_is_in_range():
    kind = Rows(columns=(Column("inches", low=1, high=100, whole=True, unit_factor=2.54),))
    assert distinct(mutants("unit_slip", [30.0], kind=kind)) == [(12.0,), (76.0,)]
    assert distinct(mutants("unit_slip", [2.0], kind=kind)) == [(5.0,)]  # 0.79 would round to a legal 1


def test_values_go_missing_only_where_they_may_and_one_column_in_five_at_most():
    assert distinct(mutants("missing_value")) == [(-1.0, 50.0, 1.0, 20.0, 0.5), (100.0, 50.0, 0.0, 20.0, 0.5)]
    assert distinct(mutants("missing_value", [-1.0, 50.0, 0.0, 20.0, 0.5])) == [(-1.0, 50.0, 0.0, 20.0, 0.5)]


def test_a_category_becomes_any_other_of_its_column_and_a_missing_one_stays():
    swapped = mutants("category_swap")
    assert distinct(swapped) == [(100, 50, 1, 10, 0.5), (100, 50, 1, 40, 0.5), (100, 50, 2, 20, 0.5)]
    assert distinct(mutants("category_swap", [100.0, 50.0, 0.0, 20.0, 0.5])) == [(100, 50, 0, 10, 0.5), (100, 50, 0, 40, 0.5)]


@pytest.mark.parametrize("name", ["missing_value", "category_swap"])
@pytest.mark.parametrize(("severity", "changed"), [(0.0, 0), (0.01, 1), (0.34, 2), (1.0, 3)])
def test_the_number_of_wrong_entries_grows_with_severity_to_a_fifth(name, severity, changed):
    kind = Rows(columns=tuple(Column(str(place), "category", categories=(1, 2, 3), missing=9) for place in range(17)))
    made = mutants(name, [2.0] * 17, severity, kind)
    assert (np.count_nonzero(made != 2.0, axis=1) == changed).all()
    assert ((made != 2.0).any(axis=0) == bool(changed)).all()  # every column has its turn


def test_a_mutator_of_the_users_own_is_made_legal(monkeypatch):
    def doubled(rows, severity, key, kind):
        return rows * (1.0 + 1.1 * severity[:, None])

    monkeypatch.setitem(Rows.mutators, "doubled", Mutator(doubled, 1.0, "times", "for the test"))
    assert mutants("doubled")[0] == pytest.approx([210.0, 100.0, 2.0, 40.0, 1.05])  # 105 years and ward 42 do not exist
    assert mutants("doubled", [-1.0, 0.0, 0.0, 10.0, 900.0])[0].tolist() == [50.0, 0.0, 0.0, 20.0, 1000.0]


def test_distances_are_in_spans_and_a_category_or_a_missing_code_counts_whole():
    after = [ROW, [110.0, 50, 1, 20, 0.5], [-1.0, 50, 1, 20, 0.5], [100.0, 60, 1, 40, 0.5], [120.0, 55, 1, 20, 0.5]]
    l0, linf = KIND.distances(np.array([ROW] * 5, np.float32), np.array(after, np.float32))
    assert l0.tolist() == [0, 1, 1, 2, 2]
    assert linf == pytest.approx([0.0, 0.05, 1.0, 1.0, 0.1])


@pytest.mark.parametrize(
    ("l0", "linf", "size", "fine"), [(1, 1.0, 3, True), (2, 1.0, 9, False), (2, 1.0, 10, True), (9, 0.19, 9, True), (9, 0.2, 9, False)]
)
def test_one_column_in_five_may_be_anything_or_all_may_change_a_little(l0, linf, size, fine):
    assert KIND.satisfied(np.array([l0]), np.array([linf], np.float32), size).tolist() == [fine]


def test_the_report_shows_changed_columns_before_and_after_with_names_escaped():
    shown = np.array([-1.0, 50.0, 1.0, 40.0, 0.5], np.float32)
    assert KIND.show(np.array(ROW, np.float32), shown) == (
        "<table><tr><th>height &lt;cm&gt;</th><td>100</td><td><mark>missing</mark></td></tr>"
        "<tr><th>ward</th><td>20</td><td><mark>40</mark></td></tr></table>"
    )


def test_the_report_shows_what_changed_most_for_its_span_first_and_how_little_the_rest_did():
    wide = Rows(columns=tuple(Column(f"x{place}", high=1.0 + place) for place in range(20)))
    before = np.full(20, 0.5, np.float32)
    table = wide.show(before, before + np.float32(0.25))
    assert re.findall(r"<th>(\w+)</th>", table) == [f"x{place}" for place in range(8)]
    assert "and 12 more, none by more than 2.8% of its span" in table


def test_the_report_shows_the_first_columns_of_an_unchanged_row():
    wide = Rows(columns=tuple(Column(f"x{place}") for place in range(20)))
    table = wide.show(np.full(20, 0.5), np.full(20, 0.5))
    assert table.count("<th>") == 8
    assert "and 12 more" in table
    assert "<mark>" not in table


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((3, 4)), r"shape \(3, 4\); expected numbers of shape \(N, 5\)"),
        (np.zeros((0, 5)), "N >= 1"),
        (np.array([["a"] * 5]), "Encode categories"),
        (np.array([ROW, [np.nan, *ROW[1:]]]), "Column 'height <cm>' of row 1 is nan; expected a number from 50 to 250, or -1 for a missing value"),
        (np.array([[100.0, 50.5, *ROW[2:]]]), "'age' of row 0 is 50.5; expected a whole number from 0 to 100"),
        (np.array([[100.0, 50.0, 3.0, 20.0, 0.5]]), "'sex' of row 0 is 3.0; expected one of the codes 1, 2, or 0 for a missing value"),
        (np.array([[100.0, 50.0, 1.0, 20.0, np.inf]]), "'dose'.*inf"),
    ],
)
def test_inputs_that_are_no_such_rows_are_refused(inputs, message):
    with pytest.raises(RobustnessError, match=message):
        KIND.checked(inputs)


def test_whole_numbers_are_computed_with_in_float32():
    made = Rows(columns=(Column("age", low=0, high=100),)).checked(np.array([[3]]))
    assert made.dtype == np.float32
    assert made.tolist() == [[3.0]]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (Column("a", "numbers"), "of kind 'numbers'; expected 'number' or 'category'"),
        (Column("a", low=1, high=1), "low < high"),
        (Column("a", low=0.5, high=2, whole=True), "whole bounds"),
        (Column("a", "category", categories=(1,)), "at least two codes"),
        (Column("a", "category", categories=(1, 2, 1)), "each once"),
        (Column("a", missing=0.5), "also a value"),
        (Column("a", "category", categories=(1, 2), missing=2), "also a value"),
        (Column("a", missing=float("nan")), "replace NaN by a code"),
        (Column("a", unit_factor=1), "other than 1"),
    ],
)
def test_impossible_columns_are_refused(column, message):
    with pytest.raises(SpecError, match=message):
        Rows(columns=(column,))


def test_rows_need_columns_and_names_that_differ():
    with pytest.raises(SpecError, match="one Column for each value"):
        Rows()
    with pytest.raises(SpecError, match="no name twice"):
        Rows(columns=(Column("a"), Column("a")))
