"""Groups of defects that probably have one cause: the same operator, the same confusion, and activations that changed alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.models import IN_FLIGHT
from airflow_mlops.robustness.mutators.base import Floats, Ints
from airflow_mlops.robustness.oracles import Bits
from airflow_mlops.robustness.profile import Profile
from airflow_mlops.robustness.recipes import Recipe, replay

# Cosine distance of standardised changes of activations: unrelated ones are 1 apart. With two back doors of one confusion planted in a model of
# digits, clusters of this width are of one cause to 100 % (0.2 to 0.7, too); with the last layer it would be 57 %, by activations instead of their
# change 66 %.
NEIGHBOURS = 0.5
FAR = 10.0  # standard deviations
MAX_FEATURES = 256
MAX_COMPARED = 2_000  # defects compared all with all, which takes memory and time by their square: 64 MB


@dataclass(frozen=True)
class Cluster:
    """Defects `members` (positions in the list of distinct defects) by the mutator of their last step, from `label` to `prediction`.

    `representative` is the member nearest to the middle of the group, the one to look at.
    """

    number: int
    mutator: str
    label: int
    prediction: int
    members: tuple[int, ...]
    representative: int


def clustered(lab: Lab, recipes: Sequence[Recipe]) -> tuple[list[Recipe], tuple[Cluster, ...]]:
    """Return the recipes with `cluster` set, and the clusters, largest first.

    Groups of one operator and one confusion are split by complete-linkage clustering of how their neurons changed from seed to mutant (cosine
    distance), so that no two members of a cluster are farther apart than `NEIGHBOURS`. Of a group of more than `MAX_COMPARED` so many are clustered
    at a time; whoever is as near to a representative of theirs joins it, and the others are clustered next.
    """
    if not recipes:
        return [], ()
    features = _features(lab, recipes)
    groups: dict[tuple[str, int, int], list[int]] = {}
    for row, recipe in enumerate(recipes):
        groups.setdefault(((recipe.minimal or recipe.chain)[-1].mutator, recipe.label, recipe.prediction), []).append(row)
    found = [(key, members) for key, rows in sorted(groups.items()) for members in _split(features, rows)]
    found.sort(key=lambda item: (-len(item[1]), item[0], item[1]))
    clusters = tuple(Cluster(number, *key, tuple(sorted(members)), _middle(features, members)) for number, (key, members) in enumerate(found))
    number_of = {row: cluster.number for cluster in clusters for row in cluster.members}
    return [replace(recipe, cluster=number_of[row]) for row, recipe in enumerate(recipes)], clusters


def _features(lab: Lab, recipes: Sequence[Recipe]) -> Floats:
    """Return (D, F) unit vectors: what each neuron did beyond what it did on the seed, in standard deviations, projected where there are many.

    What a seed looks like is no cause, nor is a step that the defect does not need, so its smallest form is looked at; and what the last layer does
    is the confusion itself, unless there is no other. No neuron counts for more than `FAR`: one would drown all others. Where none has a number, the
    vector is 0.
    """
    kind, names = lab.config.kind, lab.config.mutator_names
    hidden = lab.profile.layers[-1].start or lab.probe.num_neurons
    deviation, projection = _deviation(lab.profile)[:hidden], _projection(hidden)
    parts, size = [], IN_FLIGHT * lab.probe.micro_batch  # not the batch size, on which the last bits of a matrix product would depend
    for start in range(0, len(recipes), size):
        part = recipes[start : start + size]
        seeds = lab.inputs[[recipe.seed for recipe in part]]
        mutants = replay([recipe.minimal or recipe.chain for recipe in part], seeds, kind=kind, mutators=names)
        change = (lab.probe.answer(mutants).neurons - lab.probe.answer(seeds).neurons)[:, :hidden] / deviation
        parts.append(np.clip(np.nan_to_num(change, posinf=FAR, neginf=-FAR), -FAR, FAR).astype(np.float32) @ projection)
    features: Floats = np.concatenate(parts)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return features


def _deviation(profile: Profile) -> Floats:
    """Return (M,) standard deviations; of a neuron that was hardly moved in training, a tenth of what is usual in its layer.

    What such a neuron does on a defect tells more than any other, and must not be lost, nor taken for more because of a rounding error.
    """
    deviation = profile.std.copy()
    for span in profile.layers:
        own = deviation[span.start : span.stop]
        usual = np.median(own[own > 0]) if own.any() else 1.0
        np.maximum(own, usual / 10, out=own)
    return deviation


def _projection(num_neurons: int) -> Floats:
    """Return a fixed random projection that keeps angles (Johnson-Lindenstrauss), or the identity where neurons are few."""
    if num_neurons <= MAX_FEATURES:
        return np.eye(num_neurons, dtype=np.float32)
    return np.random.default_rng(0).standard_normal((num_neurons, MAX_FEATURES)).astype(np.float32)


def _split(features: Floats, rows: Sequence[int]) -> list[list[int]]:
    found: list[list[int]] = []
    left = np.array(rows)
    while left.size:
        compared, left = left[:MAX_COMPARED], left[MAX_COMPARED:]
        number = _linked(features[compared])
        clusters = [compared[number == which].tolist() for which in np.unique(number)]
        near, nearest = _nearest(features, left, [_middle(features, members) for members in clusters])
        for member, which in zip(left[near].tolist(), nearest[near].tolist(), strict=True):
            clusters[which].append(member)
        found, left = found + clusters, left[~near]
    return found


def _linked(features: Floats) -> Ints:
    """Return (N,) numbers of clusters from 1 on; zero vectors, which have no angle, are neighbours of each other only."""
    if len(features) == 1:
        return np.ones(1, dtype=np.int64)
    wide = features.astype(np.float64)
    distance = 1.0 - wide @ wide.T
    lost = ~wide.any(axis=1)
    distance[np.ix_(lost, lost)] = 0.0
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(np.maximum(distance, 0.0), checks=False)
    return np.asarray(fcluster(linkage(condensed, "complete"), NEIGHBOURS, "distance"))


def _nearest(features: Floats, rows: Ints, representatives: Sequence[int]) -> tuple[Bits, Ints]:
    """Return for each of `rows` (N,) whether a representative is its neighbour, and the number of the nearest."""
    near, nearest = np.zeros(len(rows), dtype=np.bool_), np.zeros(len(rows), dtype=np.int64)
    lost = ~features[representatives].any(axis=1)
    for start in range(0, len(rows), MAX_COMPARED):
        part = slice(start, start + MAX_COMPARED)
        own = features[rows[part]]
        distance = 1.0 - own @ features[representatives].T
        distance[np.ix_(~own.any(axis=1), lost)] = 0.0
        nearest[part] = distance.argmin(axis=1)
        near[part] = distance.min(axis=1) <= NEIGHBOURS
    return near, nearest


def _middle(features: Floats, members: list[int]) -> int:
    centre = features[members].mean(axis=0)
    return members[int(np.argmax(features[members] @ centre))]
