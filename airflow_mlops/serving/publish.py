"""Placing a SavedModel under the server's base path so that the server never loads half of one, nor one that its clients cannot ask.

The server checks nothing: a version that it sees before it is whole fails to load. How a version becomes whole at once is the store's matter;
here is what comes before and after: the files are checked before anything is written, requests to warm up on are added, and a manifest is
written last, by which the version is known to be published and verified.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from airflow_mlops.exceptions import PublishError, SpecError
from airflow_mlops.inspection import inspect_files, inspect_graph
from airflow_mlops.serving import manifest, signatures, warmup
from airflow_mlops.serving.availability import version_number
from airflow_mlops.serving.content import GRAPH, Content, listed
from airflow_mlops.serving.manifest import SCHEMA_VERSION, Manifest
from airflow_mlops.serving.stores import Store, open_store, versions
from airflow_mlops.serving.usage import Usage


def publish_saved_model(
    source: Path,
    base_path: str | Path,
    version: int,
    digest: str,
    *,
    golden: Path | None = None,
    usage: Usage | None = None,
    signature_change_allowed: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> str:
    """Publish the SavedModel directory `source` as ``base_path/<version>``, whole or not at all, and return that place.

    `digest` is what `artifacts.path_digest` must say of it. From the rows in the file `golden` requests are made which the server answers before
    it serves the version, unless the SavedModel brings such itself. `usage` is what the server's configuration says of this model: clients of the
    version in service must find the same signatures, unless `signature_change_allowed`. A version that is published already is left as it is.

    Raises `PublishError` if another content is there, the copy differs, the SavedModel cannot be served, or the store refuses;
    `ServingUnavailable` if the store does not answer; `SpecError` for an impossible place.
    """
    usage = usage or Usage()
    store = _store(base_path, version, usage, storage_options)
    with store.locked(version):
        found = manifest.read(store, version)
        if found is None:
            _check_replaceable(store, version, usage)
            with _disk_errors(source), tempfile.TemporaryDirectory() as scratch:
                model = listed(source)
                Content(model, digest, {}).verify_source(f"{store.uri}/{version}")  # before anything reads what is in it
                offered = _signatures(source, model)
                if not signature_change_allowed:
                    _check_clients(store, version, usage, offered)
                added = _warm_up(Path(scratch), model, offered, golden, store.uri.rpartition("/")[2])
                files = store.place(version, Content(model, digest, added))
            manifest.write(store, Manifest(SCHEMA_VERSION, version, digest, dict(files)))
        else:
            _check_published(store, found, digest)
    return f"{store.uri}/{version}"


def inspect_saved_model(source: Path, digest: str, *, code_allowed: bool = False) -> None:
    """Raise `PublishError` unless the directory `source` is the SavedModel of `digest`, before anything of it is parsed.

    Raises `UnsafeModel` if it would run Python or reach files or the network, which is not `code_allowed`.
    """
    with _disk_errors(source):
        model = listed(source)
        Content(model, digest, {}).verify_source(str(source))
        if not code_allowed:
            inspect_files(model)
            inspect_graph(signatures.message(_graph(source, model).read_bytes(), str(source)))


def _check_published(store: Store, found: Manifest, digest: str) -> None:
    place = f"{store.uri}/{found.version}"
    if found.digest != digest:
        raise PublishError(
            f"{place} is published already, with another content: expected {digest}, found {found.digest}. "
            "A published version is never overwritten: publish under a new version number."
        )
    if not store.intact(found.version, found.files):
        raise PublishError(
            f"{place} is no longer what was published, {digest}: its files differ from its manifest. A published version is never overwritten: "
            "take it out of the configuration and delete it with its manifest, or publish under a new version number."
        )


def _store(base_path: str | Path, version: int, usage: Usage, storage_options: Mapping[str, Any] | None) -> Store:
    version_number(version)  # an impossible one is refused
    store = open_store(base_path, storage_options)
    if usage.left_to_server and not store.atomic:
        raise SpecError(
            f"The configuration leaves it to the server which versions below {store.uri} it loads, so it would load one that is still being "
            "uploaded. Name the serving version in the model's entry (`model_version_policy { specific { versions: N } }`), restart the server and "
            "publish again. Nothing was uploaded."
        )
    return store


def _check_replaceable(store: Store, version: int, usage: Usage) -> None:
    """Raise `PublishError` if what lies in the version's place without a manifest is no leftover: the server was told to serve it."""
    if not store.atomic and version in usage.named and version in versions(store):
        raise PublishError(
            f"{store.uri}/{version} was not published from here, and the server's configuration names it: replacing it would break what serves. "
            "Publish under a new version number."
        )


def _signatures(source: Path, model: Mapping[str, Path]) -> dict[str, Any]:
    graph = _graph(source, model)
    return signatures.parse(graph.read_bytes(), str(graph))


def _graph(source: Path, model: Mapping[str, Path]) -> Path:
    if GRAPH not in model:
        raise PublishError(f"{source} is no SavedModel: expected a file {GRAPH} in it. Nothing was published; export the model again.")
    return model[GRAPH]


def _check_clients(store: Store, version: int, usage: Usage, offered: Mapping[str, Any]) -> None:
    """Raise `PublishError` if clients of the version in service could not ask this one."""
    present = versions(store)
    asked = usage.asked(present)
    if asked is None or asked == version:
        return
    path = f"{present.get(asked, asked)}/{GRAPH}"
    graph = store.read(path)
    if graph is None:
        raise PublishError(
            f"{store.uri}/{path} is missing, although the server's configuration names that version: the signatures cannot be compared, and no "
            "rollout could go back to it. Put it back, or set signature_change_allowed. Nothing was published."
        )
    broken = signatures.differences(signatures.parse(graph, f"{store.uri}/{path}"), offered)
    if broken:
        raise PublishError(
            f"Version {version} would break clients of version {asked} of {store.uri}: {' '.join(broken)} Nothing was published. Export the model "
            "with the signatures of before, give it another name, or set signature_change_allowed once no client relies on them."
        )


def _warm_up(scratch: Path, model: Mapping[str, Path], offered: Mapping[str, Any], golden: Path | None, name: str) -> dict[str, Path]:
    """Return the warm-up file to add; the SavedModel's own one is only checked, because the server loads no version with a broken one."""
    if warmup.WARM_UP in model:
        warmup.read(model[warmup.WARM_UP])
        return {}
    if golden is None:
        return {}
    if signatures.DEFAULT_SIGNATURE not in offered:
        raise PublishError(
            f"The SavedModel has no signature {signatures.DEFAULT_SIGNATURE!r} for its golden answers, only {', '.join(sorted(offered))}. "
            f"{signatures.ADVICE}"
        )
    warmup.write(scratch / "requests", warmup.from_golden(golden, offered[signatures.DEFAULT_SIGNATURE], name))
    return {warmup.WARM_UP: scratch / "requests"}


@contextlib.contextmanager
def _disk_errors(source: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # what a store raises is no such error any more
        raise PublishError(f"{source} could not be made ready to publish: {error}. Nothing was published; correct that and publish again.") from error
