"""What a model registry and a run's history must offer, whatever product stands behind them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

CHAMPION = "champion"  # serves
PREVIOUS = "previous"  # served before: what a rollback goes back to
CANDIDATE = "candidate"  # waits for its release
NO_CHAMPION = "none"  # what a version says that was compared with no champion


@dataclass(frozen=True)
class ModelVersion:
    """One immutable version of a registered model: `source` is the URI of its files, which are artefacts of run `run_id`."""

    name: str
    version: int
    run_id: str
    source: str
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)


class RunLogger(Protocol):
    """The history of one training run; every call may raise `RegistryUnavailable`."""

    @property
    def run_id(self) -> str: ...

    @property
    def artifact_uri(self) -> str:
        """The directory of the run's artefacts: the `source` of a model version made of this run."""
        ...

    def log_params(self, params: Mapping[str, Any]) -> None: ...

    def log_metric(self, name: str, value: float, step: int = 0) -> None: ...

    def set_tags(self, tags: Mapping[str, str]) -> None: ...

    def log_dict(self, data: Mapping[str, Any], file_name: str) -> None:
        """Keep `data` as a JSON (or YAML) file, by the file name's ending."""
        ...

    def log_artifact(self, path: Path) -> None:
        """Keep a file, or a directory with everything in it, under its own name."""
        ...


class ModelRegistry(Protocol):
    """Versions, aliases and tags of models; every call may raise `RegistryUnavailable`."""

    def start_run(self, experiment: str, *, name: str, tags: Mapping[str, str]) -> AbstractContextManager[RunLogger]:
        """Open a run that ends as finished, or as failed when the block raises."""
        ...

    def register(
        self, name: str, run_id: str, source: str, *, tags: Mapping[str, str] | None = None, idempotency_key: str | None = None
    ) -> ModelVersion:
        """Return the version made of this run, registered now or by an earlier call with the same key (by default the run's id)."""
        ...

    def get(self, name: str, version: int) -> ModelVersion:
        """Return a version; raise `ModelNotFound`."""
        ...

    def versions(self) -> list[ModelVersion]:
        """Return every version of every model."""
        ...

    def get_by_alias(self, name: str, alias: str) -> ModelVersion:
        """Return the version an alias points to; raise `ModelNotFound`."""
        ...

    def aliases(self, name: str) -> dict[str, int]:
        """Return alias -> version, empty if there is no such model."""
        ...

    def models(self) -> list[str]:
        """Return the name of every registered model, sorted."""
        ...

    def stages(self, name: str) -> dict[int, str]:
        """Return version -> stage, ``Production`` for instance, of every version that has one, as registries had before aliases."""
        ...

    def delete_version(self, name: str, version: int) -> None:
        """Delete a version for good; raise `ModelNotFound`. Ask `registry.reconciliation.delete_version`, which looks whether it is in use."""
        ...

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias to a version, away from any other; raise `ModelNotFound`."""
        ...

    def remove_alias(self, name: str, alias: str) -> None:
        """Take an alias away; no error if there is none."""
        ...

    def set_tags(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version, keeping its others; raise `ModelNotFound`."""
        ...

    def download(self, version: ModelVersion, artifact_path: str, destination: Path) -> Path:
        """Copy a file or directory of the version to `destination`, which appears only when whole; raise `ModelNotFound`."""
        ...
