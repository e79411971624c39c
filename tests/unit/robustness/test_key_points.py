"""Each mutator of poses does what its name says, and nothing to joints that were not found."""

from __future__ import annotations

import re

import numpy as np
import pytest

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness.kinds import KeyPoints

# Nose, left and right hand, left and right foot.
POSE = np.array([[0.5, 0.25], [0.25, 0.5], [0.75, 0.5], [0.375, 0.75], [0.625, 0.75]], np.float32)
KIND = KeyPoints(swapped_joints=((1, 2), (3, 4)))
NUM = 64


def mutants(name, pose=POSE, severity=1.0, kind=KIND, num=NUM):
    """Return mutants of one pose under the keys 0 to `num` - 1."""
    poses = kind.checked(np.repeat(np.asarray(pose, np.float32)[None], num, axis=0))
    keys = np.arange(num, dtype=np.uint32)
    return kind.mutate(poses, np.zeros(num, int), np.full(num, severity, np.float32), keys, names=[name])


def without(joint, pose=POSE, missing=0.0):
    return np.where(np.arange(len(pose))[:, None] == joint, np.float32(missing), pose)


def shape(pose):
    """Distances between all joints: what moves and rotations keep."""
    return np.linalg.norm(pose[:, None].astype(np.float64) - pose[None], axis=-1)


def test_mirror_flips_x_and_swaps_left_and_right_joints():
    raised = POSE.copy()
    raised[1] = (0.25, 0.125)  # the left hand, seen on the left of the picture
    mirrored = mutants("mirror", raised, num=1)[0]
    assert mirrored.tolist() == [[0.5, 0.25], [0.25, 0.5], [0.75, 0.125], [0.375, 0.75], [0.625, 0.75]]
    assert np.array_equal(mutants("mirror", mirrored, severity=0.01, num=1)[0], raised)


def test_mirror_takes_the_confidence_along_and_a_missing_left_hand_becomes_a_missing_right_one():
    pose = np.concatenate([without(1), np.array([[0.5], [0.0], [0.75], [1.0], [1.0]], np.float32)], axis=1)
    mirrored = mutants("mirror", pose, num=1)[0]
    assert mirrored[2].tolist() == [0.0, 0.0, 0.0]
    assert mirrored[1].tolist() == [0.25, 0.5, 0.75]


def test_mirror_without_pairs_keeps_every_joint_its_own():
    assert mutants("mirror", kind=KeyPoints(), num=1)[0, 1].tolist() == [0.75, 0.5]


def test_a_joint_that_lands_on_the_code_for_missing_is_still_found():
    corner = POSE.copy()
    corner[0] = (1.0, 0.0)
    assert mutants("mirror", corner, num=1)[0, 0].tolist() == [2.0**-10, 0.0]
    corner[0] = (0.0, 1.0)
    assert mutants("mirror", corner, kind=KeyPoints(missing=1.0), num=1)[0, 0].tolist() == [1.0 - 2.0**-10, 1.0]


def test_jitter_moves_each_joint_by_itself_in_proportion_to_the_pose():
    moves = mutants("jitter", num=2_000) - POSE
    assert moves.std() == pytest.approx(0.02 * 0.5, rel=0.05)
    assert abs(moves.mean()) < 0.001
    assert np.abs(moves).max() <= 3.47 * 0.02 * 0.5
    assert abs(np.corrcoef(moves[:, 0, 0], moves[:, 1, 0])[0, 1]) < 0.1
    assert (mutants("jitter", POSE / 2, num=2_000) - POSE / 2).std() == pytest.approx(0.02 * 0.25, rel=0.05)


@pytest.mark.parametrize(("severity", "lost"), [(0.0, 0), (0.01, 1), (0.5, 2), (0.6, 3), (1.0, 3)])
def test_joint_dropout_loses_at_least_one_and_at_most_a_fifth_of_the_joints_found(severity, lost):
    pose = np.random.default_rng(0).uniform(0.1, 1.0, (20, 3)).astype(np.float32)
    pose[:3] = 0.0  # 17 are found: a fifth is 3
    dropped = mutants("joint_dropout", pose, severity)
    gone = (dropped == 0.0).all(axis=-1)
    assert gone[:, :3].all()
    assert (gone[:, 3:].sum(axis=1) == lost).all()
    assert np.array_equal(dropped[~gone], np.broadcast_to(pose, dropped.shape)[~gone])
    if lost:
        assert gone[:, 3:].any(axis=0).all()  # every joint has its turn


def test_joint_dropout_leaves_a_pose_of_fewer_than_five_joints_alone():
    assert np.array_equal(mutants("joint_dropout", without(0)), mutants("joint_dropout", without(0), severity=0.0))
    assert (mutants("joint_dropout") == 0.0).all(axis=-1).sum(axis=1).tolist() == [1] * NUM


def test_joint_dropout_writes_the_kinds_own_code():
    kind = KeyPoints(missing=-1)
    assert np.count_nonzero((mutants("joint_dropout", kind=kind) == -1.0).all(axis=-1)) == NUM


def test_scale_makes_the_pose_a_fifth_larger_or_smaller_about_its_centroid():
    scaled = mutants("scale")
    factors = shape(scaled[0])[0, 1:] / shape(POSE)[0, 1:], {round(float(shape(pose)[0, 1] / shape(POSE)[0, 1]), 4) for pose in scaled}
    assert factors[0] == pytest.approx(factors[0][0])
    assert factors[1] == {0.8, 1.2}
    assert scaled.mean(axis=1) == pytest.approx(np.broadcast_to(POSE.mean(axis=0), (NUM, 2)), abs=1e-6)


def test_missing_joints_do_not_count_in_the_centroid():
    pose = without(0)
    assert mutants("scale", pose)[:, 1:].mean(axis=1) == pytest.approx(np.broadcast_to(pose[1:].mean(axis=0), (NUM, 2)), abs=1e-6)


def test_a_pose_that_fills_the_picture_is_not_enlarged():
    full = (POSE - POSE.min(axis=0)) / (POSE.max(axis=0) - POSE.min(axis=0))
    sizes = {round(float(np.ptp(pose, axis=0).max()), 4) for pose in mutants("scale", full)}
    assert sizes == {0.8, 1.0}


def test_shift_moves_the_whole_pose_by_a_fifth_of_the_picture():
    moves = mutants("shift", severity=0.5) - POSE
    assert np.ptp(moves, axis=1).max() < 1e-6
    assert np.abs(moves[:, 0]).max(axis=1) == pytest.approx(np.full(NUM, 0.1), abs=1e-6)
    assert {tuple(np.sign(move)) for move in moves[:, 0]} == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_a_pose_at_the_border_is_shifted_as_far_as_there_is_room():
    pose = POSE - np.float32([0.125, 0.0])
    moves = mutants("shift", pose) - pose
    assert np.ptp(moves, axis=1).max() < 1e-6
    assert moves[..., 0].min() == pytest.approx(-0.125)
    assert moves[..., 0].max() == pytest.approx(0.2)


def test_rotation_turns_by_fifteen_degrees_either_way_about_the_centroid():
    away, turned = POSE - POSE.mean(axis=0), mutants("rotation")
    angles = {
        round(float(np.degrees(np.arctan2(a[0] * b[1] - a[1] * b[0], a @ b))), 2)
        for pose in turned
        for a, b in zip(away, pose - POSE.mean(axis=0), strict=True)
    }
    assert angles == {-15.0, 15.0}
    assert shape(turned[0]) == pytest.approx(shape(POSE), abs=1e-6)


def test_rotation_in_a_wide_picture_keeps_distances_in_pixels():
    wide = KeyPoints(aspect=2.0)
    pixels = np.array([2.0, 1.0])
    assert shape(mutants("rotation", kind=wide)[0] * pixels) == pytest.approx(shape(POSE * pixels), abs=1e-5)


def test_a_rotation_that_would_leave_the_picture_is_shrunk_into_it_and_keeps_its_angles():
    corners = np.array([[0, 0.001], [1, 0], [1, 1], [0, 1]], np.float32)
    for pose in mutants("rotation", corners, kind=KeyPoints()):
        assert pose.min() >= 0.0
        assert pose.max() <= 1.0
        ratio = shape(pose)[~np.eye(4, dtype=bool)] / shape(corners)[~np.eye(4, dtype=bool)]
        assert ratio == pytest.approx(1 / (np.cos(np.pi / 12) + np.sin(np.pi / 12)), rel=2e-3)


@pytest.mark.parametrize("name", list(KeyPoints.mutators))
@pytest.mark.parametrize("missing", [0.0, -1.0])
def test_missing_joints_stay_missing_found_ones_stay_in_the_picture_and_confidence_stays(name, missing):
    kind, random = KeyPoints(missing=missing), np.random.default_rng(1)
    poses = random.uniform(0.0, 1.0, (NUM, 9, 3)).astype(np.float32)
    gone = random.random((NUM, 9)) < 0.3
    poses[gone] = (missing, missing, 0.25)
    made = kind.mutate(poses, np.zeros(NUM, int), np.ones(NUM, np.float32), random.integers(0, 2**32, NUM, dtype=np.uint32), names=[name])
    assert np.array_equal(made[gone], poses[gone])
    lost = (made[..., :2] == missing).all(axis=-1) & ~gone
    assert lost.any() == (name == "joint_dropout")
    assert (made[lost][:, 2] == 0.0).all()
    kept = made[~gone & ~lost]
    assert kept.min() >= 0.0
    assert kept.max() <= 1.0
    assert np.array_equal(kept[:, 2], poses[~gone & ~lost][:, 2])


def test_a_pose_without_any_joint_stays_as_it_is():
    for name in KeyPoints.mutators:
        assert not mutants(name, np.zeros((6, 2))).any()


def test_distances_count_joints_and_measure_moves_or_the_share_of_lost_joints():
    moved = POSE.copy()
    moved[1, 0] += 0.5
    l0, linf = KIND.distances(np.stack([POSE] * 4), np.stack([POSE, moved, without(1), without(1, moved + np.float32(0.0625))]))
    assert l0.tolist() == [0, 1, 1, 5]
    assert linf == pytest.approx([0.0, 0.5, 0.2, 0.2])


@pytest.mark.parametrize(
    ("l0", "linf", "size", "fine"), [(3, 1.0, 17, True), (4, 1.0, 17, False), (17, 0.19, 17, True), (1, 1.0, 4, True), (2, 0.2, 4, False)]
)
def test_one_joint_in_five_may_be_anything_or_all_may_move_a_little(l0, linf, size, fine):
    assert KIND.satisfied(np.array([l0]), np.array([linf], np.float32), size).tolist() == [fine]


def circles(picture):
    return re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="2" fill="(\S+)"', picture)


def test_the_report_shows_moved_joints_with_a_line_from_their_old_place_and_lost_ones_as_crosses():
    shown = without(1)
    shown[0] = (0.5, 0.375)
    picture = KIND.show(POSE, shown)
    assert circles(picture)[0] == ("50.0", "25.0", "none")
    assert [place for *place, _ in circles(picture)[1:]] == [["50.0", "37.5"], *([f"{100 * x:.1f}", f"{100 * y:.1f}"] for x, y in POSE[2:])]
    assert '<path d="M50.0 25.0L50.0 37.5"' in picture
    assert picture.count("<path") == 2
    assert picture.count("#c00") == 1
    assert "4 joints, 2 changed" in picture
    assert "<path" not in KIND.show(POSE, POSE)


def test_the_report_tells_left_joints_from_right_ones_by_colour():
    colours = [colour for *_, colour in circles(KIND.show(POSE, POSE))]
    assert colours == [colours[0], colours[1], colours[2], colours[1], colours[2]]
    assert len(set(colours)) == 3


def test_the_report_draws_bones_between_joints_that_were_found_and_pale_where_they_were():
    kind = KeyPoints(bones=((0, 1), (0, 2)))
    assert kind.show(POSE, POSE).count("<path") == 2
    moved = without(1)
    moved[0] = (0.5, 0.375)
    picture = kind.show(POSE, moved)
    assert [picture.count(f'stroke="{colour}"/>') for colour in ("#ddd", "#777")] == [2, 1]
    with pytest.raises(RobustnessError, match="bones has joint 9, and the poses have joints 0 to 4"):
        KeyPoints(bones=((0, 9),)).checked(POSE[None])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((3, 17)), r"shape \(3, 17\); expected .*joints, 2 or 3"),
        (np.zeros((3, 17, 4)), "2 or 3"),
        (np.zeros((0, 17, 2)), "N >= 1"),
        (np.zeros((3, 5, 2), int), "int64 of shape"),
        (np.full((3, 5, 2), np.nan), r"Joint 0 of pose 0 is \[nan, nan\]"),
        (np.stack([POSE, POSE * 640]), r"Joint 0 of pose 1 is \[320.0, 160.0\].*Divide x"),
        (np.full((1, 5, 3), [0.0, 0.0, np.inf]), "confidence"),
        (POSE[None, :4], "joint 4.*0 to 3"),
    ],
)
def test_inputs_that_are_no_poses_are_refused(inputs, message):
    with pytest.raises(RobustnessError, match=message):
        KIND.checked(inputs)


def test_float64_poses_are_computed_with_in_float32():
    assert KIND.checked(POSE[None].astype(np.float64)).dtype == np.float32


@pytest.mark.parametrize("options", [{"swapped_joints": ((1, 2), (2, 3))}, {"swapped_joints": ((-1, 2),)}, {"missing": np.nan}, {"aspect": 0.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(SpecError, match="expected"):
        KeyPoints(**options)
