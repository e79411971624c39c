"""Mirror, elastic sheet, JPEG and corruptions do what their names say, on any shape and value range, and mostly within Eq. 1."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.fft import dctn, idctn
from sklearn.datasets import load_digits

from airflow_mlops.exceptions import RobustnessError
from airflow_mlops.robustness.kinds import Images
from airflow_mlops.robustness.mutators.jpeg import STEPS

NAMES = tuple(Images.mutators)
SHAPES = [(11, 20, 3), (1, 1, 2)]
RANDOM = np.random.default_rng(11)


def many(name, image, severity=1.0, num=16, value_range=(0.0, 1.0)):
    """Return mutants (num, H, W, C) of one image (H, W) or (H, W, C), by the keys 0, 1, 2 ..."""
    image = np.asarray(image, np.float32)
    images = np.repeat((image if image.ndim == 3 else image[..., None])[None], num, axis=0)
    return mutated(images, name, severity, value_range=value_range)


def mutated(images, name, severity=1.0, value_range=(0.0, 1.0), names=()):
    num, names = len(images), names or (name,)
    severity, key = np.full(num, severity, np.float32), np.arange(num, dtype=np.uint32)
    return Images(value_range=value_range).mutate(images, np.full(num, names.index(name)), severity, key, names=names)


def dot(size=9):
    image = np.zeros((size, size), np.float32)
    image[size // 2, size // 2] = 1.0
    return image


def digits():
    return load_digits().images.astype(np.float32)[..., None] / 16


def test_the_flip_mirrors_left_and_right_at_any_severity_but_zero():
    image = RANDOM.random((4, 5, 3))
    assert np.array_equal(many("horizontal_flip", image, 0.01)[3], image[:, ::-1].astype(np.float32))
    assert np.array_equal(many("horizontal_flip", image, 0.0)[3], image.astype(np.float32))
    assert Images.mutators["horizontal_flip"].relation == "mirrored"


def test_the_elastic_sheet_moves_no_pixel_by_more_than_its_limit_and_neighbours_alike():
    ramp = np.tile(np.arange(50, dtype=np.float32), (50, 1)) / 49
    moved = (many("elastic", ramp, num=400)[..., 0] - ramp) * 49
    assert 1.0 < np.abs(moved).max() <= 0.06 * 50
    assert np.abs(np.diff(moved, axis=1)).max() < 1.0  # under one pixel per pixel: lines bend and do not cross
    assert abs(moved.mean()) < 0.1
    assert many("elastic", np.full((9, 7), 0.3)) == pytest.approx(np.full((16, 9, 7, 1), 0.3))


@pytest.mark.parametrize(("shape", "severity"), [((16, 24), 1.0), ((16, 24), 0.3), ((13, 9), 0.7)])
def test_jpeg_rounds_the_cosine_transform_of_every_block_as_a_plain_loop_does(shape, severity):
    image = np.add.outer(np.sin(np.arange(shape[0]) / 3), np.cos(np.arange(shape[1]) / 4)).astype(np.float32) / 4 + 0.5
    image += RANDOM.random(shape, dtype=np.float32) / 8
    padded = np.pad(image, [(0, -size % 8) for size in shape], mode="edge")
    expected, steps = padded.copy(), np.reshape(STEPS, (8, 8)) * np.float32(severity).astype(np.float64)
    for row in range(0, padded.shape[0], 8):
        for column in range(0, padded.shape[1], 8):
            waves = dctn(np.floor(padded[row : row + 8, column : column + 8].astype(np.float64) * 255 + 0.5), norm="ortho")
            change = idctn(np.floor(waves / steps + 0.5) * steps - waves, norm="ortho")
            expected[row : row + 8, column : column + 8] += change / 255
    np.testing.assert_allclose(many("jpeg", image, severity, num=1)[0, ..., 0], expected[: shape[0], : shape[1]].clip(0, 1), atol=1e-4)


def test_defocus_gives_the_four_neighbours_alike_and_keeps_the_light():
    blurred = many("defocus_blur", dot())[0, ..., 0]
    assert blurred[4, 4] == pytest.approx(1 / 1.48)
    assert blurred[3, 4] == blurred[5, 4] == blurred[4, 3] == blurred[4, 5] == pytest.approx(0.12 / 1.48)
    assert blurred.sum() == pytest.approx(1.0)


def test_motion_blur_draws_a_dot_along_one_of_four_lines():
    blurred = many("motion_blur", dot(), num=40)[..., 0]
    lit = {tuple(sorted(zip(*(axis.tolist() for axis in np.nonzero(image)), strict=True))) for image in blurred}
    assert lit == {((4, 3), (4, 4), (4, 5)), ((3, 4), (4, 4), (5, 4)), ((3, 3), (4, 4), (5, 5)), ((3, 5), (4, 4), (5, 3))}
    assert blurred[:, 4, 4] == pytest.approx(np.full(40, 1 / 1.3))
    assert blurred.sum(axis=(1, 2)) == pytest.approx(np.ones(40))


@pytest.mark.parametrize(("light", "deviation"), [(0.0, 0.0), (0.25, 0.025), (0.64, 0.04)])
def test_shot_noise_grows_with_the_root_of_the_light(light, deviation):
    assert (many("shot_noise", np.full((100, 100), light), num=1) - light).std() == pytest.approx(deviation, rel=0.03)


def test_impulse_noise_is_pepper_and_salt():
    changed = many("impulse_noise", np.full((40, 40), -0.5), value_range=(-1.0, 1.0))
    assert set(np.unique(changed)) == {-1.0, -0.5, 1.0}
    assert np.count_nonzero(changed == 1.0) == pytest.approx(np.count_nonzero(changed == -1.0), rel=0.3)


def test_pixelate_draws_blocks_towards_their_mean_also_at_odd_edges():
    image = np.array([[0.0, 1.0, 0.4], [1.0, 0.0, 0.2], [0.6, 0.2, 0.8]])
    means = np.array([[0.5, 0.5, 0.3], [0.5, 0.5, 0.3], [0.4, 0.4, 0.8]])
    np.testing.assert_allclose(many("pixelate", image, num=1)[0, ..., 0], image + 0.3 * (means - image), atol=1e-6)


def test_gamma_darkens_or_lightens_and_leaves_black_and_white():
    light = np.array([[0.0, 0.5, 1.0]])
    assert {tuple(np.round(row, 4).tolist()) for row in many("gamma", light)[:, 0, :, 0]} == {(0.0, 0.3125, 1.0), (0.0, 0.6875, 1.0)}


def test_posterize_leaves_a_few_levels_at_equal_distances():
    ramp = np.linspace(0, 1, 101)[None]
    assert np.unique(many("posterize", ramp, num=1)) == pytest.approx([0.0, 0.3, 0.6, 0.9])
    assert len(np.unique(many("posterize", ramp, 0.5, num=1))) == 8


def test_saturate_keeps_greys_and_light_and_strengthens_or_fades_colour():
    image = np.array([[[0.5, 0.5, 0.5], [0.6, 0.4, 0.5]]], np.float32)
    changed = many("saturate", image)
    assert changed[:, 0, 0] == pytest.approx(np.full((16, 3), 0.5))
    assert changed @ np.array([0.299, 0.587, 0.114]) == pytest.approx(np.repeat(image[None] @ np.array([0.299, 0.587, 0.114]), 16, axis=0))
    assert {round(float(red - green), 3) for red, green, _ in changed[:, 0, 1]} == {0.1, 0.3}
    assert np.array_equal(many("saturate", image[..., :2])[0], image[..., :2])


@pytest.mark.parametrize(("shape", "sides"), [((40, 24, 3), (5, 3)), ((8, 8, 1), (1, 1))])
def test_occlusion_covers_one_rectangle_of_one_colour_that_can_be_anywhere(shape, sides):
    image = np.full(shape, 0.5, np.float32)
    changed = many("occlusion", image, num=400)
    covered = (changed != 0.5).any(axis=-1)
    assert set(covered.any(axis=2).sum(axis=1).tolist()) == {sides[0]}
    assert set(covered.any(axis=1).sum(axis=1).tolist()) == {sides[1]}
    assert set(covered.sum(axis=(1, 2)).tolist()) == {math.prod(sides)}
    assert all(len(np.unique(picture[hidden], axis=0)) == 1 for picture, hidden in zip(changed, covered, strict=True))
    assert covered.any(axis=(0, 2)).all()
    assert covered.any(axis=(0, 1)).all()


@pytest.mark.parametrize("name", [name for name in NAMES if not Images.mutators[name].moves])
def test_most_digits_stay_within_eq_1_at_the_highest_severity(name):
    kind, images = Images(), digits()
    l0, linf = kind.distances(images, mutated(images, name))
    # The weight of `blur` is older than this rule, and DeepHunter's blurs are stronger.
    assert kind.satisfied(l0, linf, kind.size(images)).mean() >= (0.4 if name == "blur" else 0.5)


def test_the_change_scales_with_the_value_range():
    unit = RANDOM.random((40, *SHAPES[0]), dtype=np.float32)
    for name in NAMES:
        narrow, wide = mutated(unit, name, names=NAMES), mutated(unit * 8 - 2, name, value_range=(-2.0, 6.0), names=NAMES)
        # Where a value is rounded, another scale may round a tie the other way: in a few pixels of `posterize` and `jpeg`.
        assert np.isclose((wide + 2) / 8, narrow, atol=1e-5).mean() > 0.98, name


@pytest.mark.parametrize("shape", SHAPES)
def test_any_height_width_and_number_of_channels_will_do(shape):
    images, num = RANDOM.random((3 * len(NAMES), *shape), dtype=np.float32), 3 * len(NAMES)
    mutator, severity, key = np.arange(num) % len(NAMES), np.linspace(0, 1, num, dtype=np.float32), np.arange(num, dtype=np.uint32)
    mutants = Images().mutate(images, mutator, severity, key, names=NAMES)
    assert mutants.shape == images.shape
    assert np.array_equal(Images().checked(mutants), mutants)
    one_by_one = [
        Images().mutate(images[row, None], mutator[row, None], severity[row, None], key[row, None], names=NAMES) for row in range(0, num, 4)
    ]
    assert np.array_equal(np.concatenate(one_by_one), mutants[::4])


def test_images_with_their_channels_first_are_refused_and_not_rotated_through_their_colours() -> None:
    with pytest.raises(
        RobustnessError, match=r"\(60, 3, 24, 24\) look like images with their channels first; expected \(N, height, width, channels\)"
    ):
        Images().checked(np.zeros((60, 3, 24, 24), np.float32))
    for shape in ((5, 3, 3, 3), (5, 24, 24, 3), (5, 8, 8, 1), (5, 24, 24, 12)):
        assert Images().checked(np.zeros(shape, np.float32)).shape == shape
