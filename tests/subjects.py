"""Trained models of every kind of input and of three accuracies, with thousands of inputs they have not seen: what guidance is measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

JOINTS = 17
SWAPPED = tuple((left, left + 1) for left in range(1, JOINTS, 2))


class Subject(NamedTuple):
    """A trained model, what its inputs are, inputs (N, ...) that it has not seen with labels (N,), and the share of them it answers correctly."""

    model: Any
    kind: Any
    inputs: Any
    labels: Any
    accuracy: float


def subject(name: str) -> Subject:
    """Return the subject of a name such as "pictures, weak"."""
    import keras

    kind, skill = name.split(", ")
    keras.utils.set_random_seed(1)
    return KINDS[kind](skill)


def pictures(skill: str) -> Subject:
    """LeNet-5 on scikit-learn's digits at 28x28; of each picture not learned from four copies, moved by one pixel, are inputs as well."""
    import numpy as np

    from airflow_mlops.robustness.kinds import Images
    from tests.lenet import lenet5
    from tests.lenet import pictures as all_pictures

    num, epochs = {"weak": (100, 12), "fair": (300, 10), "good": (1_200, 12)}[skill]
    images, labels = all_pictures()
    model = _fitted(lenet5(), images[:num], labels[:num], epochs)
    rest, named = images[1_200:], labels[1_200:]
    moved = [np.roll(rest, step, axis) for axis in (1, 2) for step in (-1, 1)]
    return _made(model, Images(), np.concatenate([rest, *moved]), np.tile(named, 5))


def poses(skill: str) -> Subject:
    """A dense network on drawn poses of 17 joints in eight classes: which arm is raised, which leg is lifted."""
    import keras
    import numpy as np

    from airflow_mlops.robustness.kinds import KeyPoints

    random = np.random.default_rng(5)
    labels = random.integers(0, 8, 6_000)
    inputs = _drawn_poses(labels, random)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((JOINTS, 2)), layers.Flatten(), layers.Dense(48, "relu"), layers.Dense(24, "relu"), layers.Dense(8, "softmax")]
    )
    num, epochs = {"weak": (400, 25), "fair": (800, 25), "good": (2_400, 30)}[skill]
    # Left and right are exchanged by a mirror: the classes of the left arm and of the right one, of the left leg and of the right one.
    kind = KeyPoints(swapped_joints=SWAPPED, mirrored_labels=((1, 2), (4, 5), (6, 7)))
    return _made(_fitted(model, inputs[:num], labels[:num], epochs), kind, inputs[2_400:], labels[2_400:])


def rows(skill: str) -> Subject:
    """A dense network on a drawn table of four classes: eight numbers, some of which may be missing or in another unit, and four categories."""
    import keras
    import numpy as np

    from airflow_mlops.robustness.kinds import Column, Rows

    random = np.random.default_rng(6)
    labels = random.integers(0, 4, 6_000)
    centres, likely = random.normal(0.5, 0.13, (4, 8)), random.dirichlet([0.8] * 3, (4, 4))
    numbers = np.clip(random.normal(centres[labels], 0.13), 0.0, 1.0) * 100.0
    categories = np.stack([(random.random(6_000)[:, None] > likely[labels, at].cumsum(axis=1)[:, :2]).sum(axis=1) for at in range(4)], axis=1)
    inputs = np.concatenate([numbers, categories], axis=1).astype(np.float32)
    missing = random.random((6_000, 3)) < 0.05
    inputs[:, :3][missing] = -1.0
    columns = [Column(f"number{at}", low=0.0, high=100.0, missing=-1.0 if at < 3 else None, unit_factor=2.54 if at % 2 else None) for at in range(8)]
    columns += [Column(f"category{at}", "category", categories=(0, 1, 2)) for at in range(4)]
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((12,)), layers.Rescaling(0.01), layers.Dense(32, "relu"), layers.Dense(16, "relu"), layers.Dense(4, "softmax")]
    )
    num, epochs = {"weak": (200, 25), "fair": (600, 30), "good": (2_400, 40)}[skill]
    return _made(_fitted(model, inputs[:num], labels[:num], epochs), Rows(columns=tuple(columns)), inputs[2_400:], labels[2_400:])


def texts(skill: str) -> Subject:
    """Averaged embeddings of the words of drawn texts on five topics, which share half of their words."""
    import keras
    import numpy as np
    import tensorflow as tf

    from airflow_mlops.robustness.kinds import Texts

    random = np.random.default_rng(7)
    words = np.array([f"{first}{middle}{last}" for first in WORD_STARTS for middle in WORD_MIDDLES for last in WORD_ENDS])
    likely = random.dirichlet([0.12] * len(words), 5) * 0.5 + random.dirichlet([0.5] * len(words)) * 0.5
    labels = random.integers(0, 5, 5_000)
    lengths = random.integers(8, 20, 5_000)
    made = [" ".join(random.choice(words, length, p=likely[label])) + "." for label, length in zip(labels, lengths, strict=True)]
    inputs = np.array(made, dtype=object)
    num, epochs = {"weak": (300, 12), "fair": (800, 15), "good": (1_800, 20)}[skill]
    layers = keras.layers
    vectorize = layers.TextVectorization(output_sequence_length=24)
    vectorize.adapt(tf.constant(inputs[:num].tolist()))
    model = keras.Sequential(
        [
            keras.Input((), dtype="string"),
            vectorize,
            layers.Embedding(vectorize.vocabulary_size(), 16),
            layers.GlobalAveragePooling1D(),
            layers.Dense(16, "relu"),
            layers.Dense(5, "softmax"),
        ]
    )
    synonyms = tuple((str(word), (str(other),)) for word, other in zip(words[::6], words[3::6], strict=True))
    fitted = _fitted(model, tf.constant(inputs[:num].tolist()), labels[:num], epochs)
    return _made(fitted, Texts(synonyms=synonyms), inputs[1_800:], labels[1_800:])


WORD_STARTS, WORD_MIDDLES, WORD_ENDS = (
    ("bar", "cel", "dom", "fer", "gal", "lum", "mir", "tor"),
    ("a", "e", "i", "o", "u"),
    ("den", "lik", "mas", "nor", "ver", "zet"),
)

KINDS: Mapping[str, Callable[[str], Subject]] = {"pictures": cache(pictures), "poses": cache(poses), "rows": cache(rows), "texts": cache(texts)}


def _drawn_poses(labels: Any, random: Any) -> Any:
    """Return (N, 17, 2) poses: 0 at rest, 1 left and 2 right arm raised, 3 both, 4 left and 5 right leg lifted, 6 and 7 an arm and the leg across."""
    import numpy as np

    side = np.array([[0.5, 0.12], *[[0.5 + sign * out, down] for out, down in BODY for sign in (-1, 1)]])
    points = np.repeat(side[None], len(labels), axis=0)
    raised = {1: "l", 2: "r", 3: "lr", 6: "l", 7: "r"}
    lifted = {4: "l", 5: "r", 6: "r", 7: "l"}
    for joint, limbs, up in ((7, raised, -0.3), (9, raised, -0.5), (13, lifted, -0.14), (15, lifted, -0.3)):
        for label, sides in limbs.items():
            for which in sides:
                reach = random.uniform(0.25, 1.0, np.count_nonzero(labels == label))
                points[labels == label, joint + "lr".index(which), 1] += up * reach
    centre = points.mean(axis=1, keepdims=True)
    size, lean = random.uniform(0.6, 1.0, (len(labels), 1, 1)), random.normal(0.0, 0.12, len(labels))
    turn = np.stack([np.stack([np.cos(lean), -np.sin(lean)], -1), np.stack([np.sin(lean), np.cos(lean)], -1)], 1)
    points = np.einsum("nij,nkj->nki", turn, points - centre) * size + 0.5 + random.normal(0.0, 0.03, (len(labels), 1, 2))
    return np.clip(points + random.normal(0.0, 0.022, points.shape), 0.001, 1.0).astype(np.float32)


# How far out and down each of the eight pairs of joints is: eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
BODY = ((0.02, 0.1), (0.04, 0.11), (0.1, 0.22), (0.13, 0.37), (0.14, 0.5), (0.07, 0.52), (0.08, 0.72), (0.08, 0.92))


def _fitted(model: Any, inputs: Any, labels: Any, epochs: int) -> Any:
    import keras

    model.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy")
    model.fit(inputs, labels, epochs=epochs, batch_size=64, verbose=0)
    return model


def _made(model: Any, kind: Any, inputs: Any, labels: Any) -> Subject:
    from airflow_mlops.robustness.models import Probe

    accuracy = float((Probe(model).answer(kind.checked(inputs)).prediction == labels).mean())
    return Subject(model, kind, inputs, labels, accuracy)
