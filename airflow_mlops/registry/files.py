"""Files of a registered version, held to the digest that they must have."""

from __future__ import annotations

from pathlib import Path

from airflow_mlops.artifacts import path_digest
from airflow_mlops.exceptions import RegistryError
from airflow_mlops.registry.base import ModelRegistry, ModelVersion


def fetch(registry: ModelRegistry, version: ModelVersion, name: str, destination: Path, digest: str | None) -> Path:
    """Download a file or directory of a version to `destination`; raise `RegistryError` unless it has this `digest` (None: any)."""
    path = registry.download(version, name, destination)
    if digest is not None and (found := path_digest(path)[0]) != digest:
        raise RegistryError(
            f"The artefact {name} of {version.name} version {version.version} has the digest {found}; expected {digest}. "
            "It was changed in the registry: restore it from a backup, or use another version."
        )
    return path
