"""The pack's page for people: the score with its reasons, the gaps with their remedies, and where everything is."""

from __future__ import annotations

from collections.abc import Mapping

import jinja2

from airflow_mlops.ledger.evidence.facts import STAGES, Facts
from airflow_mlops.ledger.evidence.score import Score

FILES = {
    "model_card.md": "model card",
    "dataset_card.md": "dataset card",
    "score.json": "score, for machines",
    "statements.json": "what people vouch for",
    "lineage.json": "where the model comes from",
    "environment.cdx.json": "packages of the training, CycloneDX 1.6",
    "approvals.json": "who was asked and what they said",
    "trail.jsonl": "events of the audit trail about the version",
    "manifest.json": "every file with its digest, and what is missing",
    "SHA256SUMS": "the same for sha256sum -c",
}


def page(facts: Facts, score: Score, missing: Mapping[str, str], reports: Mapping[str, str]) -> bytes:
    """Return ``index.html``, which needs no other file and no script; `reports` are paths relative to the pack, by what they are."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("airflow_mlops.ledger.evidence"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    absent = {"environment.cdx.json"} - ({"environment.cdx.json"} if "train" in facts.results else set())
    return (
        environment.get_template("pack.html")
        .render(
            facts=facts,
            score=score,
            missing=missing,
            reports=reports,
            stages=STAGES,
            files={name: words for name, words in FILES.items() if name not in absent},
            gaps=[verdict for verdict in score.verdicts if verdict.remedy],
        )
        .encode()
    )
