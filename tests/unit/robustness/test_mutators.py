"""Each of DeepHunter's nine mutators does what its name says, and the random numbers are random."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from airflow_mlops.robustness.kinds import Images
from airflow_mlops.robustness.mutators.base import random_bell, random_bits, random_uniform


def many(name, image, severity=1.0, num=16, value_range=(0.0, 1.0)):
    """Return mutants (num, H, W) of one grey image, by the keys 0, 1, 2 ..."""
    images = np.repeat(np.asarray(image, np.float32)[None, :, :, None], num, axis=0)
    kind, key = Images(value_range=value_range), np.arange(num, dtype=np.uint32)
    return kind.mutate(images, np.zeros(num, np.intp), np.full(num, severity, np.float32), key, names=(name,))[..., 0]


def dot(row, column, size=9):
    image = np.zeros((size, size), np.float32)
    image[row, column] = 1.0
    return image


def places(images):
    """Return where the brightest pixels are."""
    return {tuple(map(int, np.unravel_index(image.argmax(), image.shape))) for image in images}


def test_the_default_is_the_nine_of_deephunter_and_the_affine_ones_move():
    assert len(Images.default) == 9
    assert [name for name in Images.default if Images.mutators[name].moves] == ["translation", "scale", "shear", "rotation"]


def test_translation_moves_along_one_axis_and_the_key_decides_where():
    assert places(many("translation", dot(4, 4, 10))) == {(4, 5), (5, 4), (4, 3), (3, 4)}


def test_translation_goes_by_the_severity():
    assert places(many("translation", dot(10, 10, 20), 0.5)) == {(10, 11), (11, 10), (10, 9), (9, 10)}


def test_rotation_turns_about_the_centre_either_way():
    turned = many("rotation", dot(50, 100, 101))
    assert places(turned) == {(41, 99), (59, 99)}  # 50 sin 10 degrees = 8.7, 50 cos 10 degrees = 49.2
    assert turned.sum(axis=(1, 2)) == pytest.approx(np.ones(16), abs=0.02)


def test_scale_keeps_the_centre_and_enlarges_or_reduces_by_a_tenth():
    image = np.zeros((41, 41), np.float32)
    image[10:31, 10:31] = 1.0
    scaled = many("scale", image)
    assert {round(float(area), 1) for area in np.sqrt(scaled.sum(axis=(1, 2)) / image.sum())} == {0.9, 1.1}
    assert scaled[:, 20, 20] == pytest.approx(np.ones(16))


def test_shear_leaves_the_middle_line_and_slants_the_rest_to_either_side():
    line = np.zeros((41, 41), np.float32)
    line[:, 20] = 1.0
    slanted = [image for image in many("shear", line) if not np.allclose(image, line, atol=1e-5)]
    assert 0 < len(slanted) < 16  # along the line itself there is nothing to see
    assert {(int(image[0].argmax()) - 20, int(image[40].argmax()) - 20) for image in slanted} == {(-3, 3), (3, -3)}
    assert all(image[20, 20] == pytest.approx(1.0) for image in slanted)


def test_brightness_adds_or_takes_and_contrast_stretches_or_shrinks_about_the_middle():
    image = np.full((2, 2), 0.25)
    assert sorted({round(float(value), 5) for value in many("brightness", image)[:, 0, 0]}) == [0.1, 0.4]
    assert sorted({round(float(value), 5) for value in many("contrast", image)[:, 0, 0]}) == [0.175, 0.325]
    wide = many("brightness", image * 200 - 100, 0.5, value_range=(-100.0, 100.0))[:, 0, 0]
    assert sorted({round(float(value), 3) for value in wide}) == [-65.0, -35.0]


def test_the_key_not_the_severity_decides_the_direction():
    weak, strong = (np.sign(many("brightness", np.full((2, 2), 0.5), severity, num=99)[:, 0, 0] - 0.5) for severity in (0.1, 1.0))
    assert np.array_equal(weak, strong)
    assert 30 < (weak > 0).sum() < 70


def test_blur_spreads_a_dot_over_its_neighbours_and_keeps_the_sum():
    blurred = many("blur", dot(4, 4), num=1)[0]
    assert blurred[4, 4] == pytest.approx(0.64)
    assert blurred[3, 4] == blurred[4, 5] == pytest.approx(0.08)
    assert blurred.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("severity", [1.0, 0.4])
def test_noise_has_the_asked_deviation(severity):
    grey = np.full((100, 100), 0.5)
    assert (many("noise", grey, severity, num=1) - grey).std() == pytest.approx(0.05 * severity, rel=0.03)


@pytest.mark.parametrize("name", ["pixel_change", "impulse_noise"])
@pytest.mark.parametrize(("severity", "changed"), [(0.0, 0), (0.001, 1), (0.5, 16), (1.0, 31)])
def test_a_share_of_the_values_is_replaced_and_always_fewer_than_two_percent(name, severity, changed):
    assert np.count_nonzero(many(name, np.full((40, 40), 0.5), severity) != 0.5, axis=(1, 2)).tolist() == [changed] * 16


def test_every_place_is_replaced_equally_often_and_by_every_value():
    changed = many("pixel_change", np.full((20, 30), 0.5), num=3000)
    counts = (changed != 0.5).sum(axis=0)
    assert counts.sum() == 3000 * 11
    assert ((counts - 55) ** 2 / 55).sum() < 720  # chi-square, 599 degrees of freedom: 712 at 0.1 %
    values = np.histogram(changed[changed != 0.5], bins=10, range=(0, 1))[0]
    assert ((values - 3300) ** 2 / 3300).sum() < 28  # 9 degrees of freedom: 27.9 at 0.1 %


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
