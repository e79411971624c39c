"""Ledger, registry and servers compared: what is safe is repaired, the rest is reported with what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from airflow_mlops.exceptions import RegistryError
from airflow_mlops.ledger import chain, champions
from airflow_mlops.ledger.champions import Reign
from airflow_mlops.ledger.journal import once
from airflow_mlops.ledger.store import Store
from airflow_mlops.registry.base import CHAMPION, ModelRegistry
from airflow_mlops.registry.promotion import DIGEST_TAG, exists, project

ACTOR = "reconciliation"


@dataclass(frozen=True)
class Difference:
    """Something about `model` that is not as the ledger says; `repaired` or left to a person, whom `message` tells what to do."""

    model: str
    message: str
    repaired: bool


def reconcile(store: Store, registry: ModelRegistry, served: Mapping[str, int | None] | None = None) -> list[Difference]:
    """Compare every model of the ledger with its aliases, its versions and what servers serve, and return what differed.

    :param served: by model, the version that clients get now (None: none at all); a model that is not named is not compared.
    """
    found: list[Difference] = []
    for model in champions.models(store):
        reign = champions.current(store, model)
        if reign is not None:
            found += _registry(store, registry, reign)
            if served is not None and model in served and served[model] != reign.version:
                found.append(_not_served(reign, served[model]))
    return found


def delete_version(store: Store, registry: ModelRegistry, model: str, version: int, *, actor: str, served: Mapping[str, int | None]) -> None:
    """Delete a version for good, with an audit event; refuse one that reigns, is the way back, serves, or that an alias names.

    :param served: as for `reconcile`; every server of this model must be in it.
    :raises RegistryError: the version is still needed; nothing was deleted.
    """
    reign = champions.current(store, model)
    uses = [f"the alias {alias!r} names it" for alias, held in sorted(registry.aliases(model).items()) if held == version]
    if reign is not None and version in (reign.version, reign.previous):
        uses.append("it is the champion" if version == reign.version else "it is what a rollback goes back to")
    if served.get(model) == version:
        uses.append("it serves")
    if uses:
        raise RegistryError(f"{model} version {version} is not deleted: {', '.join(uses)}. Release another version first, or move the alias.")

    def delete() -> dict[str, int]:
        registry.delete_version(model, version)
        return {"version": version}

    event = chain.Event("deleted", f"{model}@{version}", actor, {})
    once(store, f"delete:{model}:{version}", "delete", {"model": model, "version": version}, delete, event=event)


def _registry(store: Store, registry: ModelRegistry, reign: Reign) -> list[Difference]:
    model = reign.model
    if not exists(registry, model, reign.version):
        message = f"The champion, version {reign.version}, was deleted from the registry; servers that have its files serve on. "
        return [Difference(model, f"{message}Restore it from a backup of the registry's database, or release another version.", repaired=False)]
    found = []
    tag = registry.get(model, reign.version).tags.get(DIGEST_TAG)
    if reign.digest is not None and tag != reign.digest:
        message = f"The champion, version {reign.version}, has the {DIGEST_TAG} {tag}; it was promoted with {reign.digest}. Find out who changed it."
        found.append(Difference(model, message, repaired=False))
    if reign.previous is not None and not exists(registry, model, reign.previous):
        message = f"Version {reign.previous}, which a rollback would go back to, was deleted from the registry. Release a version that is there."
        found.append(Difference(model, message, repaired=False))
    changed = project(store, registry, model)
    if changed:
        found.append(Difference(model, _repaired(changed, reign), repaired=True))
        details = {"aliases": changed, "token": reign.token}
        with store.transaction() as connection:
            chain.append(connection, chain.Event("aliases repaired", f"{model}@{reign.version}", ACTOR, details))
    return found


def _repaired(changed: Mapping[str, int | None], reign: Reign) -> str:
    said = ", ".join(f"{alias!r} was on {champions.spoken(version)}" for alias, version in sorted(changed.items()))
    return f"Aliases were moved by hand ({said}) and say again what the ledger says: {CHAMPION} is version {reign.version}."


def _not_served(reign: Reign, version: int | None) -> Difference:
    message = (
        f"The servers serve {champions.spoken(version)}; the champion is version {reign.version} since {reign.since:%Y-%m-%d %H:%M} UTC. "
        "If no rollout is under way, clear 'roll_out' of its release, or roll back."
    )
    return Difference(reign.model, message, repaired=False)
