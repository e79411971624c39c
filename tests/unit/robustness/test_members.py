"""What a team's own member does wrong is told by its name, and a campaign that was begun with other code is another."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness import CampaignConfig, run_campaign
from airflow_mlops.robustness.coverage import CRITERIA
from airflow_mlops.robustness.kinds import Images
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.robustness.mutators.base import Mutator
from airflow_mlops.robustness.oracles import ORACLES
from airflow_mlops.robustness.schedules import SCHEDULES, Schedule


def campaign(digits, out_dir, **options):
    config = CampaignConfig(**{"max_mutants": 200, "sample_mutants": 100, **options})
    return run_campaign(digits.model, digits.inputs, digits.labels, config=config, out_dir=out_dir, profile=digits.profile)


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (lambda images, severity, key, kind: images[:, :4], "Mutator 'own' cannot be applied: .*the inputs' shape"),
        (lambda images, severity, key, kind: None, "Mutator 'own' cannot be applied"),
        (lambda images, severity, key, kind: images.mean(), "Mutator 'own' cannot be applied"),
        (lambda images, severity, key, kind: images[:1], "made .* mutants of .* inputs; each must return a mutant for every row"),
        (lambda images, severity, key, kind: images * float("nan"), "Mutators own returned NaN"),
    ],
)
def test_a_mutator(digits, tmp_path, monkeypatch, apply, words):
    monkeypatch.setitem(Images.mutators, "own", Mutator(apply, 0.1, "of nothing", "it is wrong"))
    with pytest.raises(RobustnessError, match=words):
        campaign(digits, tmp_path, mutators=("noise", "own"))


def test_a_mutator_that_depends_on_the_row_is_noted(digits, tmp_path, monkeypatch):
    def striped(images, severity, key, kind):
        import tensorflow as tf

        return images * (1.0 - 0.19 * tf.cast(tf.range(tf.shape(images)[0]) % 2, tf.float32))[:, None, None, None]

    monkeypatch.setitem(Images.mutators, "striped", Mutator(striped, 0.1, "of the light", "it is wrong"))
    found = campaign(digits, tmp_path, mutators=("striped", "rotation"), max_mutants=800)
    lost = sum(recipe.minimal is None for recipe in found.defects)
    assert 0 < lost < found.num_distinct_defects
    assert any(note.startswith(f"{lost} distinct defects were none when replayed") and "striped" in note for note in found.notes)


@pytest.mark.parametrize("changes", [{"relation": "mirored"}, {"limit": "big"}, {"limit": 0.0}, {"limit": float("nan")}])
def test_an_impossible_mutator(changes):
    with pytest.raises(SpecError, match=r"Did you mean 'mirrored'|expected a number above 0"):
        Mutator(**{"apply": lambda images, severity, key, kind: images, "limit": 0.1, "unit": "px", "preserves": "all", **changes})


@pytest.mark.parametrize(
    "verdicts", [lambda num: np.full(num, np.nan), lambda num: np.array(["x"] * num), lambda num: np.zeros(3, bool), lambda num: None]
)
def test_an_oracle(digits, tmp_path, monkeypatch, verdicts):
    monkeypatch.setitem(ORACLES, "own", lambda evidence: verdicts(len(evidence.expected)))
    with pytest.raises(RobustnessError, match=r"Oracle 'own' returned verdicts of type .* expected booleans of shape"):
        campaign(digits, tmp_path, oracles=("own", "misclassified"))


@pytest.mark.parametrize("gains", [lambda num: np.zeros(3, int), lambda num: np.zeros(num), lambda num: [[1], [1, 2]]])
def test_a_criterion(digits, tmp_path, monkeypatch, gains):
    own = type("Own", (CRITERIA["nc"],), {"observe": lambda self, answers: gains(len(answers.neurons))})
    monkeypatch.setitem(CRITERIA, "own", own)
    with pytest.raises(RobustnessError, match=r"Criterion 'own' returned gains .*expected whole numbers of shape"):
        campaign(digits, tmp_path, criteria=("own",))


@pytest.mark.parametrize(
    ("method", "value", "words"),
    [
        ("weights", lambda corpus: np.full(len(corpus), np.nan), "weighs entries from nan"),
        ("weights", lambda corpus: np.zeros(len(corpus)), "not all of them 0"),
        ("weights", lambda corpus: np.linspace(-1, 1, len(corpus)), "from -1.0 to 1.0; expected finite weights from 0 on"),
        ("weights", lambda corpus: np.ones(3), "returned weights of type .* shape"),
        ("steps", lambda corpus, parent, random: (np.full(len(parent), 99), random.random(len(parent))), "chose mutators 99 to 99 of 9"),
        ("steps", lambda corpus, parent, random: (np.zeros(len(parent), int), np.full(len(parent), np.nan)), "severities that are NaN"),
        ("keeps", lambda corpus, proposals, outcome: None, "returned what it keeps of type object"),
    ],
)
def test_a_schedule(digits, tmp_path, monkeypatch, method, value, words):
    monkeypatch.setitem(SCHEDULES, "own", type("Own", (Schedule,), {method: lambda self, *arguments: value(*arguments)}))
    with pytest.raises(RobustnessError, match=f"Schedule Own .*{words}"):
        campaign(digits, tmp_path, schedule="own")


def test_a_campaign_of_edited_code_is_another_one(digits, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    text = "def fade(images, severity, key, kind):\n    return images * (1.0 - {} * severity[:, None, None, None])\n"
    fingerprints = []
    for share in (0.05, 0.15, 0.05):
        (tmp_path / "own_fade.py").write_text(text.format(share))
        module = importlib.reload(sys.modules["own_fade"]) if "own_fade" in sys.modules else importlib.import_module("own_fade")
        monkeypatch.setitem(Images.mutators, "fade", Mutator(module.fade, 0.2, "of the light", "people see in the dark"))
        config = CampaignConfig(mutators=("fade", "noise"))
        fingerprints.append(Lab.of(digits.model, digits.inputs, digits.labels, config, digits.profile).fingerprint)
    sys.modules.pop("own_fade")
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]
    monkeypatch.setitem(Images.mutators, "fade", Mutator(module.fade, 0.3, "of the light", "people see in the dark"))
    assert Lab.of(digits.model, digits.inputs, digits.labels, config, digits.profile).fingerprint not in fingerprints
