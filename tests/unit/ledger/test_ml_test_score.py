"""The ML Test Score claims what the evidence shows, and no more."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.exceptions import SpecError
from airflow_mlops.ledger.evidence.facts import collect
from airflow_mlops.ledger.evidence.rubric import RUBRIC, SECTIONS
from airflow_mlops.ledger.evidence.score import Score, Statement, Verdict, read_statements, score
from airflow_mlops.ledger.store import Store
from airflow_mlops.results import Finding
from tests import fakes
from tests.released import Released, tags_of

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "evidence.md"
SHOWN = {"data_schema", "quality_before_serving", "numerically_stable"}
STATED = Statement("We did it.", "https://wiki.example.org/it")


def judged(released: Released, **statements: Statement) -> Score:
    return score(collect(released.release()), statements)


def verdict(found: Score, name: str) -> Verdict:
    return next(verdict for verdict in found.verdicts if verdict.test == name)


@pytest.fixture
def sqlite(database: Path) -> Iterator[Store]:
    """A ledger on SQLite alone: the questions here are about files."""
    with Store(f"sqlite:///{database}") as store:
        yield store


@pytest.fixture
def released(tmp_path: Path, sqlite: Store) -> Released:
    return Released(tmp_path, sqlite).promoted()


def test_the_rubric_has_seven_tests_in_each_of_four_sections() -> None:
    assert Counter(item.section for item in RUBRIC.values()) == dict.fromkeys(SECTIONS, 7)
    assert len({item.title for item in RUBRIC.values()}) == 28


def test_a_whole_release_shows_three_tests_and_nothing_else(released: Released) -> None:
    found = judged(released)
    assert {verdict.test for verdict in found.verdicts if verdict.points} == SHOWN
    assert found.sections == {"data": 1, "model": 0, "infrastructure": 1, "monitoring": 1}
    assert found.total == 0
    assert found.headline() == "ML Test Score 0 (data 1, model 0, infrastructure 1, monitoring 1)"


def test_every_gap_has_a_reason_and_a_remedy_and_what_is_shown_has_none(released: Released) -> None:
    for one in judged(released, privacy_controls=STATED).verdicts:
        assert one.reason.endswith(".")
        assert bool(one.remedy) == (one.points < 1)


def made_up(*points: float) -> Score:
    return Score(tuple(Verdict(f"{section}{i}", section, "", p, "", "") for section, p in zip(SECTIONS, points, strict=True) for i in range(7)))


@pytest.mark.parametrize(
    ("points", "total", "meaning"),
    [
        ((0, 1, 1, 1), 0, "more of a research project"),
        ((1, 0.5, 1, 1), 3.5, "strong"),
        ((1, 1, 1, 0), 0, "more of a research project"),
        ((0.5, 0.5, 1, 0.5), 3.5, "strong"),
        ((1, 1, 1, 1), 7, "exceptional"),
    ],
)
def test_the_score_is_the_smallest_section(points: tuple[float, ...], total: float, meaning: str) -> None:
    found = made_up(*points)
    assert found.total == total
    assert found.meaning.startswith(meaning)


@pytest.mark.parametrize(
    ("half_points", "meaning"),
    [(0, "more of a research"), (1, "not totally"), (2, "not totally"), (3, "a first pass"), (5, "reasonably"), (7, "strong"), (11, "exceptional")],
)
def test_a_score_means_what_the_paper_says(half_points: int, meaning: str) -> None:
    verdicts = [Verdict(f"{s}{i}", s, "", 0.5 * ((i < half_points) + (i + 7 < half_points)), "", "") for s in SECTIONS for i in range(7)]
    assert Score(tuple(verdicts)).meaning.startswith(meaning)


def test_a_statement_brings_half_a_point_with_its_text_and_link_and_never_more(released: Released) -> None:
    found = judged(released, **dict.fromkeys(set(RUBRIC) - {"specs_reviewed"}, STATED))
    assert {one.test: one.points for one in found.verdicts} == {
        name: 1 if name in SHOWN else 0 if name == "specs_reviewed" else 0.5 for name in RUBRIC
    }
    assert found.total == 3.0
    privacy = verdict(found, "privacy_controls")
    assert privacy.reason == "By hand, as stated: We did it. The evidence itself: Nothing about who may read the data is recorded."
    assert privacy.link == STATED.link


def test_a_statement_does_not_outweigh_what_the_evidence_shows_against_it(released: Released) -> None:
    reviewed = verdict(judged(released, specs_reviewed=STATED), "specs_reviewed")
    assert (reviewed.points, reviewed.link) == (0, STATED.link)
    assert reviewed.reason == "The code that trained (abc+dirty) is in no commit. It is stated otherwise: We did it."


def test_an_unknown_test_is_refused_with_the_nearest_one(released: Released) -> None:
    with pytest.raises(SpecError, match=r"Unknown test of the ML Test Score 'hyperparameter_tuned'\. Did you mean 'hyperparameters_tuned'\?"):
        judged(released, hyperparameter_tuned=STATED)


def test_statements_are_the_same_in_json_and_in_toml(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"privacy_controls": asdict(STATED)}))
    (tmp_path / "s.toml").write_text(f'[privacy_controls]\ntext = "{STATED.text}"\nlink = "{STATED.link}"\n')
    assert read_statements(tmp_path / "s.json") == read_statements(tmp_path / "s.toml") == {"privacy_controls": STATED}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            '{"privacy_controls": {"text": "Done.", "link": "javascript:alert(1)"}}',
            r"privacy_controls\.link: .*Expected for each test a text",
        ),
        ('{"privacy_controls": {"text": "  ", "link": "https://x"}}', r"privacy_controls\.text"),
        ('{"privacy_controls": {"text": "Done."}}', r"privacy_controls\.link: Field required"),
        ('{"privacy_controls": {"text": "Done.", "link": "https://x", "points": 1}}', r"privacy_controls\.points"),
        ("[]", "holds no statements"),
        ("{", "cannot be read"),
        (None, "cannot be read: .*No such file"),
    ],
)
def test_a_file_that_holds_no_statements_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "s.json").write_text(content)
    with pytest.raises(SpecError, match=words):
        read_statements(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("evaluation", "decision", "points"),
    [
        ({}, "released: accuracy 0.9500 against champion v3's 0.9500", 1),
        ({"champion_version": None, "champion_metrics": None}, "released: accuracy 0.9500 >= 0.9; no champion to compare with", 1),
        ({"champion_version": None, "champion_metrics": None}, "released: no champion to compare with; defect rate 0.300 <= 1", 0),
        ({}, "not released: accuracy is 0.5", 0),
        ({}, "", 0),
    ],
)
def test_a_gate_that_held_the_model_against_nothing_validated_nothing(
    tmp_path: Path, sqlite: Store, evaluation: dict[str, Any], decision: str, points: float
) -> None:
    released = Released(tmp_path, sqlite, evaluation=evaluation)
    released.tags["gate.decision"] = decision
    assert verdict(judged(released.promoted()), "quality_before_serving").points == points


@pytest.mark.parametrize(
    ("changes", "points"),
    [({"num_expectations": 0, "warnings": ()}, 0), ({"critical": (Finding("e", None, "No."),)}, 0), ({"warnings": ()}, 1)],
)
def test_a_schema_counts_when_it_says_something_that_holds(released: Released, changes: dict[str, Any], points: float) -> None:
    released.refs["validate"] = fakes.leave_record(released.home, "validate", fakes.validation(released.home, **changes))
    released.tags = tags_of(released.refs)
    assert verdict(judged(released.promoted()), "data_schema").points == points


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("0123abcd", "The code is checked in (commit 0123abcd), but nothing shows that somebody reviewed it."),
        ("0123abcd+dirty", "The code that trained (0123abcd+dirty) is in no commit."),
        ("sha256:0123", "Where the training ran, Git did not know its code (sha256:0123)."),
    ],
)
def test_code_that_is_checked_in_is_not_yet_reviewed(tmp_path: Path, sqlite: Store, code: str, words: str) -> None:
    released = Released(tmp_path, sqlite, training={"code_version": code}).promoted()
    found = verdict(judged(released), "specs_reviewed")
    assert (found.points, found.reason) == (0, words)


def test_a_rollback_that_was_done_and_recorded_is_half_a_point(released: Released) -> None:
    assert "Version 6 is kept loaded as the way back" in verdict(judged(released), "rollback").reason
    released.happened("rolled back", 5, actor="ann")
    found = verdict(judged(released), "rollback")
    assert found.points == 0.5
    assert found.reason.startswith("The model was rolled back to digits@5 at ")


@pytest.mark.parametrize(("stage", "lost"), [("validate", {"data_schema"}), ("train", {"numerically_stable"}), ("robustness", set())])
def test_a_record_that_is_gone_costs_what_it_showed(released: Released, stage: str, lost: set[str]) -> None:
    Path(released.refs[stage].uri).unlink()
    found = judged(released)
    assert {one.test for one in found.verdicts if one.points} == SHOWN - lost
    for name in lost:
        assert verdict(found, name).reason.startswith("The evidence is missing: ")


def test_without_the_evaluation_two_tests_are_not_shown(released: Released) -> None:
    Path(released.refs["evaluate"].uri).unlink()
    assert {one.test for one in judged(released).verdicts if one.points} == {"data_schema"}


def test_the_documentation_names_every_test_and_its_example_of_a_statement_is_one(tmp_path: Path) -> None:
    text = DOCUMENTATION.read_text()
    assert [name for name in RUBRIC if f"`{name}`" not in text] == []
    (tmp_path / "statements.toml").write_text(text.partition("```toml\n")[2].partition("```")[0])
    assert read_statements(tmp_path / "statements.toml").keys() == {"specs_reviewed"}


def test_the_best_that_statements_can_bring_is_what_the_documentation_says(tmp_path: Path, sqlite: Store) -> None:
    released = Released(tmp_path, sqlite, training={"code_version": "0123abcd"}).promoted()
    best = judged(released, **dict.fromkeys(RUBRIC, STATED))
    assert f"at most {best.total:g} with everything stated" in " ".join(DOCUMENTATION.read_text().split())
