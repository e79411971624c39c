"""What a pack holds besides its copies: cards for people, lineage and approvals for machines; only what the records say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from airflow_mlops.ledger.chain import Event
from airflow_mlops.ledger.evidence.environment import cyclonedx
from airflow_mlops.ledger.evidence.facts import Facts
from airflow_mlops.ledger.evidence.score import Score, Statement
from airflow_mlops.results import EvaluationResult, RobustnessResult, TrainingResult, ValidationResult, to_data
from airflow_mlops.splits import listed

UNKNOWN_AUTHORS = "whose authors are not known: Git does not know it, so none of them could be kept from approving the release"


def documents(facts: Facts, score: Score, statements: Mapping[str, Statement]) -> dict[str, bytes]:
    """Return the pack's own documents by file name; what needs a record that is missing is left out, or says so."""
    training = facts.result("train", TrainingResult)
    found = {
        "approvals.json": as_json([asdict(event) for event in facts.approvals]),
        "dataset_card.md": _dataset_card(facts).encode(),
        "lineage.json": as_json(_lineage(facts)),
        "model_card.md": _model_card(facts, score).encode(),
        "score.json": as_json(_score(score)),
        "statements.json": as_json({name: to_data(statement) for name, statement in statements.items()}),
        "trail.jsonl": "".join(f"{line}\n" for line in facts.release.trail).encode(),
    }
    if training is not None:
        at = datetime.fromisoformat(facts.at)
        found["environment.cdx.json"] = cyclonedx(facts.release.model, facts.release.version, training, at)
    return {**found, **{f"records/{stage}.json": data for stage, data in facts.records.items()}}


def as_json(data: Any) -> bytes:
    """Return `data` as JSON that a person can read, the same bytes for the same data."""
    return json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _score(score: Score) -> dict[str, Any]:
    verdicts = [asdict(verdict) for verdict in score.verdicts]
    return {"score": score.total, "meaning": score.meaning, "sections": score.sections, "tests": verdicts}


def _lineage(facts: Facts) -> dict[str, Any]:
    training, release = facts.result("train", TrainingResult), facts.release
    stages = {
        stage: {"record": facts.refs[stage].uri, "digest": facts.refs[stage].digest, "inputs": json.loads(data).get("inputs", {})}
        for stage, data in facts.records.items()
    }
    return {
        "version": {"model": release.model, "version": release.version, "tags": dict(release.tags)},
        "runs": {"trained": release.tags.get("airflow_run"), "released": release.run, "mlflow": training and training.mlflow_run_id},
        "dataset": training and to_data(training.dataset),
        "code_version": training and training.code_version,
        "warm_started_from": training and training.warm_started_from,
        "split": training and to_data(training.split),
        "artifacts": {name: to_data(getattr(training, name)) for name in ("model", "saved_model", "golden")} if training else {},
        "stages": stages,
        "missing": dict(facts.problems),
    }


def _model_card(facts: Facts, score: Score) -> str:
    """Return the card with the sections of Mitchell et al., "Model Cards for Model Reporting" (2019)."""
    release, training = facts.release, facts.result("train", TrainingResult)
    evaluation, robustness = facts.result("evaluate", EvaluationResult), facts.result("robustness", RobustnessResult)
    details = [f"* {release.model} version {release.version}, released by {release.run}", *_training_lines(training)]
    details += [f"* Stage {tag.partition('.')[2]} took {release.tags[tag]}" for tag in sorted(release.tags) if tag.startswith("usage.")]
    details += [f"* {event.kind} by {_who(event)} at {event.at}" for event in facts.events if event in facts.approvals]
    stated = "Nothing is recorded about it; what people vouch for stands in statements.json."
    parts = {
        "Model details": details,
        "Intended use": [stated],
        "Factors": ["No slices of the data and no groups are measured."],
        "Metrics and evaluation data": _evaluation_lines(facts, evaluation),
        "Training data": ["See dataset_card.md."],
        "Quantitative analyses": [f"* Robustness: {robustness.headline() if robustness else _missing(facts, 'robustness')}", f"* {score.headline()}"],
        "Ethical considerations": [stated],
        "Caveats and recommendations": [
            *(f"* {sentence}" for sentence in (*(training.undone() if training else ()), *(robustness.notes if robustness else ()))),
            *(f"* {what} is missing: {why}" for what, why in sorted(facts.problems.items())),
        ],
    }
    return _markdown(f"Model card: {release.model} version {release.version}", parts)


def _authors(training: TrainingResult) -> str:
    return f"by {', '.join(training.code_authors)}" if training.code_authors else UNKNOWN_AUTHORS


def _who(event: Event) -> str:
    """Return the name of who did it, with the id where that is another."""
    user_id = event.details.get("user_id", event.actor)
    return event.actor if user_id == event.actor else f"{event.actor} (user id {user_id})"


def candidate_card(model: str, training: TrainingResult) -> str:
    """Return the card of a model that was just trained, which nobody has compared, attacked or released yet; sections as of a released one."""
    stated = "Nothing is recorded about it."
    dataset = training.dataset
    parts = {
        "Model details": [f"* {model}, trained in MLflow run {training.mlflow_run_id}", *_training_lines(training)],
        "Intended use": [stated],
        "Metrics and evaluation data": ["Those of the training stand above; it was not yet measured on the rows held out."],
        "Training data": [f"* {dataset.dataset} {dataset.name}, digest of its file list `{dataset.digest}`", f"* {_split(training)}"],
        "Ethical considerations": [stated],
        "Caveats and recommendations": [f"* {sentence}" for sentence in training.undone()] or ["None are recorded."],
    }
    return _markdown(f"Model card: {model}, a candidate", parts)


def _split(training: TrainingResult) -> str:
    split = training.split
    by = f"by the values of {len(split.columns)} columns ({listed(split.columns)}), a share of {split.held_out_fraction:g}"
    least = f"; never learned from, not even by the model it started from, is a share of {split.unseen_fraction:g}"
    least = least if split.unseen_fraction != split.held_out_fraction else ""
    return f"{training.num_train_rows} rows to learn from, {training.num_held_out_rows} held out, {by}{least}."


def _training_lines(training: TrainingResult | None) -> list[str]:
    if training is None:
        return ["* The record of the training is missing."]
    params = ", ".join(f"{name} {value}" for name, value in sorted(training.params.items())) or "none"
    return [
        f"* Model file `{training.model.digest}`, served files `{training.saved_model.digest}`",
        f"* Code {training.code_version}; {_authors(training)}",
        f"* Parameters: {params}; seed {training.seed}",
        f"* Training: {training.figures()}",
        f"* Formats that answer as the model does: {', '.join(['keras', 'saved_model', *sorted(training.formats)])}",
        *([f"* Features, a part of the served files: `{training.features.digest}`"] if training.features else []),
    ]


def _evaluation_lines(facts: Facts, evaluation: EvaluationResult | None) -> list[str]:
    if evaluation is None:
        return [_missing(facts, "evaluate")]
    lines = [_judged(evaluation), "", "| metric | this version | champion |", "|---|---|---|"]
    champion = evaluation.champion_metrics or {}
    lines += [f"| {name} | {value:.4f} | {_figure(champion.get(name))} |" for name, value in sorted(evaluation.metrics.items())]
    if evaluation.champion_problem:
        lines += ["", f"The model was not compared with champion {evaluation.champion_version}: {evaluation.champion_problem}"]
    return lines


def _judged(evaluation: EvaluationResult) -> str:
    judged = evaluation.judged
    held_out = f"the model has never learned from {judged.num_held_out} rows of the version"
    if judged.champion_num_held_out is not None:
        held_out += f", champion {evaluation.champion_version} not from {judged.champion_num_held_out}"
    return f"{evaluation.num_rows} held-out rows (`{evaluation.rows_digest}`): {held_out}; split: {'; '.join([judged.split, *judged.unknown])}."


def _dataset_card(facts: Facts) -> str:
    validation, training = facts.result("validate", ValidationResult), facts.result("train", TrainingResult)
    dataset = validation.dataset if validation else training.dataset if training else None
    origin = [f"* {dataset.dataset} {dataset.name}", f"* Digest of its file list: `{dataset.digest}`", f"* {dataset.uri}"] if dataset else []
    split = _split(training) if training else _missing(facts, "train")
    findings = [*validation.critical, *validation.warnings] if validation else []
    quality = [validation.headline(), "", *(f"* {finding.message}" for finding in findings)] if validation else [_missing(facts, "validate")]
    parts = {
        "Version": origin or [_missing(facts, "validate")],
        "Quality": quality,
        "Split": [split],
        "Collection, consent and licence": ["Nothing is recorded about them."],
    }
    return _markdown(f"Dataset card: {dataset.dataset} {dataset.name}" if dataset else "Dataset card", parts)


def _missing(facts: Facts, stage: str) -> str:
    return f"Missing: {facts.problems[stage]}"


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _markdown(title: str, parts: Mapping[str, list[str]]) -> str:
    sections = ["\n".join([f"## {name}", "", *lines]) for name, lines in parts.items()]
    return "\n\n".join([f"# {title}", *sections]) + "\n"
