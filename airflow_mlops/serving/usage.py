"""What the server's configuration says of the versions of one model: which are in use, and which one clients are asking."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.stores import normalized


@dataclass(frozen=True)
class Usage:
    """The entries that concern a model, none where the server does not know it; `label` is the one that clients ask for."""

    entries: tuple[ModelConfig, ...] = ()
    label: str = "stable"

    @classmethod
    def of(cls, served: ServerConfig, base_path: str | Path, label: str = "stable") -> Usage:
        """Return the entries with this base path, or with the model's name, which is the last part of it."""
        place = normalized(base_path)
        name = place.rpartition("/")[2]
        return cls(tuple(model for model in served.models if model.name == name or normalized(model.base_path) == place), label)

    @property
    def named(self) -> set[int]:
        """The versions that the configuration names, by number or by label."""
        return {version for model in self.entries for version in (*model.versions, *model.labels.values())}

    @property
    def left_to_server(self) -> bool:
        """Whether the server chooses versions by itself, from what it sees below the base path."""
        return any(not model.versions for model in self.entries)

    def in_use(self, present: Collection[int]) -> set[int]:
        """Return the versions that are named, and those of `present` that the server chooses by itself."""
        return self.named.union(*(model.by_policy(present) for model in self.entries if not model.versions))

    def asked(self, present: Collection[int]) -> int | None:
        """Return the version that clients ask: the label's, or else the highest in use; None if there is none."""
        labelled = [model.labels[self.label] for model in self.entries if self.label in model.labels]
        return max(labelled or self.in_use(present), default=None)
