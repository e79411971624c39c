"""The report is one file a person can read anywhere, and it is honest about where its figures come from."""

from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import tensorflow as tf

from airflow_mlops.robustness import report
from airflow_mlops.robustness.campaign import CampaignConfig, Control, run_campaign
from airflow_mlops.robustness.chart import chart
from airflow_mlops.robustness.clusters import Cluster
from airflow_mlops.robustness.coverage import CoverageOptions
from airflow_mlops.robustness.kinds import Images
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.recipes import Step, replay
from airflow_mlops.robustness.report import describe, pick

CONFIG = CampaignConfig(max_mutants=2_000, sample_mutants=1_500, criteria=("nc", "kmnc", "tknp"), coverage=CoverageOptions(kmnc_sections=100))


@pytest.fixture(scope="module")
def lab(digits):
    return Lab.of(digits.model, digits.inputs, digits.labels, CONFIG, digits.profile)


@pytest.fixture(scope="module")
def result(digits, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("report")
    return run_campaign(digits.model, digits.inputs, digits.labels, config=CONFIG, out_dir=out_dir, profile=digits.profile)


class Page(HTMLParser):
    """Checks that every tag is closed; collects what the page would load, its text with the element around it, and the cells of tables."""

    def __init__(self, html):
        super().__init__()
        self.open, self.loads, self.rows, self.texts = [], [], [], []
        self.feed(html)
        assert self.open == []
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        self.text = re.sub(r"\s+", " ", " ".join(text for _, text in self.texts))

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append((tag, dict(attrs).get("class")))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        data, tags = data.replace("\xa0", " "), [tag for tag, _ in self.open]
        if "style" not in tags:
            self.texts.append((self.open[-1] if self.open else None, data))
        if "td" in tags or "th" in tags:
            self.rows[-1][-1] += data


def page_of(result, lab, tmp_path, **changes):
    report.write(dataclasses.replace(result, report=tmp_path / "report.html", **changes), lab)
    return Page((tmp_path / "report.html").read_text())


@pytest.fixture(scope="module")
def html(result):
    return result.report.read_text()


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def percent(share):
    return f"{100 * share:.1f} %"


def test_the_page_is_well_formed_and_loads_nothing_from_outside(page, html):
    assert len(page.loads) > 10
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert "url(" not in html
    assert "<script" not in html


def test_the_figures_come_first(page, result):
    places = [page.text.index(text) for text in ("of random mutants are defects", "Defect rate per operator", "Guided against", "Coverage")]
    assert places == sorted(places)
    big = [text for tag, text in page.texts if tag == ("b", None)][:4]
    assert big == [percent(result.sample.rate), *(str(num) for num in (result.num_distinct_defects, result.num_defects, result.num_seeds))]
    assert f"95 % interval {percent(result.sample.low)} to {percent(result.sample.high)}" in page.text
    assert f"failing mutants among 2,000 guided ones {result.num_seeds}" in page.text
    assert f"in {len(result.clusters)} groups" in page.text


def test_the_page_says_that_rates_come_from_the_random_sample_and_its_size(page):
    assert "These rates come from a random sample of 1,500 single-step mutants, drawn without guidance" in page.text


def test_every_operator_has_its_rate_and_interval_highest_first(page, result):
    rows = {row[0].replace(" ", "_"): row for row in page.rows[1:]}
    assert set(rows) == set(result.defect_rates) == set(Images.default)
    for name, rate in result.defect_rates.items():
        shown = [f"{rate.num_defects} of {rate.num_mutants}", percent(rate.rate), f"{100 * rate.low:.1f} to {percent(rate.high)}"]
        assert rows[name][3:6] == shown
        assert rows[name][1] == f"up to {Images.mutators[name].limit:g} {Images.mutators[name].unit}"
    rates = [result.defect_rates[name].rate for name in rows]
    assert rates == sorted(rates, reverse=True)


def test_bars_are_the_intervals_on_the_scale_that_is_stated(page, html, result):
    scale = float(re.search(r"Rate, from 0 to ([\d.]+)&nbsp;%", html)[1])
    assert scale >= 100 * max(rate.high for rate in result.defect_rates.values())
    bars = re.findall(r'<i style="left:([\d.]+)%;width:([\d.]+)%"></i>\s*<u style="left:([\d.]+)%"></u>', html)
    names = [row[0].replace(" ", "_") for row in page.rows[1:]]
    for name, bar in zip(names, bars, strict=True):
        rate, (left, width, mark) = result.defect_rates[name], map(float, bar)
        shown = np.array([left, left + width, mark]) / 100 * scale
        assert shown == pytest.approx(100 * np.array([rate.low, rate.high, rate.rate]), abs=0.1)


def test_an_operator_breaks_at_the_median_of_what_it_needs_alone(page, result):
    alone = {}
    for recipe in result.defects:
        if len(recipe.minimal) == 1:
            alone.setdefault(recipe.minimal[0].mutator, []).append(recipe.minimal[0].severity)
    assert len(alone) > 4
    for operator, _, breaks, *_ in page.rows[1:]:
        name = operator.replace(" ", "_")
        mutator = Images.mutators[name]
        middle = np.median(alone.get(name, [0])) * mutator.limit
        expected = (
            "-" if name not in alone or mutator.counted else f"{middle:.2g}" if middle >= mutator.limit / 100 else f"under {mutator.limit / 100}"
        )
        assert breaks == expected


def test_the_control_is_stated_with_its_size_and_compared_at_equal_budget(page, result):
    control = result.control
    assert "Of both arms the first 1,500 are compared" in page.text
    assert f"bandit schedule {control.guided} unguided control {control.unguided}" in page.text
    assert f"Guidance found {control.guided / control.unguided:.2f} times what chance found at the same budget" in page.text


def curves(guided, unguided, late=0):
    """Return curves of 100 mutants that find all at once, or the control `late` of it in the last quarter."""
    return (((0, 0), *((at, guided) for at in (25, 50, 75, 100))), ((0, 0), *((at, unguided - late) for at in (25, 50, 75)), (100, unguided)))


@pytest.mark.parametrize(
    ("guided", "unguided", "text"),
    [(3, 3, "found equally many"), (4, 0, "what chance did not find"), (1, 4, "found 0.25 times"), (0, 0, "found equally many")],
)
def test_the_comparison_is_said_as_it_is(result, lab, tmp_path, guided, unguided, text):
    control = Control(100, guided, unguided, *curves(guided, unguided))
    text_of = page_of(result, lab, tmp_path, control=control).text
    assert text in text_of
    assert ("That is fewer." in text_of) == (guided < unguided)
    assert 'The schedule "bandit" usually' not in text_of  # it is this one


@pytest.mark.parametrize(("late", "text"), [(0, "Chance had found nearly all that it can"), (4, "Chance was still finding new ones")])
def test_the_page_says_whether_chance_still_finds_something(result, lab, tmp_path, late, text):
    control = Control(100, 60, 44, *curves(60, 44, late))
    assert f"{text}: the last quarter of its mutants brought {late} of its 44." in page_of(result, lab, tmp_path, control=control).text


def test_both_arms_are_curves_that_end_at_what_they_found(html, result):
    places = [
        [tuple(map(float, point.split(","))) for point in points.split()] for points in re.findall(r'<polyline class="\w*" points="([^"]+)"', html)
    ]
    unguided, guided = places
    origin = guided[0]
    assert unguided[0] == origin
    assert len(guided) == len(unguided) == 41
    control = result.control
    assert control.guided_curve[-1] == (2_000, result.num_distinct_defects)
    assert control.unguided_curve[-1] == (1_500, control.unguided)
    ends = [(line[-1][0] - origin[0], origin[1] - line[-1][1]) for line in (guided, unguided)]
    assert ends[1][0] / ends[0][0] == pytest.approx(1_500 / 2_000, rel=0.01)
    assert ends[1][1] / ends[0][1] == pytest.approx(control.unguided / result.num_distinct_defects, abs=0.01)
    for curve in (control.guided_curve, control.unguided_curve):
        assert curve == tuple(sorted(curve))
        assert curve[0] == (0, 0)


def test_an_axis_has_round_ticks_from_zero_to_the_next_above():
    made = chart({"one": ((0, 0), (5_000, 106)), "other": ((0, 0), (4_500, 52))})
    assert [tick.label for tick in made.across] == ["0", "1,000", "2,000", "3,000", "4,000", "5,000"]
    assert [tick.label for tick in made.up] == ["0", "50", "100", "150"]
    assert [tick.label for tick in chart({"one": ((0, 0), (7, 0))}).up] == ["0", "1"]
    assert made.lines[0].x == made.right
    assert all(0 < line.y < made.bottom for line in made.lines)


def test_coverage_is_a_percentage_or_a_count_and_said_to_prove_nothing(page, result, lab, tmp_path):
    assert f"Neuron coverage (NC) {percent(result.coverage['nc'])}" in page.text
    assert f"k-multisection neuron coverage (KMNC) {percent(result.coverage['kmnc'])}" in page.text
    assert f"Top-k neuron patterns seen (TKNP) {result.coverage['tknp']:,.0f}" in page.text
    assert "It does not guide this schedule and proves nothing by itself." in page.text
    guided = dataclasses.replace(lab, config=dataclasses.replace(lab.config, schedule="deephunter"))
    assert "It guides the search and proves nothing by itself." in page_of(result, guided, tmp_path).text


def test_the_pictures_are_seed_and_smallest_mutant_of_each_representative(html, result, digits):
    pictures = [tf.io.decode_png(base64.b64decode(text)).numpy() for text in re.findall(r'src="data:image/png;base64,([^"]+)"', html)]
    recipes = [result.defects[cluster.representative] for cluster in pick(result.clusters, 24)]
    seeds = digits.inputs[[recipe.seed for recipe in recipes]]
    mutants = replay([recipe.minimal for recipe in recipes], seeds, kind=CONFIG.kind, mutators=CONFIG.mutator_names)
    expected = np.stack([seeds, mutants], axis=1).reshape(-1, 8, 8, 1)
    assert np.array_equal(np.stack(pictures), np.rint(expected * 255).astype(np.uint8))


def test_a_picture_is_captioned_with_answers_group_and_what_it_took(page, result):
    for cluster in pick(result.clusters, 24):
        recipe = result.defects[cluster.representative]
        group = f"one of {len(cluster.members)} alike" if len(cluster.members) > 1 else "alone of its kind"
        steps = ", then ".join(describe(CONFIG.kind, step) for step in recipe.minimal)
        answers = f"expected {recipe.label} answer {recipe.prediction}, {100 * recipe.confidence:.0f} %"
        assert f"{answers} input {recipe.seed}, {group} breaks at {steps}" in page.text


def test_a_severity_is_said_in_its_mutators_unit():
    kind = Images()
    assert describe(kind, Step("rotation", 0.45, 1)) == "rotation 4.5 degrees"
    assert describe(kind, Step("rotation", 0.001, 1)) == "rotation under 0.1 degrees"
    assert describe(kind, Step("pixel_change", 0.004, 1)) == "pixel change"
    assert describe(kind, Step("horizontal_flip", 0.004, 1)) == "horizontal flip"


def test_nan_and_an_expected_change_are_said_in_words(result, lab, tmp_path):
    strange = dataclasses.replace(result.defects[0], prediction=-1, expected=~3)
    only = (Cluster(0, "blur", 3, -1, (0,), 0),)
    assert "expected not 3 answer NaN," in page_of(result, lab, tmp_path, defects=(strange,), clusters=only).text


def test_the_groups_shown_are_of_every_operator_in_turn_and_the_largest_first():
    def cluster(number, mutator):
        return Cluster(number, mutator, 1, 2, (number,), number)

    clusters = tuple(cluster(number, mutator) for number, mutator in enumerate(["blur"] * 5 + ["shear"] * 2 + ["noise"]))
    assert [(chosen.number, chosen.mutator) for chosen in pick(clusters, 4)] == [(0, "blur"), (1, "blur"), (5, "shear"), (7, "noise")]
    assert pick(clusters, 99) == list(clusters)
    assert pick((), 3) == []


def test_data_cannot_become_html(result, lab, tmp_path):
    text = "<script>alert('1')</script> & so on"
    page = page_of(result, lab, tmp_path, notes=(text,))
    assert text in page.text
    assert not [tag for tag, _ in page.texts if tag and tag[0] == "script"]


def test_the_notes_name_the_file_of_recipes_and_what_the_campaign_was(page, result):
    assert "one line of recipes.jsonl beside this file" in page.text
    for text in (
        "Campaign seed 0, 4 islands",
        "criteria nc, kmnc, tknp",
        "oracles misclassified",
        result.model_digest,
        result.ledger_hash,
        *result.notes,
    ):
        assert text in page.text


def test_a_campaign_without_defects_has_a_page_too(digits, tmp_path):
    config = CampaignConfig(max_mutants=30, sample_mutants=30, mutators=("contrast",))
    confident = digits.probe.answer(digits.inputs).confidence.argsort()[-20:]
    result = run_campaign(digits.model, digits.inputs[confident], digits.labels[confident], config=config, out_dir=tmp_path)
    assert result.num_defects == 0
    page = Page(result.report.read_text())
    assert "None was found in 30 guided mutants" in page.text
    assert "Guidance and chance found equally many" in page.text
    assert page.rows[1][:4] == ["contrast", "up to 0.3 of the distance from grey", "-", "0 of 30"]
    assert page.loads == []


def test_an_operator_that_was_never_drawn_has_a_row_without_a_bar(result, lab, tmp_path):
    rates = {
        **result.defect_rates,
        "blur": dataclasses.replace(result.defect_rates["blur"], num_mutants=0, num_defects=0, rate=0.0, low=0.0, high=1.0),
    }
    page = page_of(result, lab, tmp_path, defect_rates=rates)
    assert next(row for row in page.rows if row[0] == "blur")[3:6] == ["0 of 0", "none drawn", "0.0 to 100.0 %"]
