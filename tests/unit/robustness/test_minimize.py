"""The smallest form of a defect is checked mutant by mutant, with a plain loop that shares nothing with the search for it."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

from airflow_mlops.robustness.campaign import CampaignConfig
from airflow_mlops.robustness.kinds import Images
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.minimize import minimized
from airflow_mlops.robustness.recipes import Recipe, Step, replay

from .conftest import distinct_defects, finished

CONFIG = CampaignConfig(max_mutants=2_500, sample_mutants=100, num_islands=1, criteria=("nc",), seed=1)
MIRRORED = dataclasses.replace(
    CONFIG,
    kind=Images(mirrored_labels=((2, 5), (6, 9))),
    mutators=("brightness", "noise", "horizontal_flip", "rotation", "shear"),
)


def lab_of(digits, config=CONFIG):
    return Lab.of(digits.model, digits.inputs, digits.labels, config, None)


class Case:
    """A campaign's distinct defects, their smallest forms, and the naive rule of what fails in the same way."""

    def __init__(self, lab):
        self.lab, self.recipes = lab, distinct_defects(finished(lab))
        self.small = minimized(lab, self.recipes)

    def follow(self, recipe, chain):
        """Return (changed by every step, and within the constraint; expected answer; mutant), with distances counted pixel by pixel."""
        kind, names = self.lab.config.kind, self.lab.config.mutator_names
        image = reference = self.lab.inputs[recipe.seed]
        expected, inside, before, l0, linf = recipe.label, True, (0, 0.0), 0, 0.0
        partner = {one: other for pair in kind.mirrored_labels for one, other in (pair, pair[::-1])}
        for step in chain:
            columns = np.array([names.index(step.mutator)]), np.array([step.severity]), np.array([step.key])
            before_step, image = image, kind.mutate(image[None], *columns, names=names)[0]
            if step.mutator == "horizontal_flip":
                expected = partner.get(expected, expected)
            if kind.mutators[step.mutator].moves:
                reference, before = image, (l0, linf)
            changes = [abs(float(one) - float(other)) for one, other in zip(image.ravel(), reference.ravel(), strict=True)]
            l0, linf = before[0] + sum(change > 0 for change in changes), max(before[1], *changes)
            inside = inside and (l0 < 0.02 * image.size or linf < 0.2) and not np.array_equal(image, before_step)
        return inside, expected, image

    def fail(self, recipes, chains):
        """Return whether each chain fails as its recipe does."""
        followed = [self.follow(recipe, chain) for recipe, chain in zip(recipes, chains, strict=True)]
        predictions = self.lab.probe.answer(np.stack([image for _, _, image in followed])).prediction
        return [
            inside and expected == recipe.expected != prediction == recipe.prediction
            for recipe, (inside, expected, _), prediction in zip(recipes, followed, predictions.tolist(), strict=True)
        ]


@pytest.fixture(scope="module", params=[CONFIG, MIRRORED], ids=["nine", "mirrored"])
def case(request, digits):
    return Case(lab_of(digits, request.param))


def test_every_smallest_form_fails_in_the_same_way_within_the_constraint(case):
    assert len(case.small) > 20
    assert all(case.fail(case.small, [recipe.minimal for recipe in case.small]))
    assert [dataclasses.replace(recipe, minimal=None) for recipe in case.small] == case.recipes


def test_no_single_step_of_a_smallest_form_can_be_left_out(case):
    tried = [(recipe, recipe.minimal[:at] + recipe.minimal[at + 1 :]) for recipe in case.small for at in range(len(recipe.minimal))]
    tried = [(recipe, chain) for recipe, chain in tried if chain]
    assert len(tried) > 20
    assert not any(case.fail(*zip(*tried, strict=True)))


def given(recipe):
    """Return the steps of the campaign that are left, in the order of `minimal`."""
    left = iter(recipe.chain)
    return [next(old for old in left if old.key == step.key and old.mutator == step.mutator) for step in recipe.minimal]


def test_no_lower_severity_of_those_tried_fails(case):
    tried = []
    for recipe in case.small[::3]:
        for at, (step, old) in enumerate(zip(recipe.minimal, given(recipe), strict=True)):
            level = round(step.severity / old.severity * 128)
            assert step.severity == np.float32(old.severity * level / 128)
            for lower in {*range(16, level, 16), level - 1} - {0}:
                weaker = dataclasses.replace(step, severity=float(np.float32(old.severity * lower / 128)))
                tried.append((recipe, (*recipe.minimal[:at], weaker, *recipe.minimal[at + 1 :])))
    assert len(tried) > 50
    assert not any(case.fail(*zip(*tried, strict=True)))


def test_of_two_steps_one_is_left_where_one_is_enough(case):
    pairs = [recipe for recipe in case.small if len(recipe.chain) == 2]
    enough = np.array([case.fail(pairs, [recipe.chain[at : at + 1] for recipe in pairs]) for at in range(2)]).any(axis=0)
    assert enough.tolist() == [len(recipe.minimal) == 1 for recipe in pairs]
    assert set(enough.tolist()) == {True, False}


def test_most_smallest_forms_are_much_smaller(case):
    spent = np.array([[sum(step.severity for step in chain) for chain in (recipe.minimal, recipe.chain)] for recipe in case.small])
    assert np.median(spent[:, 0] / spent[:, 1]) < 0.8


def test_chains_with_a_moving_step_are_among_them(case):
    moves = case.lab.config.kind.mutators
    middle = [recipe for recipe in case.small if any(moves[step.mutator].moves for step in recipe.chain[:-1])]
    assert len(middle) > 5
    assert {any(moves[step.mutator].moves for step in recipe.minimal) for recipe in middle} == {True, False}


def test_neither_batch_size_nor_order_decides(case):
    other = dataclasses.replace(case.lab, config=dataclasses.replace(case.lab.config, batch_size=64))
    assert minimized(other, case.recipes[::-1])[::-1] == case.small


def test_without_its_flip_an_image_is_no_longer_a_failure_to_see_the_flip(digits):
    """Answered with its own label where the mirrored one is right, a seed would fail 'in the same way' with nothing done to it."""
    lab, partner = lab_of(digits, MIRRORED), {2: 5, 5: 2, 6: 9, 9: 6}
    seeds = [seed for seed in lab.seeds.tolist() if lab.labels[seed] in partner]
    chain = (Step("horizontal_flip", 0.5, 1), Step("noise", 1.0, 1))
    mutants = replay([chain] * len(seeds), lab.inputs[seeds], kind=lab.config.kind, mutators=lab.config.mutator_names)
    unmoved = [seed for seed, answer in zip(seeds, lab.probe.answer(mutants).prediction, strict=True) if answer == lab.labels[seed]]
    found = [Recipe(seed, chain, label := int(lab.labels[seed]), partner[label], label, 0.5, 3, 0.1, "misclassified") for seed in unmoved]
    assert len(found) > 2
    assert all(small.minimal[0].mutator == "horizontal_flip" for small in minimized(lab, found))


def fragile(digits, limit):
    """The digits' model, which answers NaN where the picture is brighter than `limit` on average."""
    image = keras.layers.Input((8, 8, 1))
    bright = keras.ops.mean(image, axis=(1, 2, 3))[:, None] > limit
    return keras.Model(image, keras.ops.where(bright, float("nan"), digits.model(image)))


def test_a_mutant_answered_with_nan_is_brought_to_the_least_that_still_is(digits):
    means = digits.inputs.mean(axis=(1, 2, 3))
    limit = float(np.median(means))
    config = dataclasses.replace(CONFIG, mutators=("brightness", "noise"), max_mutants=1_000)
    case = Case(Lab.of(fragile(digits, limit), digits.inputs[means < limit], digits.labels[means < limit], config, None))
    broken = [recipe for recipe in case.small if recipe.prediction == -1]
    assert len(broken) > 5
    assert {recipe.oracle for recipe in broken} == {"not_finite"}
    excess = [[case.follow(recipe, chain)[2].mean() - limit for chain in (recipe.minimal, recipe.chain)] for recipe in broken]
    assert all(small > 0 for small, _ in excess)
    assert max(small for small, _ in excess) < 0.002 < max(large for _, large in excess)


def test_no_recipe_gives_no_recipe(case):
    assert minimized(case.lab, []) == []


def test_a_recipe_that_does_not_fail_has_no_smallest_form(case):
    wrong = dataclasses.replace(case.recipes[0], prediction=(case.recipes[0].prediction + 1) % 10)
    strange = dataclasses.replace(case.recipes[0], expected=(case.recipes[0].expected + 3) % 10)
    assert [recipe.minimal for recipe in minimized(case.lab, [wrong, strange])] == [None, None]


def meter(*limits):
    """Return a model that answers in which part of the scale between these limits the mean of a picture lies."""
    model = keras.Sequential([keras.layers.Input((8, 8, 1)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(len(limits) + 1)])
    slopes = 1e4 * np.arange(len(limits) + 1)
    model.layers[-1].set_weights([slopes[None], -1e4 * np.cumsum([0, *limits])])
    return model


# Pictures of mean 0.4 and answer 0. By its key a step of brightness, 0.15 at most, makes them lighter or darker.
GREY, ANSWER = np.full((30, 8, 8, 1), 0.4, np.float32), np.zeros(30, np.int64)
STEPS = dataclasses.replace(CONFIG, mutators=("brightness", "pixel_change", "rotation"))


@pytest.fixture(scope="module")
def lighter():
    keys, names = np.arange(40), STEPS.mutator_names
    made = Images().mutate(np.repeat(GREY[:1], 40, 0), np.full(40, names.index("brightness")), np.ones(40), keys, names=names)
    return {sign: int(keys[(made.mean(axis=(1, 2, 3)) > 0.4) == (sign > 0)][0]) for sign in (1, -1)}


def offset(lighter, change):
    return Step("brightness", float(np.float32(abs(change) / 0.15)), lighter[int(np.sign(change))])


def smallest(lab, chain, prediction=1, oracle="misclassified"):
    return minimized(lab, [Recipe(0, tuple(chain), 0, 0, prediction, 0.5, 64, 0.1, oracle)])[0].minimal


def test_what_a_change_elsewhere_makes_possible_is_tried_again(lighter):
    """The answer is 1 from 0.500 to 0.510: the darker step can go only after the lighter one was lowered, and that again after it went."""
    lab = Lab.of(meter(0.5, 0.51), GREY, ANSWER, STEPS, None)
    (only,) = smallest(lab, [offset(lighter, -0.015), offset(lighter, 0.12)])
    assert only.key == lighter[1]
    assert 0.1 < 0.15 * only.severity < 0.101


def test_a_moving_step_is_kept_where_the_constraint_needs_it(lighter):
    """Two steps of 0.12 are one of 0.24 when nothing moves between them, and that is too much."""
    lab = Lab.of(meter(0.605), GREY, ANSWER, STEPS, None)
    chain = [offset(lighter, 0.12), Step("rotation", 0.5, 1), offset(lighter, 0.12)]
    small = smallest(lab, chain)
    assert [step.mutator for step in small] == ["brightness", "rotation", "brightness"]
    assert small != tuple(chain)
    assert [step.mutator for step in smallest(Lab.of(meter(0.51), GREY, ANSWER, STEPS, None), chain)] == ["brightness"]


def test_a_chain_outside_the_constraint_has_no_smallest_form(lighter):
    """The pixels changed before a move count on after it."""
    lab = Lab.of(meter(0.41), GREY, ANSWER, STEPS, None)
    chain = (Step("pixel_change", 0.875, 3), Step("rotation", 0.5, 1), offset(lighter, 0.1))
    assert smallest(lab, chain) is None
    assert smallest(lab, chain[1:]) != chain[1:]


def test_a_chain_that_would_fail_only_at_a_lower_severity_has_no_smallest_form(lighter):
    lab = Lab.of(meter(0.5, 0.51), GREY, ANSWER, STEPS, None)
    assert smallest(lab, [offset(lighter, 0.13)]) is None
    assert smallest(lab, [offset(lighter, 0.13)], prediction=2) != (offset(lighter, 0.13),)


def test_a_failure_found_by_another_oracle_is_not_the_same(lighter):
    """Between 0.50 and 0.51 the reference disagrees, above it is wrong as well."""
    config = dataclasses.replace(STEPS, oracles=("disagrees", "misclassified"))
    lab = Lab.of(meter(0.5), GREY, ANSWER, config, None, reference=meter(0.51))
    assert 0.11 < 0.15 * smallest(lab, [offset(lighter, 0.12)])[0].severity < 0.112
    assert 0.10 < 0.15 * smallest(lab, [offset(lighter, 0.105)], oracle="disagrees")[0].severity < 0.102


def test_twenty_times_as_many_recipes_take_no_more_questions_to_the_model(case, monkeypatch):
    calls = []
    judge = Lab.judge
    monkeypatch.setattr(Lab, "judge", lambda lab, *arguments: calls.append(1) or judge(lab, *arguments))
    numbers = []
    for times in (10, 20):  # 50 recipes and 100
        calls.clear()
        assert [recipe.minimal for recipe in minimized(case.lab, case.recipes[:5] * times)] == [recipe.minimal for recipe in case.small[:5]] * times
        numbers.append(len(calls))
    assert numbers[0] == numbers[1] > 3
    calls.clear()
    minimized(case.lab, case.recipes[:1])
    assert 1 < len(calls) <= numbers[0]
