"""The head of the audit trail, noted in the registry: whoever rewrites the ledger must rewrite the registry as well."""

from __future__ import annotations

from airflow_mlops.ledger import chain
from airflow_mlops.ledger.chain import Head
from airflow_mlops.ledger.store import Store
from airflow_mlops.registry.base import ModelRegistry

AUDIT_HEAD_TAG = "audit_head"


def anchor(store: Store, registry: ModelRegistry, model: str, version: int) -> Head:
    """Note the head of the trail as the tag `AUDIT_HEAD_TAG` of a version, unless it has one, and return what the version has.

    :raises ModelNotFound: there is no such version.
    """
    if noted := registry.get(model, version).tags.get(AUDIT_HEAD_TAG):
        return Head.parse(noted)  # an anchor that is written again vouches for what was rewritten meanwhile
    head = chain.head(store)
    registry.set_tags(model, version, {AUDIT_HEAD_TAG: str(head)})
    return head


def anchors(registry: ModelRegistry) -> list[Head]:
    """Return every anchor that versions in the registry have."""
    return [Head.parse(version.tags[AUDIT_HEAD_TAG]) for version in registry.versions() if AUDIT_HEAD_TAG in version.tags]
