"""For every kind of input: a kind and inputs of it, which the conformance suite of mutators runs on."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from airflow_mlops.robustness.kinds import Column, Images, InputKind, KeyPoints, Rows, Texts

NUM = 53
COCO_PAIRS = tuple((left, left + 1) for left in range(1, 17, 2))

ROWS = Rows(
    columns=(
        Column("age", low=0, high=110, whole=True, missing=-1),
        Column("height", low=50, high=250, missing=0, unit_factor=2.54),
        Column("weight", low=1, high=400, unit_factor=2.2046),
        Column("dose", low=0.0, high=5000.0, missing=-9.5, unit_factor=10),
        Column("sex", "category", categories=(1, 2), missing=9),
        Column("ward", "category", categories=(10, 20, 30, 41.5)),
        Column("score", low=-3.0, high=3.0),
        Column("visits", low=0, high=20, whole=True),
        Column("class", "category", categories=(0, 1, 2)),
        Column("rate", low=0.0, high=1.0, missing=2.0),
    )
)
TEXTS = Texts(synonyms=(("film", ("movie", "motion picture")), ("good", ("fine", "nice")), ("food", ("meal",))))


def digits() -> Any:
    return load_digits().images[:NUM].astype(np.float32)[..., None] / 16


def poses(num_values: int, missing: float) -> Any:
    """Poses of 17 joints, one joint in ten not found; some touch the border of the picture, and one has no joint at all."""
    random = np.random.default_rng(3)
    points = random.uniform(0.2, 0.8, (NUM, 17, 3)).astype(np.float32)
    points[::4, :, :2] = (points[::4, :, :2] - 0.2) / 0.6
    points[1::4, 5, :2] = (1.0, 0.0)
    points[random.random((NUM, 17)) < 0.1] = (missing, missing, 0.0)
    points[7] = (missing, missing, 0.0)
    return points[..., :num_values]


def patients() -> Any:
    """Rows of `ROWS`; where a column may be missing, one value in eight is."""
    random = np.random.default_rng(4)
    values = np.empty((NUM, len(ROWS.columns)), np.float32)
    for place, column in enumerate(ROWS.columns):
        drawn = random.choice(column.categories, NUM) if column.categories else random.uniform(column.low, column.high, NUM)
        drawn = np.rint(drawn) if column.whole else drawn
        values[:, place] = drawn if column.missing is None else np.where(random.random(NUM) < 0.125, column.missing, drawn)
    values[0, :2] = ROWS.columns[0].high, ROWS.columns[1].low
    return values


def reviews() -> Any:
    """Statements of one clause, most of which can be negated, among them very short ones and a long one."""
    subjects = ("The film", "It", "The old waiter", "This café near the station", "Your food")
    verbs = ("is", "was", "isn't", "could be", "would have been", "will not be")
    what = ("good", "much like last year", "don\u2019t-miss material, they say", "what they've made of it in 2019")
    made = [f"{subject} {verb} {rest}" for subject in subjects for verb in verbs for rest in what[:2]]
    made[:4] = ["It's good!", "Great", f"{what[3]}. {what[2]}; is it? Is " + "the film, the food " * 9, "IT ISN'T GOOD FOOD  \n"]
    return np.array([*made, *made][:NUM], dtype=object)


SAMPLES: dict[str, tuple[InputKind, Any]] = {
    "images": (Images(), digits()),
    "poses": (KeyPoints(swapped_joints=COCO_PAIRS, mirrored_labels=((0, 1),)), poses(3, 0.0)),
    "poses without confidence": (KeyPoints(swapped_joints=((0, 1),), missing=-1.0, aspect=16 / 9), poses(2, -1.0)),
    "rows": (ROWS, patients()),
    "texts": (TEXTS, reviews()),
}
