"""MLflow as run history and model registry; importing it takes over a second: do so inside a stage or a task only."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlops.exceptions import ModelNotFound, RegistryError, RegistryUnavailable, SpecError
from airflow_mlops.registry.base import ModelVersion
from airflow_mlops.registry.mlflow_files import listed_sizes, sizes_on_disk
from airflow_mlops.registry.mlflow_server import MlflowException, MlflowServer

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

IDEMPOTENCY_TAG = "idempotency_key"


class MlflowRun:
    """An open MLflow run; a `RunLogger`."""

    def __init__(self, server: MlflowServer, run_id: str, artifact_uri: str) -> None:
        self._server = server
        self.run_id = run_id
        self.artifact_uri = artifact_uri

    def log_params(self, params: Mapping[str, Any]) -> None:
        with self._server.calls() as client:
            for name, value in params.items():
                client.log_param(self.run_id, name, value)

    def log_metric(self, name: str, value: float, step: int = 0) -> None:
        with self._server.calls() as client:
            client.log_metric(self.run_id, name, value, step=step)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        with self._server.calls() as client:
            for name, value in tags.items():
                client.set_tag(self.run_id, name, value)

    def log_dict(self, data: Mapping[str, Any], file_name: str) -> None:
        with self._server.calls() as client:
            client.log_dict(self.run_id, dict(data), file_name)

    def log_artifact(self, path: Path) -> None:
        if not path.exists():
            raise RegistryError(f"{path} does not exist, so it cannot be kept with run {self.run_id}. Write it before logging it.")
        with self._server.calls() as client:
            if path.is_dir():
                client.log_artifacts(self.run_id, str(path), path.name)
            else:
                client.log_artifact(self.run_id, str(path))


class MlflowRegistry:
    """The runs and the model registry at `tracking_uri`; a `ModelRegistry`.

    With ``sqlite:///FILE`` artefacts go to ``artifacts/`` beside the file (MLflow's own default is the working directory); a server decides
    for itself. Nothing is opened before the first call.
    """

    def __init__(self, tracking_uri: str) -> None:
        self._server = MlflowServer(tracking_uri)

    @contextlib.contextmanager
    def start_run(self, experiment: str, *, name: str, tags: Mapping[str, str]) -> Iterator[MlflowRun]:
        """Open a run that ends as FINISHED, or as FAILED when the block raises."""
        with self._server.calls() as client:
            run = client.create_run(self._experiment_id(client, experiment), tags=dict(tags), run_name=name)
        run_id: str = run.info.run_id
        try:
            yield MlflowRun(self._server, run_id, run.info.artifact_uri)
        except BaseException as error:
            try:
                self._end(run_id, "FAILED")
            except RegistryError as second:  # what went wrong first matters more
                error.add_note(f"Run {run_id} could not be marked as failed: {second}")
            raise
        self._end(run_id, "FINISHED")

    def _end(self, run_id: str, status: str) -> None:
        with self._server.calls() as client:
            client.set_terminated(run_id, status)

    def _experiment_id(self, client: MlflowClient, name: str) -> str:
        if found := client.get_experiment_by_name(name):
            return str(found.experiment_id)
        database = self._server.database
        try:
            return str(client.create_experiment(name, (database.parent / "artifacts" / name).as_uri() if database else None))
        except MlflowException:
            if found := client.get_experiment_by_name(name):  # somebody else made it meanwhile
                return str(found.experiment_id)
            raise

    def register(
        self, name: str, run_id: str, source: str, *, tags: Mapping[str, str] | None = None, idempotency_key: str | None = None
    ) -> ModelVersion:
        """Return the version made of this run, registered now or by an earlier call with the same key (by default the run's id)."""
        key = idempotency_key or run_id
        with self._server.calls() as client:
            if (existing := _only_one(client, name, key)) is not None:
                return self.get(name, existing)
            try:
                client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            created = client.create_model_version(name, source, run_id, tags={**(tags or {}), IDEMPOTENCY_TAG: key})
            # Two who registered at the same moment, or one whose request was repeated because its answer was lost, agree on the first version.
            first = _only_one(client, name, key)
        return self.get(name, first if first is not None else int(created.version))

    def get(self, name: str, version: int) -> ModelVersion:
        """Return a version; raise `ModelNotFound`."""
        with self._server.calls() as client:
            return _version(client.get_model_version(name, str(version)))

    def versions(self) -> list[ModelVersion]:
        """Return every version of every model."""
        found: list[ModelVersion] = []
        token: str | None = None
        with self._server.calls() as client:
            while page := client.search_model_versions(page_token=token):
                found += [_version(version) for version in page]
                token = page.token
                if not token:
                    break
        return found

    def get_by_alias(self, name: str, alias: str) -> ModelVersion:
        """Return the version an alias points to; raise `ModelNotFound` naming the aliases there are."""
        with self._server.calls() as client:
            aliases = client.get_registered_model(name).aliases
            if alias not in aliases:
                raise ModelNotFound(f"No version of model {name!r} has the alias {alias!r}; its aliases: {', '.join(sorted(aliases)) or 'none'}.")
            return _version(client.get_model_version(name, aliases[alias]))

    def aliases(self, name: str) -> dict[str, int]:
        """Return alias -> version, empty if there is no such model."""
        try:
            with self._server.calls() as client:
                return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}
        except ModelNotFound:
            return {}

    def models(self) -> list[str]:
        """Return the name of every registered model, sorted."""
        with self._server.calls() as client:
            return sorted(model.name for model in _all(client.search_registered_models, None))

    def stages(self, name: str) -> dict[int, str]:
        """Return version -> stage of every version that has one; raise `ModelNotFound` if there is no such model."""
        with self._server.calls() as client:
            client.get_registered_model(name)
            versions = _all(client.search_model_versions, f"name = '{_searchable(name)}'")
            return {int(version.version): version.current_stage for version in versions if version.current_stage not in (None, "None")}

    def delete_version(self, name: str, version: int) -> None:
        """Delete a version for good; raise `ModelNotFound`."""
        with self._server.calls() as client:
            client.delete_model_version(name, str(version))

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias to a version, away from any other; raise `ModelNotFound`."""
        with self._server.calls() as client:
            client.set_registered_model_alias(name, alias, str(version))

    def remove_alias(self, name: str, alias: str) -> None:
        """Take an alias away; no error if there is none."""
        with self._server.calls() as client:
            client.delete_registered_model_alias(name, alias)

    def set_tags(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version, keeping its others; raise `ModelNotFound`."""
        with self._server.calls() as client:
            for key, value in tags.items():
                client.set_model_version_tag(name, str(version), key, value)

    def download(self, version: ModelVersion, artifact_path: str, destination: Path) -> Path:
        """Copy a file or directory of the version's run to `destination`, which must not exist and appears only when whole.

        Raises `ModelNotFound` if the run has no such artefact, `RegistryUnavailable` if fewer bytes came than MLflow lists.
        """
        if destination.exists():
            raise SpecError(f"{destination} exists already; give a new path, so that no old file is taken for a part of the model.")
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".download-") as scratch, self._server.calls() as client:
            expected = listed_sizes(client, version.run_id, artifact_path)
            if not expected:
                raise ModelNotFound(f"Version {version.version} of {version.name!r} has no artefact {artifact_path!r} in run {version.run_id}.")
            local = Path(client.download_artifacts(version.run_id, artifact_path, scratch))
            if (found := sizes_on_disk(local, artifact_path)) != expected:
                raise RegistryUnavailable(f"The download of {artifact_path!r} broke off: expected {expected}, got {found} bytes. Run it again.")
            local.rename(destination)
        return destination


def _only_one(client: MlflowClient, name: str, key: str) -> int | None:
    """Return the first version with this key, None if there is none, and delete the others, which nobody has been told of."""
    condition = f"name = '{_searchable(name)}' and tag.`{IDEMPOTENCY_TAG}` = '{_searchable(key)}'"
    found = sorted(_all(client.search_model_versions, condition), key=lambda version: int(version.version))
    for surplus in found[1:]:
        try:
            client.delete_model_version(name, surplus.version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # another one did it
                raise
    return int(found[0].version) if found else None


def _searchable(text: str) -> str:
    if "'" in text:
        raise SpecError(f"{text!r}, the name of a model or an idempotency key, holds a quote, which MLflow cannot search for. Leave it out.")
    return text


def _all(search: Callable[..., Any], condition: str | None) -> Iterator[Any]:
    """Yield what a search of MLflow finds, page by page."""
    token = None
    while True:
        page = search(condition, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _version(found: MlflowVersion) -> ModelVersion:
    return ModelVersion(found.name, int(found.version), found.run_id or "", found.source or "", tuple(sorted(found.aliases)), dict(found.tags))
