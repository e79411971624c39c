"""The report is one file a person can read anywhere, and it is honest about where its figures come from."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import tensorflow as tf

from airflow_mlops.robustness.campaign import CampaignConfig, run_campaign
from airflow_mlops.robustness.recipes import Recipe, Step, replay
from airflow_mlops.robustness.report import pick

CONFIG = CampaignConfig(max_mutants=2_000, sample_mutants=1_500)


@pytest.fixture(scope="module")
def result(digits, tmp_path_factory):
    return run_campaign(digits.model, digits.inputs, digits.labels, config=CONFIG, out_dir=tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(result):
    return result.report.read_text()


class Tags(HTMLParser):
    """Checks that every tag is closed, and collects what the page would load."""

    def __init__(self):
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing_from_outside(page):
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(tags.loads) > 10
    assert all(load.startswith("data:image/png;base64,") for load in tags.loads)
    assert "url(" not in page


def test_the_page_says_that_rates_come_from_the_random_sample_and_its_size(page):
    text = re.sub(r"\s+", " ", page)
    assert "These rates come from a random sample of 1,500 single-step mutants, drawn without guidance" in text


def test_the_page_compares_guided_with_unguided_at_equal_budget(page, result):
    assert "Distinct defects in the first 1,500 mutants of each" in page
    assert f"<b>{result.control.guided}</b>" in page
    assert f"<b>{result.control.unguided}</b>" in page


def test_every_operator_has_its_row(page, result):
    assert page.count('class="track"') == len(result.defect_rates) == 9


def test_the_pictures_are_the_seed_and_the_replayed_mutant(page, result, digits):
    pictures = [tf.io.decode_png(base64.b64decode(text)).numpy() for text in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    recipes = pick(result.defects, 24)
    expected = np.stack([digits.inputs[[recipe.seed for recipe in recipes]], replay(recipes, digits.inputs)], axis=1).reshape(-1, 8, 8, 1)
    assert np.array_equal(np.stack(pictures), np.rint(expected * 255).astype(np.uint8))


def test_the_gallery_shows_each_pair_once_and_every_operator_in_turn():
    def defect(seed, mutator, confidence):
        return Recipe(seed, (Step(mutator, 0.1, 1),), 1, 2, confidence)

    blurs = [defect(seed, "blur", 0.9) for seed in range(5)]
    defects = (*blurs, blurs[0], defect(9, "shear", 0.4), defect(9, "shear", 0.6))
    chosen = pick(defects, 3)
    assert [(recipe.seed, recipe.chain[0].mutator) for recipe in chosen] == [(0, "blur"), (9, "shear"), (1, "blur")]
    assert chosen[1].confidence == 0.6
    assert pick((), 3) == []


def test_a_campaign_without_defects_still_has_a_page(digits, tmp_path):
    config = CampaignConfig(max_mutants=30, sample_mutants=30, mutators=("contrast",))
    confident = digits.probe.answer(digits.inputs).confidence.argsort()[-20:]
    result = run_campaign(digits.model, digits.inputs[confident], digits.labels[confident], config=config, out_dir=tmp_path)
    assert result.num_defects == 0
    assert "None was found in 30 guided mutants" in result.report.read_text()
