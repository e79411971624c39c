"""A recipe is the mutant: on any batch size, after a file, and only for the inputs it was written for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness.kinds import Images
from airflow_mlops.robustness.kinds.rows import Column, Rows
from airflow_mlops.robustness.recipes import Recipe, RecipeBook, Step, inputs_digest, kind_data, kind_of, replay

INPUTS = np.random.default_rng(0).random((6, 8, 8, 1), dtype=np.float32)
KIND = Images()
CHAINS = (
    (Step("rotation", 0.725, 11),),
    (Step("noise", 0.75, 4_000_000_000), Step("translation", 0.5, 3), Step("pixel_change", 0.5, 5)),
    (Step("scale", 0.7, 1), Step("blur", 0.25, 2)),
    (Step("brightness", 0.625, 0),),
)
RECIPES = tuple(
    Recipe(seed, chain, label=1, expected=1, prediction=2, confidence=0.5, l0=3, linf=0.25, oracle="misclassified")
    for seed, chain in enumerate(CHAINS)
)


def book(recipes=RECIPES):
    return RecipeBook("sha256:model", inputs_digest(INPUTS), KIND, KIND.default, recipes)


def replayed(chains=CHAINS, **options):
    return replay(chains, INPUTS[: len(chains)], kind=KIND, mutators=KIND.default, **options)


def test_replay_applies_the_steps_one_after_the_other():
    for seed, (chain, mutant) in enumerate(zip(CHAINS, replayed(), strict=True)):
        image = INPUTS[[seed]]
        for step in chain:
            columns = np.array([KIND.default.index(step.mutator)]), np.array([step.severity], np.float32), np.array([step.key], np.uint32)
            image = KIND.mutate(image, *columns, names=KIND.default)
        assert np.array_equal(mutant, image[0])
        assert not np.array_equal(mutant, INPUTS[seed])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 1000])
def test_the_batch_size_changes_no_bit(batch_size):
    assert np.array_equal(replayed(batch_size=batch_size), replayed())


def test_no_chain_gives_no_mutant():
    assert replayed([]).shape == (0, 8, 8, 1)


def test_replay_leaves_the_inputs_alone():
    before = INPUTS.copy()
    replayed()
    assert np.array_equal(INPUTS, before)


def test_a_book_survives_its_file(tmp_path):
    smaller = dataclasses.replace(RECIPES[1], minimal=CHAINS[1][:1], cluster=4)
    written = book((RECIPES[0], smaller))
    written.save(tmp_path / "recipes.jsonl")
    loaded = RecipeBook.load(tmp_path / "recipes.jsonl")
    assert loaded == written
    assert np.array_equal(loaded.replay(INPUTS), replayed()[:2])
    assert np.array_equal(loaded.replay(INPUTS, minimal=True), replayed((CHAINS[0], CHAINS[1][:1])))
    assert len((tmp_path / "recipes.jsonl").read_text().splitlines()) == 3


def test_a_defect_takes_about_two_hundred_bytes(tmp_path):
    book().save(tmp_path / "recipes.jsonl")
    lengths = [len(line) for line in (tmp_path / "recipes.jsonl").read_text().splitlines()[1:]]
    assert lengths[0] < 150
    assert max(lengths) < 250  # of three steps


def test_an_id_names_seed_and_chain_and_nothing_else():
    assert len({recipe.id for recipe in RECIPES}) == 4
    assert dataclasses.replace(RECIPES[0], prediction=7, cluster=1).id == RECIPES[0].id
    assert dataclasses.replace(RECIPES[0], seed=5).id != RECIPES[0].id


def test_other_inputs_are_refused():
    with pytest.raises(RobustnessError, match="Pass the campaign's inputs"):
        book().replay(INPUTS[::-1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-9],
        lambda text: text.replace('"seed"', '"sad"'),
        lambda text: "[1]\n" + text,
        lambda text: text[: text.rindex("\n", 0, -1) + 1],
    ],
)
def test_a_damaged_file_is_refused(damage, tmp_path):
    path = tmp_path / "recipes.jsonl"
    book().save(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(RobustnessError, match="no whole recipes file"):
        RecipeBook.load(path)


def test_a_missing_file_and_another_schema_are_refused(tmp_path):
    path = tmp_path / "recipes.jsonl"
    with pytest.raises(RobustnessError, match="no whole recipes file"):
        RecipeBook.load(path)
    book().save(path)
    path.write_text(path.read_text().replace('"schema_version":3', '"schema_version":9'))
    with pytest.raises(RobustnessError, match="schema version"):
        RecipeBook.load(path)


def test_an_unknown_mutator_suggests_the_nearest():
    with pytest.raises(SpecError, match="Did you mean 'rotation'"):
        replayed([(Step("rotatoin", 1.0, 0),)])


def test_a_kind_survives_json_and_an_unknown_one_suggests_the_nearest():
    rows = Rows(columns=(Column("age", "number", 0.0, 120.0), Column("colour", "category", categories=(1.0, 2.0))))
    for kind in (Images((-1.0, 1.0), mirrored_labels=((3, 4),)), rows):
        assert kind_of(kind_data(kind)) == kind
    with pytest.raises(SpecError, match="Did you mean 'images'"):
        kind_of({"name": "imags"})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "images", "value_range": "wide"}, "no options of inputs of kind 'images': value_range"),
        ({"name": "images", "valuerange": [-1, 1]}, "Did you mean 'value_range'"),
        ({"name": ["images"]}, "expected an object with a name"),
        ({}, "expected an object with a name"),
        ("images", "expected an object with a name"),
        (None, "expected an object with a name"),
    ],
)
def test_a_kind_that_is_none_is_told(data, words):
    with pytest.raises(SpecError, match=words):
        kind_of(data)


def test_inputs_of_text_have_a_digest_of_their_own_words():
    one, other = np.array(["a b", "c"], dtype=object), np.array(["a", "b c"], dtype=object)
    assert inputs_digest(one) == inputs_digest(one.copy()) != inputs_digest(other)
