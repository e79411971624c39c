"""Each mutator does what its name says."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from airflow_mlops.robustness.mutators import MUTATORS, NAMES, mutate
from airflow_mlops.robustness.mutators.base import random_bell, random_bits, random_uniform


def one(name, image, severity, key=1, value_range=(0.0, 1.0)):
    image = np.asarray(image, np.float32)[None, :, :, None]
    return mutate(image, np.array([NAMES.index(name)]), np.array([severity], np.float32), np.array([key], np.uint32), value_range=value_range)[
        0, :, :, 0
    ]


def dot(row, column, size=9):
    image = np.zeros((size, size), np.float32)
    image[row, column] = 1.0
    return image


def test_pixel_mutators_stand_before_affine_ones():
    flags = [MUTATORS[name].affine for name in NAMES]
    assert flags == sorted(flags)
    assert sum(flags) == 4


def test_translation_moves_along_one_axis_and_the_key_decides_which():
    moved = {np.unravel_index(one("translation", dot(4, 4, 10), 0.1, key).argmax(), (10, 10)) for key in range(16)}
    assert moved == {(4, 5), (5, 4)}


def test_rotation_turns_counter_clockwise_about_the_centre():
    turned = one("rotation", dot(4, 8), 90.0)
    assert turned[0, 4] == pytest.approx(1.0, abs=1e-5)
    assert turned.sum() == pytest.approx(1.0, abs=1e-4)


def test_scale_keeps_the_centre_and_enlarges():
    image = np.zeros((9, 9), np.float32)
    image[3:6, 3:6] = 1.0
    assert one("scale", image, 1.5).sum() > 1.8 * image.sum()
    assert one("scale", image, 1.5)[4, 4] == pytest.approx(1.0)


def test_shear_leaves_the_middle_line_and_slants_the_rest():
    line = np.zeros((9, 9), np.float32)
    line[:, 4] = 1.0
    slanted = [one("shear", line, 0.25, key) for key in range(16)]
    along_x = next(image for image in slanted if not np.allclose(image, line, atol=1e-5))
    assert along_x[4, 4] == pytest.approx(1.0)
    assert along_x[0].argmax() == 5
    assert along_x[8].argmax() == 3


def test_brightness_adds_and_contrast_stretches_about_the_middle():
    image = np.full((2, 2), 0.25)
    assert one("brightness", image, 0.5) == pytest.approx(np.full((2, 2), 0.75))
    assert one("contrast", image, 2.0) == pytest.approx(np.zeros((2, 2)))
    assert one("brightness", image * 200 - 100, 0.5, value_range=(-100.0, 100.0)) == pytest.approx(np.full((2, 2), 50.0))


def test_blur_spreads_a_dot_over_its_neighbours_and_keeps_the_sum():
    blurred = one("blur", dot(4, 4), 0.1)
    assert blurred[4, 4] == pytest.approx(0.64)
    assert blurred[3, 4] == blurred[4, 5] == pytest.approx(0.08)
    assert blurred.sum() == pytest.approx(1.0)


def test_noise_has_the_asked_deviation():
    grey = np.full((100, 100), 0.5)
    assert (one("noise", grey, 0.05) - grey).std() == pytest.approx(0.05, rel=0.03)


@pytest.mark.parametrize(("severity", "changed"), [(0.001, 1), (0.01, 16), (0.02, 32), (0.9, 32)])
def test_pixel_change_draws_exactly_the_share_of_values_and_two_percent_at_most(severity, changed):
    assert np.count_nonzero(one("pixel_change", np.full((40, 40), 0.5), severity) != 0.5) == changed


def test_random_numbers_are_uniform_and_independent_between_keys_streams_and_places():
    key = tf.range(200, dtype=tf.int64)
    uniform = random_uniform(tf.cast(key, tf.uint32), 500, stream=1).numpy()
    other = random_uniform(tf.cast(key, tf.uint32), 500, stream=2).numpy()
    assert uniform.min() >= 0.0
    assert uniform.max() < 1.0
    counts = np.histogram(uniform, bins=100, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 160  # chi-square, 99 degrees of freedom: 149 at 0.1 %
    for left, right in ((uniform, other), (uniform[:-1], uniform[1:]), (uniform[:, :-1], uniform[:, 1:])):
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.02
    assert np.unique(random_bits(tf.cast(key, tf.uint32), 500, stream=1)).size > 0.999 * 100_000


def test_the_bell_is_bounded_with_mean_zero_and_deviation_one():
    bell = random_bell(tf.constant([3], tf.uint32), 100_000, stream=1).numpy()
    assert abs(bell.mean()) < 0.02
    assert bell.std() == pytest.approx(1.0, abs=0.01)
    assert np.abs(bell).max() < 3.47
