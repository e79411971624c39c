"""One model per test in an MLflow that tests share, for its tables take seconds to make."""

from __future__ import annotations

from pathlib import Path

from airflow_mlops.registry.mlflow import MlflowRegistry


class Shelf:
    """The versions and aliases of the model `name` in a SQLite file, which can be out of order for a while."""

    def __init__(self, name: str, database: Path) -> None:
        self.name, self.database, self.uri = name, database, f"sqlite:///{database}"
        self.registry = MlflowRegistry(self.uri)

    def register(self, *, num: int = 1) -> list[int]:
        """Register `num` more versions, each of a run of its own, and return their numbers."""
        numbers = []
        for _ in range(num):
            with self.registry.start_run(self.name, name="training", tags={}) as run:
                pass
            numbers.append(self.registry.register(self.name, run.run_id, run.artifact_uri).version)
        return numbers

    def put(self, alias: str, version: int | None) -> None:
        """Point an alias to a version, or to none."""
        if version is None:
            self.registry.remove_alias(self.name, alias)
        else:
            self.registry.set_alias(self.name, alias, version)

    def break_down(self) -> None:
        """Let MLflow not answer until `mend`."""
        self.database.rename(self._away)
        self.database.write_text("no database, but long enough to be read as one. " * 20)

    def mend(self) -> None:
        self._away.rename(self.database)

    @property
    def _away(self) -> Path:
        return self.database.with_suffix(".away")
