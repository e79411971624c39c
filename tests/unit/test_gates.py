"""The gate: a table of cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.exceptions import SpecError
from airflow_mlops.gates import GateDecision, ReleasePolicy, decide
from airflow_mlops.results import from_data, to_data
from airflow_mlops.splits import JudgedRows
from tests import fakes

NAN = float("nan")


@pytest.mark.parametrize(
    ("policy", "evaluation", "sample_rate", "refused_because"),
    [
        ({}, {}, 0.3, []),
        ({"min_metrics": {"accuracy": 0.95}}, {}, 0.3, []),
        ({"min_metrics": {"accuracy": 0.96}}, {}, 0.3, ["accuracy is 0.9500 on 200 held-out rows, below the required 0.96."]),
        ({"min_metrics": {"auc": 0.5}}, {}, 0.3, ["auc was not measured (measured: accuracy, macro_f1), but the policy asks for at least 0.5."]),
        ({"min_metrics": {"accuracy": 0.5}}, {"metrics": {"accuracy": NAN}}, 0.3, ["accuracy is nan", "accuracy is nan"]),
        ({}, {"metrics": {"accuracy": 0.945}}, 0.3, []),
        ({}, {"metrics": {"accuracy": 0.935}}, 0.3, ["accuracy is 0.9350, more than 0.01 below champion v3's 0.9500 on the same 200 rows."]),
        ({"max_regression": 0.0}, {}, 0.3, []),
        ({"max_regression": 0.1}, {"metrics": {"accuracy": 0.7}, "champion_metrics": {"accuracy": 0.8}}, 0.3, []),  # 0.8 - 0.1 > 0.7 for floats
        ({"compare_metric": "macro_f1"}, {"metrics": {"accuracy": 0.1, "macro_f1": 0.93}}, 0.3, []),
        ({"compare_metric": "auc"}, {}, 0.3, ["auc was not measured for both models"]),
        ({}, {"champion_metrics": {"macro_f1": 0.9}}, 0.3, ["accuracy was not measured for both models"]),
        ({"compare_metric": "auc"}, {"champion_version": None, "champion_metrics": None}, 0.3, []),
        ({"max_regression": 0.0}, {"champion_metrics": None, "champion_problem": "other input shape."}, 0.3, []),
        ({"max_defect_rate": 0.3}, {}, 0.3, []),
        ({"max_defect_rate": 0.2}, {}, 0.3, ["30.0% of the randomly mutated inputs are misclassified, above the allowed 20.0%. Most"]),
        ({"max_defect_rate": 0.9}, {}, NAN, ["nan% of the randomly"]),
        ({"min_metrics": {"accuracy": 0.99}, "max_defect_rate": 0.0}, {"metrics": {"accuracy": 0.5}}, 0.3, ["accuracy", "accuracy", "30.0%"]),
    ],
    ids=[
        "without demands everything is released",
        "a minimum that is just reached holds",
        "a minimum that is missed is a reason",
        "a metric that was not measured fails",
        "a metric that is no number fails",
        "a little worse than the champion is noise",
        "worse than the tolerance is a reason",
        "as good as the champion is enough",
        "just as much worse as the tolerance allows holds",
        "the metric to compare is the policy's",
        "a metric of neither cannot be compared",
        "a metric the champion lacks cannot be compared",
        "the first model has nobody to beat",
        "a champion that cannot be measured refuses nothing by itself",
        "a defect rate at its limit holds",
        "a defect rate above its limit is a reason",
        "a defect rate that is no number fails",
        "all reasons are given, not the first alone",
    ],
)
def test_decide(policy: dict[str, Any], evaluation: dict[str, Any], sample_rate: float, refused_because: list[str], tmp_path: Path) -> None:
    decision = decide(ReleasePolicy(**policy), fakes.evaluation(**evaluation), fakes.robustness(tmp_path, sample_rate=sample_rate))
    assert decision.released == (not refused_because)
    assert len(decision.reasons) == len(refused_because)
    for reason, expected in zip(decision.reasons, refused_because, strict=True):
        assert reason.startswith(expected)
        assert reason.endswith(".")


LOST = {"champion_metrics": None, "champion_problem": "It takes another input shape."}
NOT_COMPARED = "The model was not compared with champion v3, which it would replace: It takes another input shape."
NOT_STARTED = "The training was asked to start from champion v3, and began from scratch instead: it could not be loaded: a layer is missing."


def test_what_passed_says_why_and_what_only_a_person_can_decide_comes_first(tmp_path: Path) -> None:
    decision = decide(ReleasePolicy({"accuracy": 0.9}), fakes.evaluation(**LOST), fakes.robustness(tmp_path))
    assert decision.passed == ("accuracy 0.9500 >= 0.9", "defect rate 0.300 <= 1")
    assert decision.questions == (NOT_COMPARED,)
    assert decision.headline() == f"released: a person must decide: {NOT_COMPARED}; accuracy 0.9500 >= 0.9; defect rate 0.300 <= 1"


@pytest.mark.parametrize(
    ("answer", "released", "asked", "passed", "refused"),
    [
        ("ask", True, (NOT_COMPARED, NOT_STARTED), 0, ()),
        ("accept", True, (), 2, ()),
        ("refuse", False, (), 0, (NOT_COMPARED, NOT_STARTED)),
    ],
)
def test_what_becomes_of_a_problem_with_the_champion_is_the_policys(
    tmp_path: Path, answer: str, released: bool, asked: tuple[str, ...], passed: int, refused: tuple[str, ...]
) -> None:
    policy = ReleasePolicy(on_champion_problem=answer)
    decision = decide(policy, fakes.evaluation(**LOST, start_problem=NOT_STARTED), fakes.robustness(tmp_path))
    assert (decision.released, decision.questions, decision.reasons) == (released, asked, refused)
    assert sum(text in (NOT_COMPARED, NOT_STARTED) for text in decision.passed) == passed


def test_a_lost_start_is_a_question_although_the_models_were_compared(tmp_path: Path) -> None:
    decision = decide(ReleasePolicy(), fakes.evaluation(start_problem=NOT_STARTED), fakes.robustness(tmp_path))
    assert decision.questions == (NOT_STARTED,)
    assert "accuracy 0.9500 against champion v3's 0.9500 on the same 200 rows" in decision.passed


def test_a_comparison_by_rows_that_one_may_have_learned_from_says_so(tmp_path: Path) -> None:
    judged = JudgedRows(200, None, ("of champion v3: it has no record of the rows it learned from",))
    decision = decide(ReleasePolicy(), fakes.evaluation(judged=judged), fakes.robustness(tmp_path))
    assert "on the same 200 rows; split: unknown, of champion v3: it has no record of the rows it learned from" in decision.headline()


def test_the_reason_for_defects_names_the_worst_mutation(tmp_path: Path) -> None:
    decision = decide(ReleasePolicy(max_defect_rate=0.1), fakes.evaluation(), fakes.robustness(tmp_path))
    assert "Most defects come from rotate (50.0%)." in decision.headline()


def test_a_decision_survives_json(tmp_path: Path) -> None:
    decision = decide(ReleasePolicy(max_defect_rate=0.1), fakes.evaluation(), fakes.robustness(tmp_path))
    assert from_data(GateDecision, to_data(decision)) == decision


@pytest.mark.parametrize(
    "policy",
    [
        {"max_defect_rate": 1.1},
        {"max_defect_rate": -0.1},
        {"max_defect_rate": NAN},
        {"max_regression": -1},
        {"max_regression": NAN},
        {"min_metrics": {"accuracy": NAN}},
    ],
    ids=str,
)
def test_a_policy_that_could_never_refuse_or_never_release_is_impossible(policy: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=next(iter(policy))):
        ReleasePolicy(**policy)


def test_an_unknown_answer_to_a_problem_with_the_champion_is_refused() -> None:
    with pytest.raises(SpecError, match="Did you mean 'refuse'"):
        ReleasePolicy(on_champion_problem="refuze")
