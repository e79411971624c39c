"""Taking away old versions: none that the server may need, none that a rollout may go back to, and none that is not ours."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_mlops.exceptions import SpecError
from airflow_mlops.serving import config, manifest
from airflow_mlops.serving.stores import open_store, versions
from airflow_mlops.serving.usage import Usage


@dataclass(frozen=True)
class RetentionPolicy:
    """How many published versions stay, at least: `keep_versions`, of which 3 are the serving one, its way back and a candidate."""

    keep_versions: int = 3

    def __post_init__(self) -> None:
        if self.keep_versions < 1:
            raise SpecError(f"keep_versions is {self.keep_versions}; at least 1 version must stay, the one that was just published.")


def retain(
    base_path: str | Path,
    policy: RetentionPolicy,
    config_file: Path,
    *,
    version: int,
    label: str = "stable",
    storage_options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Remove what is published below `base_path` and nobody needs, after `version` was published, and return the versions removed.

    What was interrupted before is done to its end. Raises `PublishError` or `ServingUnavailable`; what is left then, the next call removes.
    """
    store = open_store(base_path, storage_options)
    with config.exclusive(config_file) as served:  # so that no rollout names meanwhile what is chosen here
        ours, begun = manifest.published(store), manifest.doomed(store)
        needed = to_keep(ours, versions(store), Usage.of(served, base_path, label), policy.keep_versions) | {version}
        for number in sorted(ours - needed):
            manifest.doom(store, number)
    removed = []
    for number in sorted((ours | begun) - needed):  # deleting takes its time, and a rollout that goes back must not wait for it
        with store.locked(number):
            if number in manifest.doomed(store):  # otherwise it was published again meanwhile
                store.discard(number)
                manifest.forget(store, number)
                removed.append(number)
    return removed


def to_keep(ours: Collection[int], present: Collection[int], usage: Usage, keep_versions: int) -> set[int]:
    """Return the versions that must stay: in use, the newest of `ours`, and the one of `ours` before the newest and before the asked one.

    `ours` are the versions that were published, verified, from here; `present` all that lie below the base path.
    """
    kept = usage.in_use(present) | set(sorted(ours)[-keep_versions:])
    for top in (max(ours, default=None), usage.asked(present)):
        if top is not None:
            kept |= set(sorted(number for number in ours if number < top)[-1:])
    return kept
