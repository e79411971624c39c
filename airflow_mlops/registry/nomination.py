"""A registered version becomes the candidate for release; light, because stages ask who holds an alias, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from airflow_mlops.exceptions import ModelNotFound
from airflow_mlops.registry.base import CANDIDATE, CHAMPION, ModelRegistry, ModelVersion


def nominate(registry: ModelRegistry, version: ModelVersion, tags: Mapping[str, str], note: Callable[[], object] = lambda: None) -> bool:
    """Make `version` the candidate, with `tags` as what was found out about it, and return True.

    Returns False, and changes nothing, if it is champion already or a newer version is candidate or champion: a registration that is repeated
    months later must not bring an old model back.

    :param note: called before the version is changed, so that whoever finds the candidate finds what was noted.
    """
    newer = [held for alias in (CANDIDATE, CHAMPION) if (held := holder(registry, version.name, alias)) and held.version > version.version]
    if newer or CHAMPION in version.aliases:
        return False
    note()
    registry.set_tags(version.name, version.version, tags)
    registry.set_alias(version.name, CANDIDATE, version.version)
    return True


def holder(registry: ModelRegistry, name: str, alias: str) -> ModelVersion | None:
    """Return the version that has an alias, or None if none has."""
    try:
        return registry.get_by_alias(name, alias)
    except ModelNotFound:
        return None
