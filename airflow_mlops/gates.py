"""Pure policy: given what was measured, release or not, and the reasons in sentences; and who must agree.

A model that is not good enough is a result, not an error. Later rooms add their measures as further arguments of `decide`; nothing here
reads a file or a clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from airflow_mlops.exceptions import SpecError, unknown_name
from airflow_mlops.results import STRICT, EvaluationResult, RobustnessResult

ASK, REFUSE, ACCEPT = "ask", "refuse", "accept"
ROUNDING = 1e-9  # 0.8 - 0.7 is a little more than 0.1 in binary; a difference of just the tolerance must not be refused as more


@STRICT
@dataclass(frozen=True)
class ReleasePolicy:
    """What a challenger must show before a person is asked.

    * `min_metrics`: smallest acceptable value of each metric on the held-out rows; name metrics of which more is better. One that was
      not measured fails.
    * `max_regression`: how much worse than the champion, in the metric's own unit, the challenger may be on `compare_metric`. The default
      0.01 tolerates one row in a hundred: on some hundred held-out rows a smaller difference is noise.
    * `max_defect_rate`: largest share (0..1) of mutants of the random sample that may be misclassified. 1.0 turns the gate off.
    * `on_champion_problem`: what becomes of a challenger that cannot be compared with the champion, or that was to start from it and could not:
      ``ask`` a person, who is asked even where no approval is needed otherwise, ``refuse`` it, or ``accept`` it. The default asks: without
      the comparison nothing says that the new model is no worse than the one that serves.
    """

    min_metrics: Mapping[str, float] = field(default_factory=dict)
    compare_metric: str = "accuracy"
    max_regression: float = 0.01
    max_defect_rate: float = 1.0
    on_champion_problem: str = ASK

    def __post_init__(self) -> None:
        if self.on_champion_problem not in (ASK, REFUSE, ACCEPT):
            raise unknown_name("answer to a problem with the champion", self.on_champion_problem, (ASK, REFUSE, ACCEPT))
        if not 0.0 <= self.max_defect_rate <= 1.0:
            raise SpecError(f"max_defect_rate is {self.max_defect_rate}; it is a share and must lie between 0 and 1.")
        if not self.max_regression >= 0.0:  # NaN too, which would let every model pass
            raise SpecError(f"max_regression is {self.max_regression}; give how much worse the challenger may be, 0 or more.")
        for name, minimum in self.min_metrics.items():
            if math.isnan(minimum):
                raise SpecError(f"min_metrics asks for {name} of at least {minimum}; give a number.")


@STRICT
@dataclass(frozen=True)
class ApprovalPolicy:
    """Who must agree before a model goes live.

    * `num_approvals`: how many different people; 0 lets the policy itself approve, which the audit trail says.
    * `approvers`: the names with which approvers log in to Airflow; empty for everyone who may answer in Airflow.
    * `author_may_approve`: whether who triggered the runs or wrote the code may approve it. On a team of one there is nobody else.
    * `identities`: name or e-mail address in Git by the name in Airflow, where Airflow knows neither of them.
    * `valid_days`: how long a request may be answered; after a week the evidence is old.
    * `comment_required`: whether an answer without a comment is refused.
    """

    num_approvals: int = 1
    approvers: Sequence[str] = ()
    author_may_approve: bool = False
    identities: Mapping[str, str] = field(default_factory=dict)
    valid_days: float = 7.0
    comment_required: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.approvers, str):
            raise SpecError(f"approvers is the text {self.approvers!r}; give a list of names of Airflow users: ['{self.approvers}'].")
        if self.num_approvals < 0:
            raise SpecError(f"num_approvals is {self.num_approvals}; give how many people must agree, or 0 for nobody.")
        if self.approvers and len(set(self.approvers)) < self.num_approvals:
            raise SpecError(f"num_approvals is {self.num_approvals}, and there are only {len(set(self.approvers))} approvers: name more of them.")
        if not 0.0 < self.valid_days <= 3650.0:
            raise SpecError(f"valid_days is {self.valid_days}; give for how many days people may answer, more than 0 and at most 3650.")

    def author(self, name: str, known_as: Sequence[str], authors: Sequence[str]) -> str | None:
        """Return which of `authors` the Airflow user of this name, also known as `known_as`, is, or None.

        An author is the name of an Airflow user, or a name and address from Git (``Ann Lee <ann@example.org>``), of which each part counts.
        """
        known = {text.casefold() for text in (name, *known_as, self.identities.get(name, "")) if text}
        return next((author for author in authors if known & _parts(author)), None)

    def shortage(self, people: Mapping[str, Sequence[str]], authors: Sequence[str]) -> str:
        """Return why these approvers can never be enough, empty if they can.

        :param people: those of `approvers` who may answer in Airflow, each with what else they are known as.
        """
        kept_out = (
            {} if self.author_may_approve else {name: author for name, known in people.items() if (author := self.author(name, known, authors))}
        )
        able = [name for name in self.approvers if name in people and name not in kept_out]
        if len(able) >= self.num_approvals:
            return ""
        mute = [f"{name} may not answer the questions of this DAG" for name in self.approvers if name not in people]
        reasons = [*mute, *(f"{name} is an author of what is released ({author})" for name, author in kept_out.items())]
        return f"{self.num_approvals} approvals are needed, and {len(able)} of the approvers can give one: {'; '.join(reasons)}."


def _parts(author: str) -> set[str]:
    name, _, address = author.casefold().partition("<")
    address = address.rstrip("> ")
    return {part for part in (author.casefold(), name.strip(), address, (address or name).partition("@")[0].strip()) if part}


@STRICT
@dataclass(frozen=True)
class GateDecision:
    """Release or not: `passed` holds the gates that opened, `reasons` a sentence for each that did not.

    `questions` are what only a person can decide: a model with any goes live only when a person agrees, never by a policy alone.
    """

    released: bool
    passed: tuple[str, ...]
    reasons: tuple[str, ...]
    questions: tuple[str, ...] = ()

    def headline(self) -> str:
        if not self.released:
            return f"not released: {' '.join(self.reasons)}"
        asked = [f"a person must decide: {' '.join(self.questions)}"] if self.questions else []
        return f"released: {'; '.join([*asked, *self.passed])}"


def decide(policy: ReleasePolicy, evaluation: EvaluationResult, robustness: RobustnessResult) -> GateDecision:
    """Return whether the challenger may be offered for release."""
    problems = _champion_problems(evaluation)
    checks = [*_absolute(policy, evaluation), *_against_champion(policy, evaluation), _robust(policy, robustness)]
    if policy.on_champion_problem != ASK:
        checks += [(policy.on_champion_problem == ACCEPT, problem) for problem in problems]
    reasons = tuple(text for holds, text in checks if not holds)
    asked = tuple(problems) if policy.on_champion_problem == ASK else ()
    return GateDecision(not reasons, tuple(text for holds, text in checks if holds), reasons, asked)


def _champion_problems(evaluation: EvaluationResult) -> list[str]:
    """Return what could not be done with the champion, as sentences."""
    champion = f"champion v{evaluation.champion_version}"
    lost = evaluation.champion_version is not None and evaluation.champion_metrics is None
    compared = [f"The model was not compared with {champion}, which it would replace: {evaluation.champion_problem}"] if lost else []
    return compared + ([evaluation.start_problem] if evaluation.start_problem else [])


def _absolute(policy: ReleasePolicy, evaluation: EvaluationResult) -> list[tuple[bool, str]]:
    checks = []
    for name, minimum in sorted(policy.min_metrics.items()):
        value = evaluation.metrics.get(name)
        if value is None:
            measured = ", ".join(sorted(evaluation.metrics)) or "none"
            checks.append((False, f"{name} was not measured (measured: {measured}), but the policy asks for at least {minimum:g}."))
        elif not value >= minimum:
            checks.append((False, f"{name} is {value:.4f} on {evaluation.num_rows} held-out rows, below the required {minimum:g}."))
        else:
            checks.append((True, f"{name} {value:.4f} >= {minimum:g}"))
    return checks


def _against_champion(policy: ReleasePolicy, evaluation: EvaluationResult) -> list[tuple[bool, str]]:
    """Return the comparison, and none where there is a champion that could not be compared: that is a problem and no check."""
    if evaluation.champion_version is None:
        return [(True, "no champion to compare with")]
    if evaluation.champion_metrics is None:
        return []
    name = policy.compare_metric
    challenger, champion = evaluation.metrics.get(name), evaluation.champion_metrics.get(name)
    if challenger is None or champion is None:
        return [(False, f"{name} was not measured for both models, so challenger and champion cannot be compared. Add it to the metrics.")]
    against, rows = f"champion v{evaluation.champion_version}'s {champion:.4f}", _rows(evaluation)
    if not challenger >= champion - policy.max_regression - ROUNDING:
        return [(False, f"{name} is {challenger:.4f}, more than {policy.max_regression:g} below {against} on the same {rows}.")]
    return [(True, f"{name} {challenger:.4f} against {against} on the same {rows}")]


def _rows(evaluation: EvaluationResult) -> str:
    return "; ".join(filter(None, [f"{evaluation.num_rows} rows", evaluation.judged.sentence()]))


def _robust(policy: ReleasePolicy, robustness: RobustnessResult) -> tuple[bool, str]:
    rate, limit = robustness.sample_rate, policy.max_defect_rate
    if rate <= limit:
        return True, f"defect rate {rate:.3f} <= {limit:g}"
    worst = max(robustness.defect_rates.items(), key=lambda item: item[1].rate, default=None)
    detail = f" Most defects come from {worst[0]} ({worst[1].rate:.1%})." if worst else ""
    return False, f"{rate:.1%} of the randomly mutated inputs are misclassified, above the allowed {limit:.1%}.{detail}"
