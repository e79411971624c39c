"""How the evidence of a release is judged for the tests of the ML Test Score that it can say something about: points, and the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from airflow_mlops.ledger.evidence.facts import ROLLED_BACK, Facts
from airflow_mlops.results import EvaluationResult, StageResult, TrainingResult, ValidationResult

Judged = tuple[float | None, str]  # points and the reason; None where the evidence shows the contrary, which no statement outweighs
Judge = Callable[[Facts], Judged]
R = TypeVar("R", bound=StageResult)


def nothing(reason: str) -> Judge:
    """Return the judge of a test that no evidence is about."""
    return lambda _facts: (0.0, reason)


def by(stage: str, result_type: type[R], judge: Callable[[Facts, R], Judged]) -> Judge:
    """Return a judge that needs the stage's result, and without it gives nothing."""

    def judged(facts: Facts) -> Judged:
        result = facts.result(stage, result_type)
        return (0.0, f"The evidence is missing: {facts.problems[stage]}") if result is None else judge(facts, result)

    return judged


def schema(_facts: Facts, validation: ValidationResult) -> Judged:
    """Judge whether expectations were checked, and held."""
    if validation.num_expectations == 0:
        return 0.0, "The suite holds no expectation."
    if validation.critical:
        return None, f"{len(validation.critical)} critical expectations do not hold."
    return 1.0, f"A suite was checked before the training: {validation.headline()}. Which columns it covers stands in the data docs."


def reviewed(_facts: Facts, training: TrainingResult) -> Judged:
    """Judge whether the code was reviewed and checked in."""
    code = training.code_version
    if code.endswith("+dirty"):
        return None, f"The code that trained ({code}) is in no commit."
    if code.startswith("sha256:"):
        return 0.0, f"Where the training ran, Git did not know its code ({code})."
    return 0.0, f"The code is checked in (commit {code}), but nothing shows that somebody reviewed it."


def slices(_facts: Facts, evaluation: EvaluationResult) -> Judged:
    """Judge the quality on slices."""
    worst = evaluation.metrics.get("min_recall")
    return 0.0, "No slice is measured." + (f" Only the recall of the worst class is known: {worst:.4f}." if worst is not None else "")


def reproducible(_facts: Facts, training: TrainingResult) -> Judged:
    """Judge whether a training was repeated."""
    what = f"Seed {training.seed}, data, code, parameters and {len(training.packages)} package versions are recorded"
    return 0.0, f"{what}, but no second training was compared with the first."


def quality(facts: Facts, evaluation: EvaluationResult) -> Judged:
    """Judge whether a gate held the quality against something."""
    decision = facts.release.tags.get("gate.decision", "")
    if not decision.startswith("released: "):
        return 0.0, "The version's tags hold no decision of the gate that let it pass."
    if evaluation.champion_metrics is None and " >= " not in decision:
        return 0.0, f"Quality was measured ({evaluation.headline()}), but held against nothing: there was no champion, and the policy has no minimum."
    return 1.0, f"A gate decided before serving: {evaluation.headline()}; {decision}."


def canary(facts: Facts) -> Judged:
    """Judge whether traffic tried the version first."""
    served = facts.last("served")
    proven = f" Served and offline answers to the golden rows were compared before (event {served.number}), which is no traffic." if served else ""
    return 0.0, f"No share of live traffic goes to a new version before all of it does: there is no canary yet.{proven}"


def rollback(facts: Facts) -> Judged:
    """Judge whether the model was ever rolled back."""
    if done := facts.last(ROLLED_BACK):
        return 0.5, f"The model was rolled back to {done.subject} at {done.at} by {done.actor} (event {done.number})."
    served = facts.last("served")
    kept = f" Version {served.details['previous']} is kept loaded as the way back." if served and served.details.get("previous") else ""
    return 0.0, f"The trail knows of no time that this model was rolled back.{kept}"


def skew(facts: Facts) -> Judged:
    """Judge whether served inputs are like those of the training."""
    served = facts.last("served")
    proven = f" Served and offline answers to the golden rows agreed (event {served.number}): the same inputs give the same." if served else ""
    return 0.0, f"What clients send is not compared with what the model was trained on.{proven}"


def stable(facts: Facts, training: TrainingResult) -> Judged:
    """Judge whether NaN and infinity were looked for."""
    evaluation = facts.result("evaluate", EvaluationResult)
    if evaluation is None:
        return 0.0, f"The evidence is missing: {facts.problems['evaluate']}"
    looked = f"the metrics, weights and golden answers of the training on {training.num_train_rows} rows"
    return 1.0, f"NaN and infinity stop a run; there were none in {looked}, and none in the answers on {evaluation.num_rows} held-out rows."


def dependencies(_facts: Facts, training: TrainingResult) -> Judged:
    """Judge whether changes of packages are told to somebody."""
    return 0.0, f"The {len(training.packages)} package versions are written down (environment.cdx.json), but nobody is told when one of them changes."
