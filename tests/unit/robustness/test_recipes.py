"""A recipe is the mutant: on any batch size, after a file, and only for the inputs it was written for."""

from __future__ import annotations

import numpy as np
import pytest

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness.mutators import NAMES, mutate
from airflow_mlops.robustness.recipes import Recipe, RecipeBook, Step, inputs_digest, replay

INPUTS = np.random.default_rng(0).random((6, 8, 8, 1), dtype=np.float32)
CHAINS = (
    (Step("rotation", 7.25, 11),),
    (Step("noise", 0.04, 4_000_000_000), Step("translation", 0.05, 3), Step("pixel_change", 0.01, 5)),
    (Step("scale", 0.93, 1), Step("blur", 0.03, 2)),
    (Step("brightness", -0.1, 0),),
)
RECIPES = tuple(Recipe(seed, chain, label=1, prediction=2, confidence=0.5) for seed, chain in enumerate(CHAINS))


def book():
    return RecipeBook("sha256:model", inputs_digest(INPUTS), (0.0, 1.0), RECIPES)


def test_replay_applies_the_steps_one_after_the_other():
    for recipe, replayed in zip(RECIPES, replay(RECIPES, INPUTS), strict=True):
        image = INPUTS[[recipe.seed]]
        for step in recipe.chain:
            columns = np.array([NAMES.index(step.mutator)]), np.array([step.severity], np.float32), np.array([step.key], np.uint32)
            image = mutate(image, *columns, value_range=(0.0, 1.0))
        assert np.array_equal(replayed, image[0])
        assert not np.array_equal(replayed, INPUTS[recipe.seed])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 1000])
def test_the_batch_size_changes_no_bit(batch_size):
    assert np.array_equal(replay(RECIPES, INPUTS, batch_size=batch_size), replay(RECIPES, INPUTS))


def test_one_recipe_may_stand_alone_and_none_gives_none():
    assert np.array_equal(replay(RECIPES[1], INPUTS)[0], replay(RECIPES, INPUTS)[1])
    assert replay([], INPUTS).shape == (0, 8, 8, 1)


def test_replay_leaves_the_inputs_alone():
    before = INPUTS.copy()
    replay(RECIPES, INPUTS)
    assert np.array_equal(INPUTS, before)


def test_a_book_survives_its_file(tmp_path):
    book().save(tmp_path / "recipes.jsonl")
    loaded = RecipeBook.load(tmp_path / "recipes.jsonl")
    assert loaded == book()
    assert np.array_equal(loaded.replay(INPUTS), replay(RECIPES, INPUTS))
    assert len((tmp_path / "recipes.jsonl").read_text().splitlines()) == 1 + len(RECIPES)


def test_other_inputs_are_refused():
    with pytest.raises(RobustnessError, match="Pass the campaign's inputs"):
        book().replay(INPUTS[::-1])
    with pytest.raises(RobustnessError, match="starts from input 3"):
        replay(RECIPES, INPUTS[:3])


@pytest.mark.parametrize(
    "damage", [lambda text: "", lambda text: text[:-9], lambda text: text.replace('"seed"', '"sad"'), lambda text: "[1]\n" + text]
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
    path.write_text(path.read_text().replace('"schema_version":1', '"schema_version":9'))
    with pytest.raises(RobustnessError, match="schema version"):
        RecipeBook.load(path)


def test_an_unknown_mutator_suggests_the_nearest():
    with pytest.raises(SpecError, match="Did you mean 'rotation'"):
        replay(Recipe(0, (Step("rotatoin", 1.0, 0),), 1, 2, 0.5), INPUTS)
