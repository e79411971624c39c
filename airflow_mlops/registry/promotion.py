"""The challenger becomes champion: a few alias writes in an order that survives a crash after any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from airflow_mlops.exceptions import ModelNotFound, PromotionConflict
from airflow_mlops.registry.base import CANDIDATE, CHAMPION, PREVIOUS, ModelRegistry, ModelVersion


@dataclass(frozen=True)
class Promotion:
    """Who is champion of model `name` now, and who was before, if anybody."""

    name: str
    champion: int
    previous: int | None


def promote(registry: ModelRegistry, name: str, version: int, expected_champion: int | None) -> Promotion:
    """Make `version` the champion of `name` and the champion so far the previous one; return at once if it is champion already.

    `expected_champion` is the version the challenger was evaluated against, None if there was none. Raises `PromotionConflict` if another
    one is champion by now, `ModelNotFound` if there is no such version. Between the check and the write another promoter could still slip
    in, since registries offer no compare-and-set on aliases: let one promoter run at a time.
    """
    candidate, champion = registry.get(name, version), holder(registry, name, CHAMPION)
    if champion is None or champion.version != version:
        found = champion.version if champion else None
        if found != expected_champion:
            raise PromotionConflict(
                f"Champion of {name!r} is {_spoken(found)}, but version {version} was evaluated against {_spoken(expected_champion)}. "
                "Evaluate it again, against the present champion."
            )
        # Previous first: after a crash here the champion still serves and the same call completes. The other way round, a second try would
        # find the new champion and could not tell whom it replaced.
        if found is not None:
            registry.set_alias(name, PREVIOUS, found)
        registry.set_alias(name, CHAMPION, version)
    if CANDIDATE in candidate.aliases:
        registry.remove_alias(name, CANDIDATE)
    previous = holder(registry, name, PREVIOUS)
    return Promotion(name, version, previous.version if previous else None)


def nominate(registry: ModelRegistry, version: ModelVersion, tags: Mapping[str, str]) -> bool:
    """Make `version` the candidate, with `tags` as what was found out about it, and return True.

    Returns False, and changes nothing, if it is champion already or a newer version is candidate or champion: a registration that is repeated
    months later must not bring an old model back.
    """
    newer = [held for alias in (CANDIDATE, CHAMPION) if (held := holder(registry, version.name, alias)) and held.version > version.version]
    if newer or CHAMPION in version.aliases:
        return False
    registry.set_tags(version.name, version.version, tags)
    registry.set_alias(version.name, CANDIDATE, version.version)
    return True


def holder(registry: ModelRegistry, name: str, alias: str) -> ModelVersion | None:
    """Return the version that has an alias, or None if none has."""
    try:
        return registry.get_by_alias(name, alias)
    except ModelNotFound:
        return None


def _spoken(version: int | None) -> str:
    return "nobody" if version is None else f"version {version}"
