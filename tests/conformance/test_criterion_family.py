"""Every criterion, a user's own included, equals a naive loop, survives a file and is blind to NaN; all but ANN are independent of order."""

from __future__ import annotations

import math

import numpy as np
import pytest

from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.robustness.coverage import CRITERIA, BitmapCriterion, CoverageOptions, Criterion, base
from airflow_mlops.robustness.models import Answers, LayerSpan
from airflow_mlops.robustness.profile import Profile

LAYERS = (LayerSpan("a", 0, 5), LayerSpan("tiny", 5, 7), LayerSpan("b", 7, 14))
OPTIONS = CoverageOptions(nc_threshold=0.9, kmnc_sections=50, boundary_deviations=0.25, top_k=3, pattern_k=2, ann_threshold=1.5)


class LoudLayers(BitmapCriterion):
    """A user's own: layers in which some neuron exceeded 1. Several neurons of one input touch the same cell."""

    title = "Loud layers"

    def num_cells(self):
        return len(self.profile.layers)

    def touched(self, activations):
        return activations > 1.0, self.layer


def answers(num=160, seed=5):
    """Continuous rows, rows full of ties and of values exactly at an edge, rectified rows, and some that are not finite."""
    random = np.random.default_rng(seed)
    neurons = random.normal(size=(num, 14)).astype(np.float32)
    neurons[::3] = np.round(neurons[::3] * 2) / 2
    neurons[1::7] = np.maximum(neurons[1::7], 0)
    outputs = random.dirichlet(np.full(4, 0.3), num).astype(np.float32)
    neurons[::11, 3], neurons[5::17, 6], outputs[::13, 1] = np.nan, np.inf, np.nan
    return Answers(outputs, outputs.argmax(axis=1), outputs.max(axis=1), neurons)


def rows(whole, at):
    return Answers(*(column[at] for column in vars(whole).values()))


def profile(digest="sha256:model", high=1.5):
    low, std = np.full(14, -1.0), np.linspace(0.1, 1.0, 14)
    low[2] = high  # A neuron that is constant over the training data.
    return Profile(digest, LAYERS, 100, low, np.full(14, high), np.zeros(14), std)


@pytest.fixture(params=[*CRITERIA, "loud"])
def name(request, monkeypatch):
    monkeypatch.setitem(CRITERIA, "loud", LoudLayers)
    return request.param


@pytest.fixture
def make(name):
    return lambda digest="sha256:model", options=OPTIONS, high=1.5: CRITERIA[name](profile(digest, high), options)


def observed(criterion, *parts):
    for part in parts:
        criterion.observe(part)
    return criterion


def same(left, right):
    one, other = left.state(), right.state()
    return one.keys() == other.keys() and all(one[key].dtype == other[key].dtype and np.array_equal(one[key], other[key]) for key in one)


def num_seen(criterion):
    return round(criterion.value() * criterion.bitmap.size) if criterion.is_ratio else criterion.value()


# The definitions once more, one value at a time: what a layer of an input touches.


def nc(layer, start, known):
    low, high = min(layer), max(layer)
    return {start + at for at, value in enumerate(layer) if high > low and (value - low) / (high - low) > 0.9}


def kmnc(layer, start, known):
    touched = set()
    for neuron, value in enumerate(layer, start):
        low, high = known.low[neuron], known.high[neuron]
        if high > low and low <= value <= high:
            touched.add((neuron, min(int((value - low) / (high - low) * 50), 49)))
    return touched


def snac(layer, start, known):
    return {neuron for neuron, value in enumerate(layer, start) if value > known.high[neuron] + 0.25 * known.std[neuron]}


def nbc(layer, start, known):
    below = {("below", neuron) for neuron, value in enumerate(layer, start) if value < known.low[neuron] - 0.25 * known.std[neuron]}
    return below | snac(layer, start, known)


def tknc(layer, start, known, k=3):
    return {start + at for at in sorted(range(len(layer)), key=lambda at: (-layer[at], at))[:k]}


def bknc(layer, start, known):
    return tknc([-value for value in layer], start, known)


def loud(layer, start, known):
    return {start} if any(value > 1.0 for value in layer) else set()


NAIVE = {"nc": nc, "kmnc": kmnc, "nbc": nbc, "snac": snac, "tknc": tknc, "bknc": bknc, "loud": loud}


def naive_things(name, row, known):
    layers = [(list(map(float, row[span.start : span.stop])), span.start) for span in LAYERS]
    whole = [(layer, start) for layer, start in layers if all(map(math.isfinite, layer))]
    if name == "tknp":
        return {tuple(frozenset(tknc(*layer, known, k=2)) for layer in layers)} if len(whole) == len(layers) else set()
    return set().union(*(NAIVE[name](*layer, known) for layer in whole))


def naive_ann(outputs):
    kept, gains = [], []
    for row in outputs.tolist():
        logits = [float(np.float32(math.log(max(value, 1e-7)))) for value in row]
        new = all(map(math.isfinite, row)) and all(sum((a - b) ** 2 for a, b in zip(logits, other, strict=True)) > 1.5 for other in kept)
        kept += [logits] if new else []
        gains.append(int(new))
    return gains


def naive_gains(name, whole):
    if name == "ann":
        return naive_ann(whole.outputs)
    seen, gains, known = set(), [], profile()
    for row in whole.neurons:
        things = naive_things(name, row, known)
        gains.append(len(things - seen))
        seen |= things
    return gains


@pytest.mark.parametrize("seed", range(3))
def test_what_each_input_brings_is_what_a_naive_loop_finds(name, make, seed):
    criterion, whole = make(), answers(seed=seed)
    gained = np.concatenate([criterion.observe(rows(whole, part)) for part in (slice(0, 1), slice(1, 90), slice(90, None))])
    assert gained.tolist() == naive_gains(name, whole)
    assert 3 <= gained.sum() == num_seen(criterion)


def test_the_value_never_falls_and_grows_by_what_observe_says(make):
    criterion, whole = make(), answers()
    assert criterion.value() == 0.0
    for at in range(len(whole.neurons)):
        before = num_seen(criterion)
        gained = criterion.observe(rows(whole, slice(at, at + 1)))
        assert gained.shape == (1,)
        assert num_seen(criterion) == before + gained[0] >= before
    assert not criterion.is_ratio or 0.0 < criterion.value() <= 1.0


@pytest.mark.parametrize("size", [1, 7, 64])
def test_batches_do_not_matter(make, size, monkeypatch):
    expected, whole, criterion = make(), answers(), make()
    gained = expected.observe(whole)
    monkeypatch.setattr(base, "MIN_ROWS", 1)
    monkeypatch.setattr(base, "CHUNK", 50)
    parts = [criterion.observe(rows(whole, slice(at, at + size))) for at in range(0, 160, size)]
    assert np.array_equal(np.concatenate(parts), gained)
    assert same(criterion, expected)


def test_order_does_not_matter_unless_it_is_declared_to(make):
    shuffled = rows(answers(), np.random.default_rng(1).permutation(160))
    assert same(observed(make(), answers()), observed(make(), shuffled)) == make().mergeable


def test_an_input_seen_before_gains_nothing(make):
    assert observed(make(), answers()).observe(answers()).sum() == 0


def test_a_duplicate_within_a_batch_gains_once(make):
    whole = answers()
    finite = np.isfinite(whole.neurons).all(axis=1) & np.isfinite(whole.outputs).all(axis=1)
    loudest = int(np.where(finite, whole.neurons.max(axis=1), -np.inf).argmax())
    gained = make().observe(rows(whole, np.repeat([loudest], 3)))
    assert gained[0] > 0
    assert gained[1:].tolist() == [0, 0]


def test_merged_shards_equal_one_run_and_others_say_why_not(make):
    shards = [observed(make(), rows(answers(), slice(start, None, 3))) for start in range(3)]
    before = make()
    before.restore(shards[1].state())
    if not make().mergeable:
        with pytest.raises(RobustnessError, match="depends on the order of the inputs"):
            shards[0].merge(shards[1])
        return
    for order in ((0, 1, 2), (2, 0, 1, 1)):
        merged = make()
        for shard in order:
            merged.merge(shards[shard])
        assert same(merged, observed(make(), answers()))
    assert same(shards[1], before)


OTHERS = {"model": {"digest": "sha256:other"}, "options": {"options": CoverageOptions(0.9, 51)}, "neurons": {"high": 1.25}}


@pytest.mark.parametrize("what", OTHERS)
def test_what_belongs_to_something_else_is_refused_and_named(make, what, tmp_path):
    criterion, other = observed(make(), answers()), observed(make(**OTHERS[what]), answers())
    other.save(tmp_path / "other.npz")
    with pytest.raises(RobustnessError, match=what):
        criterion.load(tmp_path / "other.npz")
    with pytest.raises(RobustnessError, match=what if criterion.mergeable else "cannot be merged"):
        criterion.merge(other)
    assert same(criterion, observed(make(), answers()))


def test_a_saved_criterion_is_read_back_to_the_bit_and_goes_on_as_if_nothing_had_been(make, tmp_path):
    first, second = rows(answers(), slice(0, 70)), rows(answers(), slice(70, None))
    criterion, loaded = observed(make(), first), observed(make(), rows(answers(), slice(140, None)))
    criterion.save(tmp_path / "coverage.npz")
    loaded.load(tmp_path / "coverage.npz")
    assert same(loaded, criterion)
    assert loaded.value() == criterion.value()
    assert np.array_equal(loaded.observe(second), criterion.observe(second))
    assert same(loaded, observed(make(), answers()))


def test_a_criterion_that_saw_nothing_is_saved_too(make, tmp_path):
    make().save(tmp_path / "coverage.npz")
    criterion = observed(make(), answers())
    criterion.load(tmp_path / "coverage.npz")
    assert criterion.value() == 0.0
    assert np.array_equal(criterion.observe(answers()), make().observe(answers()))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95, 0.999])
def test_a_half_written_file_is_refused_and_changes_nothing(make, share, tmp_path):
    criterion, path = observed(make(), answers()), tmp_path / "coverage.npz"
    criterion.save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(RobustnessError, match="is no saved coverage"):
        criterion.load(path)
    assert same(criterion, observed(make(), answers()))


def test_a_state_is_a_picture_of_its_moment(make):
    criterion = observed(make(), rows(answers(), slice(0, 20)))
    state = criterion.state()
    criterion.observe(answers())
    restored = make()
    restored.restore(state)
    restored.observe(rows(answers(seed=9), slice(0, 50)))
    again = make()
    again.restore(state)
    assert same(again, observed(make(), rows(answers(), slice(0, 20))))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_brings_nothing(make, broken):
    criterion = make()
    nothing = Answers(np.full((4, 4), broken), np.full(4, -1), np.zeros(4), np.full((4, 14), broken, np.float32))
    assert criterion.observe(nothing).tolist() == [0, 0, 0, 0]
    assert criterion.value() == 0.0


def test_an_empty_batch_is_no_news(make):
    assert make().observe(rows(answers(), slice(0, 0))).shape == (0,)
    criterion = observed(make(), answers(), rows(answers(), slice(0, 0)))
    assert same(criterion, observed(make(), answers()))


def test_the_answers_are_not_written_to(make):
    whole = answers()
    make().observe(whole)
    for mine, fresh in zip(vars(whole).values(), vars(answers()).values(), strict=True):
        assert np.array_equal(mine, fresh, equal_nan=True)


def test_it_has_a_title_of_its_own_and_is_a_criterion(name):
    assert issubclass(CRITERIA[name], Criterion)
    assert [criterion.title for criterion in CRITERIA.values()].count(CRITERIA[name].title) == 1
