"""What docs/robustness.md says of adding own members, done: its module is imported as it stands there, and a campaign uses all of it."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from airflow_mlops.exceptions import SpecError
from airflow_mlops.robustness.campaign import CampaignConfig, RecipeBook, finish, run_campaign
from airflow_mlops.robustness.coverage import CRITERIA, CoverageOptions
from airflow_mlops.robustness.draw import generator
from airflow_mlops.robustness.kinds import Images
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.oracles import ORACLES
from airflow_mlops.robustness.schedules import SCHEDULES
from airflow_mlops.robustness.schedules.base import propose
from airflow_mlops.robustness.shards import GUIDED, SHARD_FILE, arm_of, run_shard
from airflow_mlops.training.function import import_from
from tests.conformance import test_mutator_family as family

PAGE = (Path(__file__).parents[3] / "docs" / "robustness.md").read_text()
SMALL = {"max_mutants": 800, "sample_mutants": 600, "seed": 3}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The page's module with what it defines, known everywhere for as long as these tests run; and the page's configuration."""
    home, families = tmp_path_factory.mktemp("team"), (Images.mutators, CRITERIA, SCHEDULES, ORACLES)
    before = [dict(members) for members in families]
    for name, text in re.findall(r'^```python title="(own_\w+\.py)"\n(.*?)^```$', PAGE, flags=re.MULTILINE | re.DOTALL):
        (home / name).write_text(text)
    try:
        import_from(home, "own_members")
        yield import_from(home, "own_campaign")
    finally:
        for members, those in zip(families, before, strict=True):
            members.clear()
            members.update(those)
        sys.path.remove(str(home))
        for name in ("own_members", "own_campaign"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def config(own):
    return dataclasses.replace(own.config, **SMALL)


@pytest.fixture(scope="module")
def result(digits, config, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("own")
    return run_campaign(digits.model, digits.inputs, digits.labels, config=config, out_dir=out_dir, profile=digits.profile)


@pytest.fixture(scope="module")
def arm(digits, config):
    arm = arm_of(Lab.of(digits.model, digits.inputs, digits.labels, config, digits.profile), 0, GUIDED)
    while not arm.done:
        arm.step()
    return arm


@pytest.mark.parametrize("check", family.SUITE, ids=lambda check: check.__name__.removeprefix("test_"))
def test_the_mutator_passes_the_suite_of_its_family(own, check):
    check(family.Case(Images(), family.digits(), "shade", ("rotation", "noise", "shade")))


def test_the_mutator_does_what_it_says(own):
    bright = np.ones((16, 8, 8, 1), np.float32)
    key = np.arange(16, dtype=np.uint32)
    shaded = Images().mutate(bright, np.zeros(16, int), np.ones(16, np.float32), key, names=("shade",))[:, 0, :, 0]
    assert {tuple(row[[0, -1]].astype(float).round(2).tolist()) for row in shaded} == {(1.0, 0.85), (0.85, 1.0)}


def test_the_criterion_counts_what_it_says_and_is_merged_and_stored_like_ours(own, digits, tmp_path):
    answers, profile = digits.probe.answer(digits.inputs[:200]), digits.profile
    whole = CRITERIA["both_halves"](profile, CoverageOptions())
    gained = whole.observe(answers)
    seen, expected = set(), []
    for row in answers.neurons:
        cells = {(number, value > (low + high) / 2) for number, (value, low, high) in enumerate(zip(row, profile.low, profile.high, strict=True))}
        expected.append(len(cells - seen))
        seen |= cells
    assert gained.tolist() == expected
    assert whole.value() == len(seen) / (2 * len(profile.low)) < 1.0
    halves = [CRITERIA["both_halves"](profile, CoverageOptions()) for _ in range(2)]
    for half, part in zip(halves, (slice(0, None, 2), slice(1, None, 2)), strict=True):
        half.observe(digits.probe.answer(digits.inputs[:200][part]))
    halves[0].merge(halves[1])
    halves[0].save(tmp_path / "coverage.npz")
    halves[1].load(tmp_path / "coverage.npz")
    assert [np.array_equal(half.bitmap, whole.bitmap) for half in halves] == [True, True]


def test_the_schedule_prefers_parents_of_which_the_model_is_least_sure(arm):
    confidence = arm.corpus["outputs"].max(axis=1)
    chosen = propose(arm.schedule, arm.corpus, 80_000, generator(1)).parent
    expected = np.average(confidence, weights=1.001 - confidence)
    assert confidence[chosen].mean() == pytest.approx(expected, abs=0.01)
    assert expected < confidence.mean() - 0.05
    assert (arm.corpus["depth"] > 0).any()


def test_the_oracle_finds_right_answers_given_without_confidence(result):
    unsure = [recipe for recipe in RecipeBook.load(result.recipes).recipes if recipe.oracle == "unsure"]
    assert unsure
    assert all(recipe.prediction == recipe.expected and recipe.confidence < 0.5 for recipe in unsure)


def test_a_campaign_reports_them_by_their_names_and_replays_what_they_found(digits, result):
    assert list(result.defect_rates) == ["noise", "rotation", "shade"]
    assert result.defect_rates["shade"].num_mutants > 100
    assert 0.5 < result.coverage["both_halves"] <= 1.0
    book = RecipeBook.load(result.recipes)
    assert any(step.mutator == "shade" for recipe in book.recipes for step in recipe.chain)
    again = digits.probe.answer(book.replay(digits.inputs, batch_size=9))
    assert again.prediction.tolist() == [recipe.prediction for recipe in book.recipes]
    page = result.report.read_text()
    assert "people see past a shadow" in page
    assert "Both halves of the range" in page


def test_shards_of_it_give_the_same_result(digits, config, result, tmp_path):
    lab = Lab.of(digits.model, digits.inputs, digits.labels, config, digits.profile)
    files = [tmp_path / str(shard) / SHARD_FILE for shard in range(2)]
    for shard, file in enumerate(files):
        run_shard(lab, file, (shard, 2))
    assert finish(lab, files, tmp_path).ledger_hash == result.ledger_hash


@pytest.mark.parametrize("name", ["shades", "both_halfs", "least_shure", "unsur"])
def test_a_misspelt_own_name_is_answered_with_the_nearest(own, name):
    field = {"shades": "mutators", "both_halfs": "criteria", "unsur": "oracles"}.get(name)
    with pytest.raises(SpecError, match=r"Did you mean '(shade|both_halves|least_sure|unsure)'"):
        CampaignConfig(**({field: (name,)} if field else {"schedule": name}))


def test_a_campaign_is_imported_from_the_room_itself():
    from airflow_mlops import robustness
    from airflow_mlops.robustness import CampaignConfig, campaign, run_campaign

    assert (CampaignConfig, run_campaign) == (campaign.CampaignConfig, campaign.run_campaign)
    with pytest.raises(AttributeError, match="no attribute 'run_campain'"):
        robustness.run_campain  # noqa: B018
