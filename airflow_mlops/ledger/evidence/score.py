"""The ML Test Score of a release (Breck et al., 2017): a verdict on each of the 28 tests, by the evidence or by what a person states."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints, TypeAdapter, ValidationError

from airflow_mlops.exceptions import SpecError, unknown_name
from airflow_mlops.ledger.evidence.facts import Facts
from airflow_mlops.ledger.evidence.rubric import RUBRIC, SECTIONS
from airflow_mlops.results import STRICT, problems

BY_HAND = 0.5
AUTOMATE = "Let it run by itself at every release, with a record."
# What the paper says of a score, by the largest one that it says it of.
MEANINGS = {
    0.0: "more of a research project than a productionized system",
    1.0: "not totally untested, but consider the possibility of serious holes in reliability",
    2.0: "a first pass at basic productionization; more may be needed",
    3.0: "reasonably tested; more of the tests may be automated",
    5.0: "strong automated testing and monitoring, fit for critical systems",
}
BEST = "exceptional automated testing and monitoring"


@STRICT
@dataclass(frozen=True)
class Statement:
    """What a person vouches for: that a test of the rubric is done by hand, and the address of what documents it."""

    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    link: Annotated[str, StringConstraints(pattern=r"^https?://\S+$")]


@dataclass(frozen=True)
class Verdict:
    """Points (0, 0.5 or 1) for one test, why, and while it is not 1, what would bring the rest."""

    test: str
    section: str
    title: str
    points: float
    reason: str
    remedy: str
    link: str = ""


@dataclass(frozen=True)
class Score:
    """The verdicts on all tests, in the rubric's order."""

    verdicts: tuple[Verdict, ...]

    @property
    def sections(self) -> dict[str, float]:
        """The sum of each section's points, 0 to 7."""
        return {section: sum(verdict.points for verdict in self.of(section)) for section in SECTIONS}

    @property
    def total(self) -> float:
        """The smallest sum: what is missing in one section is not made up for by another."""
        return min(self.sections.values())

    @property
    def meaning(self) -> str:
        """What the paper says of such a score."""
        return next((words for largest, words in MEANINGS.items() if self.total <= largest), BEST)

    def of(self, section: str) -> list[Verdict]:
        """Return the verdicts of a section."""
        return [verdict for verdict in self.verdicts if verdict.section == section]

    def headline(self) -> str:
        """Return the score and its sections in one line."""
        return f"ML Test Score {self.total:g} ({', '.join(f'{section} {points:g}' for section, points in self.sections.items())})"


def score(facts: Facts, statements: Mapping[str, Statement]) -> Score:
    """Return the verdicts that `facts` allow; a statement brings half a point where they show nothing, never more, and none against them.

    :raises SpecError: a statement is about no test of the rubric.
    """
    for name in statements:
        if name not in RUBRIC:
            raise unknown_name("test of the ML Test Score", name, RUBRIC)
    return Score(tuple(_verdict(name, facts, statements.get(name)) for name in RUBRIC))


def _verdict(name: str, facts: Facts, statement: Statement | None) -> Verdict:
    test = RUBRIC[name]
    points, reason = test.judge(facts)
    if statement is None or (points is not None and points >= BY_HAND):
        return Verdict(name, test.section, test.title, points or 0.0, reason, "" if points == 1.0 else test.remedy)
    if points is None:
        return Verdict(name, test.section, test.title, 0.0, f"{reason} It is stated otherwise: {statement.text}", test.remedy, statement.link)
    stated = f"By hand, as stated: {statement.text} The evidence itself: {reason}"
    return Verdict(name, test.section, test.title, BY_HAND, stated, AUTOMATE, statement.link)


def read_statements(path: Path) -> dict[str, Statement]:
    """Return the statements in a JSON or TOML file: a table with ``text`` and ``link`` for each test of the rubric that is done by hand.

    :raises SpecError: the file cannot be read, or holds something else.
    """
    try:
        data: Any = tomllib.loads(path.read_text()) if path.suffix == ".toml" else json.loads(path.read_text())
        return TypeAdapter(dict[str, Statement]).validate_python(data)
    except ValidationError as error:  # before ValueError, which it is too
        raise SpecError(f"{path} holds no statements: {problems(error)}. Expected for each test a text and a link (https://...).") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} cannot be read: {error}. Expected a JSON or TOML file with a text and a link for each test.") from error
