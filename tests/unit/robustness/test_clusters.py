"""Defects of one cause lie in one cluster; here the causes are known, because the model was given them."""

from __future__ import annotations

import dataclasses
import tracemalloc

import keras
import numpy as np
import pytest
import tensorflow as tf

from airflow_mlops.robustness import clusters
from airflow_mlops.robustness.campaign import CampaignConfig
from airflow_mlops.robustness.clusters import NEIGHBOURS, clustered
from airflow_mlops.robustness.findings import recipes_of
from airflow_mlops.robustness.kinds import Images
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.minimize import minimized
from airflow_mlops.robustness.mutators.base import Mutator, random_bits
from airflow_mlops.robustness.profile import Profile
from airflow_mlops.robustness.recipes import Step, replay
from airflow_mlops.robustness.shards import GUIDED, arm_of

from .conftest import distinct_defects, finished

CORNERS = np.zeros((8, 8, 2), np.float32)
CORNERS[0, 0, 0] = CORNERS[7, 7, 1] = 1.0


def spot(images, severity, key, kind):
    """Brighten the pixel of one of two corners, as the key decides."""
    which = tf.one_hot(tf.cast(random_bits(key, 1, 77)[:, 0] & tf.constant(1, tf.uint32), tf.int32), 2)
    return images + severity[:, None, None, None] * tf.reduce_sum(CORNERS * which[:, None, None, :], axis=-1, keepdims=True)


def with_back_doors(model):
    """Return the model with two back doors: it answers 3 when one corner is bright, and when the other is, each by a neuron of its own."""
    layers = keras.layers
    hidden = image = layers.Input((8, 8, 1))
    for layer in model.layers[:-1]:
        hidden = layer(hidden)
    alarm, classes = layers.Dense(2, activation="relu", name="alarm"), layers.Dense(10, activation="softmax", name="opened")
    opened = keras.Model(image, classes(layers.Concatenate()([hidden, alarm(layers.Flatten()(image))])))
    alarm.set_weights([CORNERS.reshape(64, 2), np.full(2, -0.2)])
    kernel, bias = model.layers[-1].get_weights()
    classes.set_weights([np.concatenate([kernel, 100 * np.eye(10, dtype=np.float32)[[3, 3]]]), bias])
    return opened


@pytest.fixture(scope="module")
def config():
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(Images.mutators, "spot", Mutator(spot, 1.0, "of the range", "one pixel in a corner is no digit"))
        yield CampaignConfig(max_mutants=2_000, sample_mutants=10, num_islands=1, criteria=("nc",), mutators=("rotation", "spot"))


@pytest.fixture(scope="module")
def lab(digits, config):
    model = with_back_doors(digits.model)
    inputs = digits.inputs * (1 - CORNERS.sum(axis=-1, keepdims=True))
    train = digits.train_inputs * (1 - CORNERS.sum(axis=-1, keepdims=True))
    return Lab.of(model, inputs, digits.labels, config, Profile.of(Lab.of(model, inputs, digits.labels, config, None).probe, train))


@pytest.fixture(scope="module")
def recipes(lab):
    return distinct_defects(finished(lab))


def mutants(lab, recipes):
    seeds = lab.inputs[[recipe.seed for recipe in recipes]]
    return replay([recipe.minimal or recipe.chain for recipe in recipes], seeds, kind=lab.config.kind, mutators=lab.config.mutator_names)


@pytest.fixture(scope="module")
def causes(lab, recipes):
    return causes_of(lab, recipes)


def causes_of(lab, recipes):
    """Why each defect fails: a back door that its picture opens, or none of them."""
    bright = mutants(lab, recipes)[:, [0, 7], [0, 7], 0] > 0.2
    return np.where(bright.all(axis=1), "both", np.where(bright[:, 0], "first", np.where(bright[:, 1], "second", "neither")))


def purity(groups, causes):
    """Return the share of defects that have the most frequent cause of their group."""
    return sum(np.unique(causes[list(group)], return_counts=True)[1].max() for group in groups) / len(causes)


def test_clusters_tell_causes_apart_that_operator_and_confusion_do_not(lab, recipes):
    recipes = minimized(lab, recipes)  # as in every campaign: a chain may open both back doors, and its smallest form only one
    causes = causes_of(lab, recipes)
    counts = dict(zip(*np.unique(causes, return_counts=True), strict=True))
    assert min(counts["first"], counts["second"]) > 100
    assert counts["neither"] > 5
    members = [cluster.members for cluster in clustered(lab, recipes)[1]]
    grouped = {}
    for row, recipe in enumerate(recipes):
        grouped.setdefault((recipe.minimal[-1].mutator, recipe.label, recipe.prediction), []).append(row)
    assert purity(members, causes) >= 0.95
    assert purity(grouped.values(), causes) < 0.7
    assert len(members) < len(recipes) / 2


def test_every_cause_has_a_cluster_whose_representative_shows_it(lab, recipes, causes):
    found = clustered(lab, recipes)[1]
    shown = {causes[cluster.representative] for cluster in found[:6]}
    assert shown >= {"first", "second"}
    for cluster in found:
        assert cluster.representative in cluster.members


def test_clusters_share_out_all_defects_and_are_numbered_from_the_largest(lab, recipes):
    numbered, found = clustered(lab, recipes)
    assert sorted(member for cluster in found for member in cluster.members) == list(range(len(recipes)))
    assert [cluster.number for cluster in found] == list(range(len(found)))
    sizes = [len(cluster.members) for cluster in found]
    assert sizes == sorted(sizes, reverse=True)
    for cluster in found:
        own = [numbered[member] for member in cluster.members]
        assert {recipe.cluster for recipe in own} == {cluster.number}
        assert {(recipe.chain[-1].mutator, recipe.label, recipe.prediction) for recipe in own} == {
            (cluster.mutator, cluster.label, cluster.prediction)
        }
    assert [dataclasses.replace(recipe, cluster=None) for recipe in numbered] == recipes


def test_the_operator_of_a_cluster_is_the_last_that_is_needed(lab, recipes):
    long = next(recipe for recipe in recipes if len({step.mutator for step in recipe.chain}) == 2)
    needed = dataclasses.replace(long, minimal=long.chain[:1])
    assert [clustered(lab, [recipe])[1][0].mutator for recipe in (long, needed)] == [long.chain[-1].mutator, needed.minimal[-1].mutator]


def test_no_two_members_of_a_cluster_are_farther_apart_than_neighbours(lab, recipes):
    features = clusters._features(lab, recipes)
    assert np.linalg.norm(features, axis=1) == pytest.approx(1.0, abs=1e-5)
    for cluster in clustered(lab, recipes)[1]:
        own = features[list(cluster.members)].astype(np.float64)
        assert (1.0 - own @ own.T).max() <= NEIGHBOURS + 1e-6


def test_neither_a_second_time_nor_another_batch_size_changes_anything(config, lab, recipes):
    first = clustered(lab, recipes)
    assert clustered(lab, recipes) == first
    assert clustered(dataclasses.replace(lab, config=dataclasses.replace(config, batch_size=33)), recipes) == first


def test_none_one_and_two_defects(lab, recipes, causes):
    assert clustered(lab, []) == ([], ())
    numbered, (only,) = clustered(lab, recipes[:1])
    assert (only.members, only.representative, numbered[0].cluster) == ((0,), 0, 0)
    similar = [row for row in np.flatnonzero(causes == "first") if recipes[row].label == recipes[np.flatnonzero(causes == "first")[0]].label][:2]
    different = [np.flatnonzero(causes == cause)[0] for cause in ("first", "neither")]
    assert [len(clustered(lab, [recipes[row] for row in pair])[1]) for pair in (similar, different)] == [1, 2]


def test_identical_activations_are_one_cluster(lab, recipes):
    numbered, found = clustered(lab, recipes[:1] * 50)
    assert [len(cluster.members) for cluster in found] == [50]
    assert {recipe.cluster for recipe in numbered} == {0}


def test_a_neuron_that_never_moved_in_training_tells_the_cause_and_drowns_nothing(lab):
    span = next(span for span in lab.profile.layers if span.name == "alarm")
    assert not lab.profile.std[span.start : span.stop].any()
    deviation = clusters._deviation(lab.profile)
    assert (deviation > 0).all()
    for layer in lab.profile.layers:
        own = lab.profile.std[layer.start : layer.stop]
        low = np.median(own[own > 0]) / 10 if own.any() else 0.1
        assert np.array_equal(deviation[layer.start : layer.stop], np.maximum(own, low))


def test_defects_whose_activations_are_no_numbers_are_a_cluster_of_their_own(config, lab):
    """ReLU makes 0 of NaN; after tanh it stays."""
    layers = keras.layers
    image = layers.Input((8, 8, 1))
    seen = keras.ops.where(image[:, 7:, 7:, :] > 0.2, float("nan"), image)
    answer = layers.Dense(10, activation="softmax")(layers.Dense(12, activation="tanh")(layers.Flatten()(seen)))
    model = keras.Model(image, answer)
    labels = model.predict(lab.inputs, verbose=0).argmax(axis=1)
    broken = Lab.of(model, lab.inputs, labels, config, None)
    arm = arm_of(broken, 0, GUIDED)
    arm.step()
    found = distinct_defects(arm)
    lost = {row for row, recipe in enumerate(found) if recipe.prediction == -1}
    assert len(lost) > 10
    assert np.isnan(broken.probe.answer(mutants(broken, [found[min(lost)]])).neurons).all()
    groups = [cluster for cluster in clustered(broken, found)[1] if cluster.prediction == -1]
    assert {member for cluster in groups for member in cluster.members} == lost
    assert len(groups) == len({(found[row].chain[-1].mutator, found[row].label) for row in lost})


def test_the_only_layer_of_a_model_tells_what_no_other_can(lab, config):
    image = keras.layers.Input((8, 8, 1))
    model = keras.Model(image, keras.layers.Dense(10, activation="softmax")(keras.layers.Flatten()(image)))
    flat = Lab.of(model, lab.inputs, model.predict(lab.inputs, verbose=0).argmax(axis=1), config, None)
    arm = arm_of(flat, 0, GUIDED)
    arm.step()
    assert np.linalg.norm(clusters._features(flat, recipes_of(arm)), axis=1) == pytest.approx(1.0, abs=1e-5)


def test_neither_what_a_defect_does_not_need_nor_its_answer_tells_causes_apart(lab, recipes):
    short = next(recipe for recipe in recipes if recipe.chain[0].mutator == "spot" and len(recipe.chain) == 1)
    turned = dataclasses.replace(short, chain=(*short.chain, Step("rotation", 1.0, 5)), minimal=short.chain)
    features = clusters._features(lab, [short, turned])
    assert np.array_equal(*features)
    assert features.shape[1] == lab.probe.num_neurons - 10  # the classes


def unit(vectors):
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def test_vectors_without_a_direction_are_neighbours_of_each_other_only(monkeypatch):
    random = np.random.default_rng(0)
    features = np.concatenate([unit(random.normal(size=(1, 8)) + 0.05 * random.normal(size=(30, 8))), np.zeros((30, 8), np.float32)])
    expected = [list(range(30)), list(range(30, 60))]
    assert sorted(map(sorted, clusters._split(features, range(60)))) == expected
    monkeypatch.setattr(clusters, "MAX_COMPARED", 40)  # 20 of the zero vectors are compared with representatives
    assert sorted(map(sorted, clusters._split(features, range(60)))) == expected


def test_a_group_too_large_to_compare_all_with_all_falls_into_the_same_clusters(monkeypatch):
    random = np.random.default_rng(1)
    which = random.integers(0, 12, 900)
    features = unit(random.normal(size=(12, 32))[which] + 0.2 * random.normal(size=(900, 32)))
    whole = sorted(map(sorted, clusters._split(features, range(900))))
    monkeypatch.setattr(clusters, "MAX_COMPARED", 100)
    assert sorted(map(sorted, clusters._split(features, range(900)))) == whole
    assert sorted(map(sorted, [np.flatnonzero(which == number) for number in range(12)])) == [list(group) for group in whole]


def test_whoever_is_near_no_representative_is_clustered_next(monkeypatch):
    monkeypatch.setattr(clusters, "MAX_COMPARED", 10)
    features = np.eye(64, dtype=np.float32)
    assert sorted(clusters._split(features, range(64))) == [[row] for row in range(64)]


def test_20000_defects_of_one_group_take_bounded_memory():
    random = np.random.default_rng(2)
    features = unit(random.normal(size=(300, 64))[random.integers(0, 300, 20_000)] + 0.3 * random.normal(size=(20_000, 64)))
    tracemalloc.start()
    found = clusters._split(features, range(20_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(map(len, found)) == 20_000
    assert len(found) < 400
    assert peak < 150e6
