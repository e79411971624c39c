"""Back to an earlier champion: which version that may be, by the audit trail, and its files, by the digests that the trail holds.

A rollback evaluates nothing, so it only goes back to a version that was champion, and only with the files it was champion with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from airflow_mlops.exceptions import PromotionConflict, RollbackRefused, unknown_name
from airflow_mlops.ledger import chain, champions
from airflow_mlops.ledger.champions import CHAMPION_KINDS, Reign
from airflow_mlops.ledger.store import Store
from airflow_mlops.registry import files
from airflow_mlops.registry.base import ModelRegistry, ModelVersion

ROLLED_BACK = "rolled back"
FILES = {"model.keras": "digest", "saved_model": "saved_model_digest", "golden.json": "golden_digest"}  # by what events call the digest of each


@dataclass(frozen=True)
class Target:
    """Version `version` of `model` is to be champion again in place of `replaces`, who reigns with the fencing token `token`.

    `digests` are those of its files: what an event of the trail that made it champion says.
    """

    model: str
    version: int
    replaces: int
    token: int
    digests: Mapping[str, str]


def choose(store: Store, model: str, version: int | None = None, *, asked_at: datetime | None = None) -> Target:
    """Return what a rollback goes back to: the champion `version` was, or the one before the present one.

    :param asked_at: when the rollback was requested; a champion since then was not the one to be replaced.
    :raises SpecError: the model never had a champion.
    :raises RollbackRefused: the version never was champion, is it now, or there is none before; or the trail does not know its files.
    :raises PromotionConflict: the champion changed after the request.
    """
    reigns = champions.history(store, model)
    if not reigns:
        raise unknown_name("model with a champion", model, champions.models(store))
    now = reigns[-1]
    if asked_at is not None and now.since > asked_at:
        raise PromotionConflict(
            f"Version {now.version} of {model!r} became champion on {now.since:%Y-%m-%d %H:%M:%S} UTC, after this rollback was asked for. Nothing "
            "was changed. Check that it is still wanted, and ask again."
        )
    wanted = _wanted(reigns, version)
    return Target(model, wanted, now.version, now.token, _digests(store, model, wanted))


def fetch(registry: ModelRegistry, target: Target, directory: Path) -> ModelVersion:
    """Download the target's files into `directory`, each the one that was champion, and return what the registry has of the version.

    :raises ModelNotFound: the registry no longer has the version, or one of its files.
    :raises RegistryError: a file has changed.
    """
    registered = registry.get(target.model, target.version)
    for name, digest in FILES.items():
        files.fetch(registry, registered, name, directory / name, target.digests[digest])
    return registered


def was_champion(store: Store, model: str, version: int) -> bool:
    """Return whether a version was champion before the present one."""
    return version in {reign.version for reign in champions.history(store, model)[:-1]}


def _wanted(reigns: Sequence[Reign], version: int | None) -> int:
    model, now = reigns[-1].model, reigns[-1].version
    before = _before(reigns)
    if version is None and before is None:
        raise RollbackRefused(f"Version {now} of {model!r} is its first champion: there is none before it to go back to. Release another version.")
    wanted = before if version is None else version
    if wanted == now:
        raise RollbackRefused(f"Version {now} of {model!r} is the champion already. Name an earlier one, or none for the one before it.")
    were = sorted({reign.version for reign in reigns} - {now})
    if wanted is None or wanted not in were:
        raise RollbackRefused(
            f"Version {wanted} of {model!r} never was champion by the audit trail; expected one of {', '.join(map(str, were)) or 'none'}. "
            "Other versions are released by their gates and an approval."
        )
    return wanted


def _before(reigns: Sequence[Reign]) -> int | None:
    """Return the champion before the present one; champions after a version that came back no longer count."""
    line: list[int] = []
    for reign in reigns:
        if reign.version in line:
            del line[line.index(reign.version) :]
        line.append(reign.version)
    return line[-2] if len(line) > 1 else None


def _digests(store: Store, model: str, version: int) -> dict[str, str]:
    """Return the digests of the files that the version was last made champion with."""
    subject = f"{model}@{version}"
    events = [event for event in chain.events(store, model=subject, kinds=CHAMPION_KINDS) if event.subject == subject]
    for event in reversed(events):
        found = {name: event.details[name] for name in FILES.values() if event.details.get(name)}
        if len(found) == len(FILES):
            return found
    raise RollbackRefused(
        f"The audit trail does not say which files version {version} of {model!r} was champion with: it was adopted from a registry that did not "
        "say it. Release it by its gates, or go back to another version."
    )
