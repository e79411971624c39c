"""The profile measures, survives a file to the bit, and serves one model only."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.robustness.models import Probe
from airflow_mlops.robustness.profile import Profile

layers = keras.layers
ARRAYS = ("low", "high", "mean", "std")


def bits(profile):
    return profile.model_digest, profile.layers, profile.num_inputs, [getattr(profile, name).tobytes() for name in ARRAYS]


def test_the_profile_is_low_high_mean_and_deviation_of_every_neuron(digits):
    neurons = digits.probe.answer(digits.train_inputs).neurons.astype(np.float64)
    profile = Profile.of(Probe(digits.model, micro_batch=64), digits.train_inputs)
    assert profile.num_inputs == 1200
    assert {getattr(profile, name).dtype for name in ARRAYS} == {np.dtype(np.float64)}
    for measured, expected in zip(
        (profile.low, profile.high, profile.mean, profile.std), (neurons.min(0), neurons.max(0), neurons.mean(0), neurons.std(0)), strict=True
    ):
        np.testing.assert_allclose(measured, expected, atol=1e-5)


def test_the_deviation_of_a_nearly_constant_neuron_does_not_drown():
    model = keras.Sequential([layers.Input((1,)), layers.Dense(2)])
    model.layers[0].set_weights([np.ones((1, 2), np.float32), np.array([0.0, 30000.123], np.float32)])
    inputs = np.tile(np.array([[0.0], [2**-8]], np.float32), (3000, 1))
    assert Profile.of(Probe(model), inputs).std == pytest.approx([2**-9, 2**-9], rel=1e-9)


def test_the_profile_of_the_same_model_and_inputs_is_the_same_to_the_bit(digits):
    again = Profile.of(Probe(digits.model), digits.train_inputs)
    assert bits(again) == bits(digits.profile)
    assert again.digest == digits.profile.digest


def test_the_digest_is_of_everything_in_it(digits):
    assert digits.profile.digest.startswith("sha256:")
    others = [Profile.of(digits.probe, digits.train_inputs[:-1]), Profile.of(Probe(keras.models.clone_model(digits.model)), digits.train_inputs)]
    assert len({profile.digest for profile in (digits.profile, *others)}) == 3


def test_inputs_of_any_shape_and_texts_have_profiles(tmp_path):
    words = layers.TextVectorization(output_sequence_length=3)
    words.adapt(np.array(["a b c d"]))
    of_texts = keras.Sequential([layers.Input((), dtype="string"), words, layers.Embedding(9, 4), layers.GlobalAveragePooling1D(), layers.Dense(2)])
    of_rows = keras.Sequential([layers.Input((5,)), layers.Dense(2)])
    of_key_points = keras.Sequential([layers.Input((4, 3)), layers.Dense(3), layers.Flatten(), layers.Dense(2)])
    inputs = np.random.default_rng(0).normal(size=(70, 60)).astype(np.float32)
    texts = np.array([f"a b {number}" for number in range(70)], object)
    for model, given, num in ((of_texts, texts, 6), (of_rows, inputs[:, :5], 2), (of_key_points, inputs[:, :12].reshape(70, 4, 3), 5)):
        profile = Profile.of(Probe(model, micro_batch=16), given)
        assert profile.low.shape == (num,)
        assert (profile.low <= profile.mean).all()
        assert (profile.mean <= profile.high).all()
        profile.save(tmp_path / "profile.npz")
        assert bits(Profile.load(tmp_path / "profile.npz")) == bits(profile)


def test_a_profile_is_read_back_to_the_bit(digits, tmp_path):
    digits.profile.save(tmp_path / "profile.npz")
    loaded = Profile.load(tmp_path / "profile.npz")
    assert bits(loaded) == bits(digits.profile)
    assert loaded.digest == digits.profile.digest
    loaded.check(digits.probe)


@pytest.mark.parametrize("content", [None, b"", b"not a zip", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_profile_is_refused(content, tmp_path):
    path = tmp_path / "profile.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RobustnessError, match="is no neuron profile"):
        Profile.load(path)


def test_a_profile_cut_anywhere_is_refused(digits, tmp_path):
    path = tmp_path / "profile.npz"
    digits.profile.save(path)
    content = path.read_bytes()
    for length in np.linspace(0, len(content) - 1, 60).astype(int):
        path.write_bytes(content[:length])
        with pytest.raises(RobustnessError, match="is no neuron profile"):
            Profile.load(path)


def test_a_profile_with_a_byte_changed_is_refused_or_means_the_same(digits, tmp_path):
    path = tmp_path / "profile.npz"
    digits.profile.save(path)
    content, num_refused = path.read_bytes(), 0
    for place in np.random.default_rng(0).integers(0, len(content), 150):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1 :])
        try:
            assert bits(Profile.load(path)) == bits(digits.profile)
        except RobustnessError:
            num_refused += 1
    assert num_refused > 75


@pytest.mark.parametrize(
    "change", [{"low": np.zeros(3)}, {"std": np.zeros(58, np.float32)}, {"meta": np.array("[]")}, {"meta": np.array('{"layers": []}')}]
)
def test_a_profile_whose_parts_do_not_fit_is_refused(digits, tmp_path, change):
    path = tmp_path / "profile.npz"
    digits.profile.save(path)
    with np.load(path) as stored:
        parts = dict(stored)
    np.savez(path, **(parts | change))
    with pytest.raises(RobustnessError, match="is no neuron profile"):
        Profile.load(path)


def test_the_profile_of_another_model_is_refused(digits):
    other = keras.models.clone_model(digits.model)
    with pytest.raises(RobustnessError, match="belongs to model sha256:"):
        Profile.of(Probe(other), digits.train_inputs).check(digits.probe)


def test_the_profile_of_other_layers_of_the_model_is_refused(digits):
    with pytest.raises(RobustnessError, match="belongs to model sha256:"):
        digits.profile.check(Probe(digits.model, layer_types=(layers.Dense,)))


def test_no_input_makes_no_profile(digits):
    with pytest.raises(RobustnessError, match="at least one input"):
        Profile.of(digits.probe, digits.train_inputs[:0])


@pytest.mark.parametrize("place", [0, 900])
def test_a_model_that_answers_nan_has_no_profile(place):
    model = keras.Sequential([layers.Input((2,)), layers.Dense(2)])
    inputs = np.ones((1000, 2), np.float32)
    inputs[place] = np.nan
    with pytest.raises(RobustnessError, match=r"answers 1 of \d+ training inputs with NaN or infinity.*Train it again"):
        Profile.of(Probe(model), inputs)


def test_a_model_whose_neurons_are_finite_but_not_its_answer_has_no_profile():
    model = keras.Sequential([layers.Input((2,)), layers.Dense(2), layers.Rescaling(np.inf)])
    with pytest.raises(RobustnessError, match="NaN or infinity"):
        Profile.of(Probe(model), np.ones((3, 2), np.float32))
