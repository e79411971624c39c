"""What a person is asked to agree to: figures from the records and from the ledger, as a question with a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_mlops.gates import ApprovalPolicy
from airflow_mlops.registry.registrations import Evidence

UNKNOWN_AUTHORS = "not known: Git does not know it, and the pipeline's code_authors is empty, so no author is kept from approving"
_ESCAPED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|", "`": "'"}


def question(model: Mapping[str, Any]) -> str:
    """Return the question about the version that was selected."""
    return f"Release {model['name']} version {model['version']}?"


def form(model: Mapping[str, Any], tags: Mapping[str, str], evidence: Evidence, policy: ApprovalPolicy) -> str:
    """Return the table under the question.

    :param model: the version that was selected, with whom it would replace and what the policy says of it.
    :param tags: with which it was registered, by the ledger.
    :param policy: who may agree.
    """
    expected, training = model["expected_champion"], evidence.training
    rows = {
        **({"To decide": " ".join(model["questions"])} if model["questions"] else {}),  # first: it is why a person must look
        "Replaces": f"version {expected}" if expected else "nothing, it is the first",
        "Trained on": f"{training.dataset.dataset} {training.dataset.name} ({training.dataset.digest[:19]})",
        "Code": training.code_version[:19],
        "By": ", ".join(tags["authors"].splitlines()) or "unknown",
        **({} if training.code_authors else {"Who wrote the code": UNKNOWN_AUTHORS}),
        "May approve": ", ".join(policy.approvers or ["whoever may answer here"]) + ("" if policy.author_may_approve else ", but no author"),
        "Model, evidence": f"{training.model.digest[:19]}, {tags['evidence_digest'][:19]}",
        "Validation": evidence.validation.headline(),
        "Training": training.headline(),
        "Evaluation": evidence.evaluation.headline(),
        "Robustness": evidence.robustness.headline(),
        "Gate": model["decision"],
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(text)} |" for name, text in rows.items())])


def _cell(text: str) -> str:
    """Return `text` so that it stays in its cell and means nothing but itself."""
    return "".join(_ESCAPED.get(letter, letter) for letter in " ".join(text.split()))
