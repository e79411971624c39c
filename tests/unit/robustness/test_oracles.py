"""What counts as a defect, answer by answer."""

from __future__ import annotations

import numpy as np
import pytest

from airflow_mlops.exceptions import RobustnessError, SpecError
from airflow_mlops.robustness.campaign import CampaignConfig, RecipeBook, run_campaign
from airflow_mlops.robustness.models import Answers
from airflow_mlops.robustness.oracles import ORACLES, Evidence, verdicts

OUTPUTS = np.array([[0.9, 0.1], [0.2, 0.8], [np.nan, np.nan]], np.float32)
ANSWERS = Answers(OUTPUTS, np.array([0, 1, -1]), np.array([0.9, 0.8, 0.0], np.float32), np.zeros((3, 1), np.float32))


def spoken(name, expected, reference=None, tolerance=0.05):
    return ORACLES[name](Evidence(np.array(expected), ANSWERS, reference, tolerance)).tolist()


def test_a_wrong_answer_is_misclassified_and_none_at_all_is_not():
    assert spoken("misclassified", [0, 0, 0]) == [False, True, False]


def test_any_other_answer_is_right_where_the_expected_one_is_negated():
    assert spoken("misclassified", [~0, ~0, ~0]) == [True, False, False]


def test_an_answer_that_is_not_finite_is_a_defect_of_its_own():
    assert spoken("not_finite", [0, 1, 0]) == [False, False, True]


def test_models_disagree_beyond_the_tolerance_only():
    other = np.array([[0.86, 0.14], [0.26, 0.74], [0.5, 0.5]], np.float32)
    assert spoken("disagrees", [0, 1, 0], other) == [False, True, False]
    assert spoken("disagrees", [0, 1, 0]) == [False, False, False]


def test_the_first_oracle_that_speaks_is_named():
    evidence = Evidence(np.array([1, 1, 1]), ANSWERS, None, 0.05)
    assert verdicts(("not_finite", "misclassified"), evidence).tolist() == [1, -1, 0]


@pytest.fixture(scope="module")
def rounded(digits):
    """The model with weights of 5 bits, as a quantised one has."""
    import keras

    copy = keras.models.clone_model(digits.model)
    steps = [np.abs(weight).max() / 15 for weight in digits.model.get_weights()]
    copy.set_weights([np.round(weight / step) * step for weight, step in zip(digits.model.get_weights(), steps, strict=True)])
    return copy


def test_a_quantised_model_is_compared_on_every_mutant(digits, rounded, tmp_path):
    config = CampaignConfig(max_mutants=600, sample_mutants=300, oracles=("disagrees",), tolerance=0.02)
    found = run_campaign(digits.model, digits.inputs, digits.labels, config=config, out_dir=tmp_path, profile=digits.profile, reference=rounded)
    book = RecipeBook.load(found.recipes)
    assert {recipe.oracle for recipe in book.recipes} == {"disagrees"}
    mutants = book.replay(digits.inputs)
    difference = np.abs(digits.model.predict(mutants, verbose=0) - rounded.predict(mutants, verbose=0)).max(axis=1)
    assert (difference > 0.0199).all()


def test_disagreement_without_another_model_is_refused(digits, tmp_path):
    config = CampaignConfig(oracles=("misclassified", "disagrees"))
    with pytest.raises(SpecError, match="pass it as `reference`"):
        run_campaign(digits.model, digits.inputs, digits.labels, config=config, out_dir=tmp_path)


@pytest.mark.parametrize(
    ("shape", "num_classes", "words"), [((8, 8, 1), 3, "has 3 classes, and the model 10"), ((4, 4, 1), 10, r"takes numbers of shape \(4, 4, 1\)")]
)
def test_another_model_that_answers_another_question_is_refused(digits, tmp_path, shape, num_classes, words):
    import keras

    other = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(num_classes)])
    with pytest.raises(RobustnessError, match=words):
        run_campaign(digits.model, digits.inputs, digits.labels, config=CampaignConfig(oracles=("disagrees",)), out_dir=tmp_path, reference=other)


def test_another_model_that_answers_nan_is_refused(digits, tmp_path):
    import keras

    broken = keras.Model(digits.model.inputs, digits.model.outputs[0] * float("nan"))
    with pytest.raises(RobustnessError, match=r"reference model .* with NaN or infinity, with which nothing disagrees"):
        run_campaign(digits.model, digits.inputs, digits.labels, config=CampaignConfig(oracles=("disagrees",)), out_dir=tmp_path, reference=broken)


def test_an_input_to_which_an_oracle_objects_unchanged_is_no_seed(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(ORACLES, "unsure", lambda evidence: evidence.answers.confidence < 0.9)
    config = CampaignConfig(max_mutants=400, sample_mutants=100, oracles=("unsure",))
    answers = digits.probe.answer(digits.inputs)
    right = answers.prediction == digits.labels
    found = run_campaign(digits.model, digits.inputs, digits.labels, config=config, out_dir=tmp_path)
    assert found.num_seeds == np.count_nonzero(right & (answers.confidence >= 0.9)) < np.count_nonzero(right)
    assert any(note.startswith(f"{np.count_nonzero(right) - found.num_seeds} inputs are answered correctly and are no seeds") for note in found.notes)


def test_inputs_that_an_oracle_objects_to_one_and_all_are_no_campaign(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(ORACLES, "never", lambda evidence: evidence.answers.confidence < 2.0)
    with pytest.raises(RobustnessError, match=r"with no oracle objecting.* are answered correctly, but one of the oracles never objects"):
        run_campaign(digits.model, digits.inputs, digits.labels, config=CampaignConfig(oracles=("never",)), out_dir=tmp_path)


def test_an_own_oracle_is_one_function_and_one_entry(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(ORACLES, "unsure", lambda evidence: evidence.answers.confidence < 0.5)
    config = CampaignConfig(max_mutants=400, sample_mutants=100, oracles=("unsure",))
    found = run_campaign(digits.model, digits.inputs, digits.labels, config=config, out_dir=tmp_path)
    assert 0 < found.num_defects < 400
    assert all(recipe.confidence < 0.5 for recipe in found.defects)
