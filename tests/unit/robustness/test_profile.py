"""The profile measures, survives a file to the bit, and serves one model only."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.robustness.profile import Profile


def test_the_profile_is_low_high_mean_and_deviation_of_every_neuron(digits):
    neurons = digits.probe.answer(digits.train_inputs).neurons.astype(np.float64)
    profile = Profile.of(digits.probe, digits.train_inputs, batch_size=177)
    assert profile.num_inputs == 1200
    for measured, expected in zip(
        (profile.low, profile.high, profile.mean, profile.std), (neurons.min(0), neurons.max(0), neurons.mean(0), neurons.std(0)), strict=True
    ):
        np.testing.assert_allclose(measured, expected, atol=1e-5)


def test_a_profile_is_read_back_to_the_bit(digits, tmp_path):
    profile = digits.profile
    profile.save(tmp_path / "profile.npz")
    loaded = Profile.load(tmp_path / "profile.npz")
    assert (loaded.model_digest, loaded.layers, loaded.num_inputs) == (profile.model_digest, profile.layers, 1200)
    for name in ("low", "high", "mean", "std"):
        assert np.array_equal(getattr(loaded, name), getattr(profile, name))
    loaded.check(digits.probe)


@pytest.mark.parametrize("content", [None, b"", b"not a zip", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_profile_is_refused(content, tmp_path):
    path = tmp_path / "profile.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RobustnessError, match="is no neuron profile"):
        Profile.load(path)


def test_a_half_written_profile_is_refused(digits, tmp_path):
    path = tmp_path / "profile.npz"
    digits.profile.save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RobustnessError, match="is no neuron profile"):
        Profile.load(path)


def test_the_profile_of_another_model_is_refused(digits):
    other = keras.models.clone_model(digits.model)
    with pytest.raises(RobustnessError, match="belongs to model sha256:"):
        Profile.of(type(digits.probe)(other), digits.train_inputs).check(digits.probe)


def test_no_input_makes_no_profile(digits):
    with pytest.raises(RobustnessError, match="at least one input"):
        Profile.of(digits.probe, digits.train_inputs[:0])
