"""Every mutator of every kind is a pure function of (input, severity, key): legal, deterministic, and equal to the bit on every batch size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
import tensorflow as tf

from airflow_mlops.robustness.kinds import Images, InputKind
from airflow_mlops.robustness.mutators.base import Mutator, Relation, per_row, random_uniform
from tests.conformance.samples import SAMPLES, digits


@dataclass(frozen=True)
class Case:
    """One mutator on inputs of its kind; `names` are those that share its graph, as in a campaign that uses all of them."""

    kind: InputKind
    inputs: Any
    name: str
    names: tuple[str, ...]
    idle: bool = False

    def mutants(self, rows: Any = slice(None), *, severity: Any = None, key: Any = None, name: str = "", names: tuple[str, ...] = ()) -> Any:
        """Return mutants of `rows`: severities over the whole range and a key for each row, unless told otherwise."""
        num, names = len(self.inputs), names or self.names
        severity = np.linspace(0.0, 1.0, num, dtype=np.float32) if severity is None else np.full(num, severity, np.float32)
        key = keys(num) if key is None else key
        mutator = np.full(num, names.index(name or self.name))
        return self.kind.mutate(self.inputs[rows], mutator[rows], severity[rows], key[rows], names=names)

    def amount(self, severity: float) -> float:
        """Return how much mutants differ from their inputs: the mean share of places times the mean largest change."""
        l0, linf = self.kind.distances(self.inputs, self.mutants(severity=severity))
        return float((l0 / self.kind.size(self.inputs)).mean() * linf.mean())


def keys(num: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 2**32, num, dtype=np.uint32)


def differ(some: Any, others: Any) -> Any:
    """Return (N,) whether rows differ, in the bits of numbers or in the letters of texts."""
    if some.dtype == object:
        return np.array([left != right for left, right in zip(some, others, strict=True)])
    bits = [np.ascontiguousarray(array).view(np.uint8).reshape(len(array), -1) for array in (some, others)]
    return (bits[0] != bits[1]).any(axis=1)


def coloured() -> Any:
    """Digits in three channels of different strength, 8x12, in -1..1."""
    wide = np.concatenate([digits(), digits()[:, :, 2:6]], axis=2)
    return (wide * np.random.default_rng(3).random((len(wide), 1, 1, 3)) * 2 - 1).astype(np.float32)


CASES = {**SAMPLES, "coloured images": (Images(value_range=(-1.0, 1.0)), coloured())}
# What finds nothing to work on in a sample of CASES, and leaves it as it is; it has another sample to work on.
IDLE = {("images", "saturate"): "grey pictures have no colour"}
# The share of inputs that change at severity 1, where it is no half: not every text has something to contract.
MOST = {("texts", "contractions"): 0.3}
# At severity 1 there is only one way to do it, so that the key plays no part.
KEYLESS = {
    "images": {"blur", "horizontal_flip", "jpeg", "defocus_blur", "pixelate", "posterize"},
    "key_points": {"mirror"},
    "texts": {"contractions", "negation"},
}


@pytest.fixture(scope="module", params=[(sample, name) for sample, (kind, _) in CASES.items() for name in kind.mutators], ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    sample, name = request.param
    return make(sample, name)


def make(sample: str, name: str) -> Case:
    kind, inputs = CASES[sample]
    return Case(kind, kind.checked(inputs), name, tuple(kind.mutators), (sample, name) in IDLE)


def test_the_shape_the_type_and_the_legal_values_stay(case: Case) -> None:
    mutants = case.mutants()
    assert (mutants.shape, mutants.dtype) == (case.inputs.shape, case.inputs.dtype)
    assert not differ(case.kind.checked(mutants), mutants).any()


def test_severity_zero_is_the_identity_to_the_bit(case: Case) -> None:
    assert not differ(case.mutants(severity=0.0), case.inputs).any()


def test_the_input_is_not_touched(case: Case) -> None:
    before = case.inputs.copy()
    case.mutants(severity=1.0)
    assert not differ(before, case.inputs).any()


def test_the_same_key_gives_the_same_mutant_also_in_a_graph_of_its_own(case: Case) -> None:
    assert not differ(case.mutants(), case.mutants()).any()
    alone = case.mutants(names=(case.name,))
    assert not differ(case.mutants(), alone).any(), "TensorFlow regroups products with constants: multiply the (N,) factors first, in float64"


def test_other_keys_give_other_mutants_unless_there_is_only_one_way(case: Case) -> None:
    mine = case.mutants(severity=1.0)
    differs = [differ(mine, case.mutants(severity=1.0, key=keys(len(case.inputs), seed))).any() for seed in range(1, 6)]
    assert any(differs) == (not case.idle and case.name not in KEYLESS.get(case.kind.name, ()))


def test_the_batch_around_a_row_changes_no_bit(case: Case) -> None:
    whole = case.mutants(names=(case.name,))
    for size in (1, 2, 7, 16):
        parts = [case.mutants(slice(at, at + size), names=(case.name,)) for at in range(0, len(case.inputs), size)]
        assert not differ(np.concatenate(parts), whole).any(), size


def test_other_mutators_in_the_batch_change_no_bit(case: Case) -> None:
    num = len(case.inputs)
    mutator = np.arange(num) % len(case.names)
    mutator[::2] = case.names.index(case.name)
    mixed = case.kind.mutate(case.inputs, mutator, np.linspace(0.0, 1.0, num, dtype=np.float32), keys(num), names=case.names)
    assert not differ(mixed[::2], case.mutants()[::2]).any()


def test_severity_one_changes_the_inputs_that_it_can(case: Case) -> None:
    changed = differ(case.mutants(severity=1.0), case.inputs).mean()
    assert changed == 0.0 if case.idle else changed > MOST.get((case.kind.name, case.name), 0.5)


def test_a_larger_severity_changes_at_least_as_much(case: Case) -> None:
    amounts = [case.amount(severity) for severity in (0.0, 0.25, 0.5, 1.0)]
    assert amounts[0] == 0.0
    assert amounts == sorted(amounts)


def test_the_documentation_says_how_far_a_mutator_goes_and_why_the_answer_is_known(case: Case) -> None:
    mutator = case.kind.mutators[case.name]
    assert math.isfinite(mutator.limit)
    assert mutator.limit > 0.0
    assert mutator.unit.strip()
    assert len(mutator.preserves) > 20
    assert mutator.relation in get_args(Relation)


SUITE: list[Callable[[Case], None]] = [
    test_the_shape_the_type_and_the_legal_values_stay,
    test_severity_zero_is_the_identity_to_the_bit,
    test_the_input_is_not_touched,
    test_the_same_key_gives_the_same_mutant_also_in_a_graph_of_its_own,
    test_other_keys_give_other_mutants_unless_there_is_only_one_way,
    test_the_batch_around_a_row_changes_no_bit,
    test_other_mutators_in_the_batch_change_no_bit,
    test_severity_one_changes_the_inputs_that_it_can,
    test_a_larger_severity_changes_at_least_as_much,
    test_the_documentation_says_how_far_a_mutator_goes_and_why_the_answer_is_known,
]


def banding(images: Any, severity: Any, key: Any, kind: Images) -> Any:
    """Darken every other line, by as much as a bad screen does; the key says which."""
    first = tf.floor(random_uniform(key, 1, stream=100)[:, 0] * 2.0)
    odd = tf.cast(tf.range(images.shape[1]) % 2, tf.float32)
    lines = (first[:, None] - odd[None, :])[:, :, None, None]
    return images - (images - kind.value_range[0]) * lines * lines * per_row(severity * 0.15)


def banding_by_the_batch(images: Any, severity: Any, key: Any, kind: Images) -> Any:
    """Darken as much as the whole batch is bright, which no mutator may."""
    return images - per_row(severity) * tf.reduce_mean(images) * 0.1


@pytest.fixture
def users_own(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Case]:
    def added(apply: Any) -> Case:
        mine = Mutator(apply, 0.15, "of the light", "people do not notice that every other line is a little darker")
        monkeypatch.setitem(Images.mutators, "banding", mine)
        return Case(Images(), digits(), "banding", ("noise", "banding"))

    return added


def test_a_mutator_of_a_user_is_one_function_and_one_entry_and_passes_this_suite(users_own: Callable[[Any], Case]) -> None:
    for check in SUITE:
        check(users_own(banding))


def test_a_mutator_that_looks_at_its_neighbours_in_the_batch_fails_this_suite(users_own: Callable[[Any], Case]) -> None:
    with pytest.raises(AssertionError):
        test_the_batch_around_a_row_changes_no_bit(users_own(banding_by_the_batch))
