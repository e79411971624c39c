"""A saved criterion is read back whole or refused, and large networks fit."""

from __future__ import annotations

import numpy as np
import pytest

from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.robustness.coverage import CRITERIA, CoverageOptions
from airflow_mlops.robustness.models import Answers, LayerSpan
from airflow_mlops.robustness.profile import Profile


def criterion_of(name, num_neurons=12):
    layers = (LayerSpan("a", 0, 5), LayerSpan("b", 5, num_neurons))
    return CRITERIA[name](Profile("sha256:m", layers, 9, *np.array([[0.0, 1.0, 0.5, 0.1]] * num_neurons).T), CoverageOptions(kmnc_sections=20))


def answers(num, num_neurons=12):
    random = np.random.default_rng(num)
    outputs = random.dirichlet(np.full(3, 0.3), num)
    return Answers(outputs, outputs.argmax(1), outputs.max(1), random.uniform(-0.2, 1.2, (num, num_neurons)).astype(np.float32))


def equal(left, right):
    return all(np.array_equal(array, right[name]) for name, array in left.items())


@pytest.mark.parametrize("name", ["kmnc", "tknp", "ann"])
def test_whatever_byte_of_a_file_is_altered_it_is_read_as_written_or_refused(name, tmp_path):
    criterion, path = criterion_of(name), tmp_path / "coverage.npz"
    criterion.observe(answers(40))
    criterion.save(path)
    whole, state, num_refused = path.read_bytes(), criterion.state(), 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        loaded = criterion_of(name)
        try:
            loaded.load(path)
        except RobustnessError:
            num_refused += 1
        else:
            assert equal(loaded.state(), state)
    assert num_refused > len(whole) / 7 / 2


def test_a_file_that_is_missing_or_of_another_criterion_is_refused(tmp_path):
    with pytest.raises(RobustnessError, match="is no saved coverage"):
        criterion_of("nc").load(tmp_path / "nothing.npz")
    criterion_of("nc").save(tmp_path / "nc.npz")
    with pytest.raises(RobustnessError, match="criterion NeuronCoverage instead of StrongNeuronActivationCoverage"):
        criterion_of("snac").load(tmp_path / "nc.npz")


def test_deviations_belong_to_the_ranges_only_where_they_widen_them():
    def made(std, **options):
        known = Profile("sha256:m", (LayerSpan("a", 0, 1),), 9, np.zeros(1), np.ones(1), np.ones(1), np.full(1, std))
        return CRITERIA["nbc"](known, CoverageOptions(**options))

    made(0.1).merge(made(0.2))
    with pytest.raises(RobustnessError, match="neurons"):
        made(0.1, boundary_deviations=1.0).merge(made(0.2, boundary_deviations=1.0))


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("wrong", [np.zeros(1, np.uint8), np.zeros((2, 2, 2)), np.array("x")])
def test_arrays_of_the_wrong_shape_or_type_are_refused_and_change_nothing(name, wrong):
    criterion = criterion_of(name, num_neurons=13)
    criterion.observe(answers(40, 13))
    state = criterion.state()
    identity = {"identity": state["identity"]}
    for broken in (dict.fromkeys(state, wrong), dict.fromkeys(state, wrong) | identity, identity):
        with pytest.raises(RobustnessError, match="is no state of"):
            criterion.restore(broken)
    assert equal(criterion.state(), state)


def test_a_full_disk_leaves_the_last_saved_state(tmp_path, monkeypatch):
    criterion, path = criterion_of("kmnc"), tmp_path / "coverage.npz"
    criterion.observe(answers(10))
    criterion.save(path)
    saved = criterion.state()
    criterion.observe(answers(50))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        criterion.save(path)
    loaded = criterion_of("kmnc")
    loaded.load(path)
    assert equal(loaded.state(), saved)
    assert [file.name for file in tmp_path.iterdir()] == ["coverage.npz"]


@pytest.mark.parametrize("name", CRITERIA)
def test_a_network_of_27000_neurons_is_held_in_less_than_200_megabytes(name, tmp_path):
    num = 27_000
    layers = tuple(LayerSpan(str(at), at, at + 500) for at in range(0, num, 500))
    criterion = CRITERIA[name](Profile("sha256:m", layers, 9, np.zeros(num), np.ones(num), np.zeros(num), np.ones(num)), CoverageOptions())
    criterion.observe(answers(20, num))
    held = sum(value.nbytes for value in vars(criterion).values() if isinstance(value, np.ndarray))
    criterion.save(tmp_path / "coverage.npz")
    assert held < 50e6
    assert (tmp_path / "coverage.npz").stat().st_size < 4e6
