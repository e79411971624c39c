"""Eq. 1 and Eq. 2 in signed arithmetic."""

from __future__ import annotations

import numpy as np

from airflow_mlops.robustness.constraints import accumulated, distances, satisfied


def test_distances_of_unsigned_bytes_do_not_wrap_around():
    reference = np.array([[[[10], [10]]]], np.uint8)
    image = np.array([[[[250], [12]]]], np.uint8)
    wrapped = np.abs(reference - image).max()
    l0, linf = distances(reference, image)
    assert wrapped == 254  # the published mistake: |10 - 12| becomes 254 and |10 - 250| becomes 16
    assert (l0.tolist(), linf.tolist()) == ([2], [240.0])


def test_distances_are_per_row():
    reference = np.zeros((3, 2, 2, 1), np.float32)
    images = reference.copy()
    images[1, 0, 0] = 0.5
    images[2] = -0.25
    l0, linf = distances(reference, images)
    assert l0.tolist() == [0, 1, 4]
    assert linf.tolist() == [0.0, 0.5, 0.25]


def test_few_changed_values_may_be_anything_and_many_only_a_little():
    l0, linf = np.array([1, 2, 2, 2, 64]), np.array([1.0, 1.0, 0.2, 0.19, 0.19])
    # 2 % of 64 values is 1.28, so one value is few and two are many; both limits are strict.
    assert satisfied(l0, linf, size=64, span=1.0).tolist() == [True, False, False, True, True]


def test_the_limits_scale_with_the_value_range():
    assert satisfied(np.array([64]), np.array([50.9]), size=64, span=255.0).all()
    assert not satisfied(np.array([64]), np.array([51.1]), size=64, span=255.0).any()


def test_past_an_affine_step_l0_adds_and_linf_is_the_larger():
    l0, linf = accumulated(np.array([3, 3]), np.array([0.1, 0.3]), np.array([5, 0]), np.array([0.2, 0.2]))
    assert l0.tolist() == [8, 3]
    assert linf.tolist() == [0.2, 0.3]
