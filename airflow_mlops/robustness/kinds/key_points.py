"""Poses: (N, joints, 2 or 3) key points as a pose estimator gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness import constraints
from airflow_mlops.robustness.kinds.base import InputKind
from airflow_mlops.robustness.mutators import key_points
from airflow_mlops.robustness.mutators.base import Floats, Ints, Mutator

FEW = 5  # one joint in so many may be anything
LEFT, RIGHT, OWN = "#1f6feb", "#d9730d", "#333"


@dataclass(frozen=True)
class KeyPoints(InputKind):
    """Poses whose joints have x and y in 0..1 of the picture's width and height, and perhaps a confidence in 0..1; raises `SpecError`.

    swapped_joints: pairs of joint numbers, left and right, that are each other's mirror image; other joints are their own.
    missing: x and y of a joint that was not found; 0 is what pose estimators write.
    aspect: width of the picture divided by its height, which a rotation must know; 1.0 is a square.
    bones: pairs of joint numbers between which reports draw a line; without them a pose is dots.
    """

    name: ClassVar[str] = "key_points"
    mutators: ClassVar[dict[str, Mutator]] = key_points.MUTATORS
    default: ClassVar[tuple[str, ...]] = tuple(mutators)
    legend: ClassVar[str] = (
        "Left the seed, right its mutant: the first joint of every pair that a mirror swaps is blue, the second orange. A grey ring is a joint's "
        "place in the seed, with a line to where it went; a red cross is a joint that was lost."
    )

    swapped_joints: tuple[tuple[int, int], ...] = ()
    missing: float = 0.0
    aspect: float = 1.0
    bones: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        joints = [joint for pair in self.swapped_joints for joint in pair]
        if len(set(joints)) != len(joints) or min(joints, default=0) < 0:
            raise SpecError(f"swapped_joints is {self.swapped_joints}; expected pairs of joint numbers from 0 on, no joint twice.")
        if not np.isfinite(self.missing) or not (np.isfinite(self.aspect) and self.aspect > 0):
            raise SpecError(f"missing is {self.missing} and aspect {self.aspect}; expected a finite number and one above 0.")

    def checked(self, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if inputs.ndim != 3 or 0 in inputs.shape or inputs.shape[2] not in (2, 3) or not np.issubdtype(inputs.dtype, np.floating):
            raise RobustnessError(
                f"The inputs are {inputs.dtype} of shape {inputs.shape}; expected floating-point poses of shape (N, joints, 2 or 3), N >= 1: "
                "x, y and perhaps a confidence. Convert and reshape them, for example rows.astype('float32').reshape(-1, 17, 3)."
            )
        for name, pairs in (("swapped_joints", self.swapped_joints), ("bones", self.bones)):
            if beyond := [joint for pair in pairs for joint in pair if not 0 <= joint < inputs.shape[1]]:
                raise RobustnessError(f"{name} has joint {beyond[0]}, and the poses have joints 0 to {inputs.shape[1] - 1}. Count from 0.")
        points: Floats = inputs.astype(np.float32)
        # Written so that NaN is wrong too.
        inside = ((points >= 0.0) & (points <= 1.0)).all(axis=-1)
        sure = ((points[..., 2:] >= 0.0) & (points[..., 2:] <= 1.0)).all(axis=-1)
        if (wrong := ~(inside | (self._missing(points) & sure))).any():
            row, joint = np.argwhere(wrong)[0]
            raise RobustnessError(
                f"Joint {joint} of pose {row} is {inputs[row, joint].tolist()}; expected x, y and confidence in 0..1, or x = y = {self.missing} for "
                "a joint that was not found. Divide x by the picture's width and y by its height, or set `missing`."
            )
        return points

    def legal(self, inputs: tf.Tensor) -> tf.Tensor:
        points = tf.concat([inputs[..., :2], tf.clip_by_value(inputs[..., 2:], 0.0, 1.0)], axis=-1)
        return key_points.settled(points, points[..., :2], self)

    def distances(self, reference: npt.NDArray[Any], mutants: npt.NDArray[Any]) -> tuple[Ints, Floats]:
        """Return per row (number of joints that differ, the larger of: largest move of a joint found in both, share of joints lost or gained)."""
        change = np.abs(mutants - reference).max(axis=-1)
        missing = self._missing(reference), self._missing(mutants)
        moved = np.where(missing[0] | missing[1], 0.0, change).max(axis=1)
        return np.count_nonzero(change, axis=1), np.maximum(moved, (missing[0] != missing[1]).mean(axis=1)).astype(np.float32)

    def size(self, inputs: npt.NDArray[Any]) -> Any:
        return inputs.shape[1]

    def satisfied(self, l0: Ints, linf: Floats, size: Any) -> npt.NDArray[np.bool_]:
        """Return (N,): at most one joint in five changed, or no joint moved by 0.2 of the picture and fewer than 0.2 of them lost."""
        return np.asarray((l0 <= np.maximum(1, size // FEW)) | (linf < constraints.BETA))

    def show(self, original: Any, shown: Any) -> str:
        """Return an <svg> as `legend` says; the lines between joints are `bones`, pale where they were in the original."""
        gone, changed = self._missing(shown), (original != shown).any(axis=-1)
        marks = [*self._bones(original, "#ddd"), *self._bones(shown, "#777")] if changed.any() else self._bones(shown, "#777")
        for joint in np.flatnonzero(changed & ~self._missing(original)):
            (x, y), (to_x, to_y) = self._place(original[joint]), self._place(shown[joint])
            cross = f'<path d="M{x - 2:.1f} {y - 2:.1f}l4 4m0 -4l-4 4" stroke="#c00"/>'
            ring = f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="#bbb" stroke-width=".5"/>'
            marks.append(cross if gone[joint] else f'{ring}<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="none" stroke="#999"/>')
        for joint in np.flatnonzero(~gone):
            x, y = self._place(shown[joint])
            marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{self._colour(int(joint))}"/>')
        width = 100.0 * self.aspect
        title = f"{np.count_nonzero(~gone)} joints, {np.count_nonzero(changed)} changed"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-3 -3 {width + 6:g} 106" width="{1.4 * width:g}" height="140" role="img">'
            f'<title>{title}</title><rect width="{width:g}" height="100" fill="none" stroke="#999"/>{"".join(marks)}</svg>'
        )

    def _bones(self, points: npt.NDArray[Any], colour: str) -> list[str]:
        gone = self._missing(points)
        ends = [(self._place(points[one]), self._place(points[other])) for one, other in self.bones if not gone[one] and not gone[other]]
        return [f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="{colour}"/>' for (x, y), (to_x, to_y) in ends]

    def _place(self, joint: npt.NDArray[Any]) -> tuple[float, float]:
        return 100.0 * self.aspect * float(joint[0]), 100.0 * float(joint[1])

    def _colour(self, joint: int) -> str:
        left, right = ({pair[side] for pair in self.swapped_joints} for side in (0, 1))
        return LEFT if joint in left else RIGHT if joint in right else OWN

    def _missing(self, points: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        return np.asarray((points[..., :2] == np.float32(self.missing)).all(axis=-1))
