"""Ledger, registry and servers compared: what is safe is repaired, the rest is reported with what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from airflow_mlops.exceptions import AuditTrailBroken, LedgerAltered, ModelNotFound, RegistryError
from airflow_mlops.ledger import chain, champions, history, journal
from airflow_mlops.ledger.champions import Reign
from airflow_mlops.ledger.store import Store, now
from airflow_mlops.registry.base import CHAMPION, ModelRegistry
from airflow_mlops.registry.promotion import DIGEST_TAG, exists, project

ACTOR = "reconciliation"
ROLLOUT = timedelta(hours=1)  # an effect still open after that is reported: a task's retries take about as long
CLOCKS = timedelta(minutes=1)  # how far the clocks of two workers may be apart


@dataclass(frozen=True)
class Difference:
    """Something about `model` that is not as the ledger says; `repaired` or left to a person, whom `message` tells what to do."""

    model: str
    message: str
    repaired: bool

    def __str__(self) -> str:
        return f"{self.model}: {self.message}"


def reconcile(
    store: Store,
    registry: ModelRegistry,
    served: Mapping[str, int | None] | None = None,
    *,
    at: datetime | None = None,
    runs: Callable[[str], bool] | None = None,
) -> list[Difference]:
    """Compare every model of the ledger with its aliases, its versions and what servers serve, and return what differed.

    A version that serves and is not (yet) champion is not a difference while its rollout, by the journal, still runs.

    :param served: by model, the version that clients get now (None: none at all); a model that is not named is not compared.
    :param at: when the servers were asked; by default now.
    :param runs: whether a release (``DAG id/run id``) still runs; without it a rollout counts as running until there is a later champion.
    """
    found: list[Difference] = []
    for model in champions.models(store):
        try:
            reign = champions.current(store, model)
        except (LedgerAltered, AuditTrailBroken) as error:  # what the aliases must say is not known then
            found.append(Difference(model, str(error), repaired=False))
            continue
        if reign is not None:
            found += _registry(store, registry, reign)
            differs = served is not None and model in served and served[model] != reign.version
            if served is not None and differs and not _under_way(store, reign, served[model], at or now(), runs):
                found.append(_not_served(registry, reign, served[model]))
    return found + _open_effects(store, (at or now()) - ROLLOUT)


def untold(store: Store, watcher: str, reported: Sequence[str]) -> list[str]:
    """Return what `watcher` was not told of at its last call, and remember `reported`: each is told once until it is gone."""
    told = (journal.known(store, watcher) or {"told": []})["told"]
    if told != list(reported):
        journal.remember(store, watcher, "differences", {"told": list(reported)})
    return [one for one in reported if one not in told]


def delete_version(store: Store, registry: ModelRegistry, model: str, version: int, *, actor: str, served: Mapping[str, int | None]) -> None:
    """Delete a version for good, with an audit event; refuse one that reigns, is the way back, serves, or that an alias names.

    :param served: as for `reconcile`; every server of this model must be in it.
    :raises RegistryError: the version is still needed; nothing was deleted.
    :raises ModelNotFound: there is no such version, and this did not delete it.
    """
    intent = f"delete:{model}:{version}"
    if not journal.asked(store, intent):
        registry.get(model, version)
    reign = champions.current(store, model)
    uses = [f"the alias {alias!r} names it" for alias, held in sorted(registry.aliases(model).items()) if held == version]
    if reign is not None and version in (reign.version, reign.previous):
        uses.append("it is the champion" if version == reign.version else "it is what a rollback goes back to")
    if served.get(model) == version:
        uses.append("it serves")
    if uses:
        raise RegistryError(f"{model} version {version} is not deleted: {', '.join(uses)}. Release another version first, or move the alias.")

    def delete() -> dict[str, int]:
        with contextlib.suppress(ModelNotFound):  # an earlier try, whose answer was lost, deleted it
            registry.delete_version(model, version)
        return {"version": version}

    event = chain.Event("deleted", f"{model}@{version}", actor, {})
    journal.once(store, intent, "delete", {"model": model, "version": version}, delete, event=event)


def _open_effects(store: Store, before: datetime) -> list[Difference]:
    message = (
        "The effect {!r} was begun and never ended: its process died, and no retry followed. Clear the task that it names, which does it or closes "
        "it with its problem."
    )
    return [Difference("journal", message.format(key), repaired=False) for key in journal.open_effects(store, before)]


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


def _not_served(registry: ModelRegistry, reign: Reign, version: int | None) -> Difference:
    gone = "" if version is None or exists(registry, reign.model, version) else ", which was deleted from the registry"
    message = (
        f"The servers serve {champions.spoken(version)}{gone}; the champion is version {reign.version} since {reign.since:%Y-%m-%d %H:%M} UTC. "
        f"Clear 'roll_out' of its release, or start '{reign.model}_rollback'."
    )
    return Difference(reign.model, message, repaired=False)


def _under_way(store: Store, reign: Reign, version: int | None, at: datetime, runs: Callable[[str], bool] | None) -> bool:
    """Return whether `version` may serve at `at` though it is not champion: its rollout still runs, or the champion is one of this minute."""
    if reign.since > at - CLOCKS:
        return True
    plans = [plan for plan in history.effects(store, ("plan-rollout",), limit=None) if _about(plan) == (reign.model, version)]
    if runs is None:
        return any(plan.asked_at > reign.since for plan in plans)
    return any(runs(release) for release in dict.fromkeys(plan.request.get("run", "") for plan in plans) if release)


def _about(effect: history.Effect) -> tuple[Any, Any]:
    return effect.request.get("model"), effect.request.get("version")
