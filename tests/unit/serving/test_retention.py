from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.artifacts import path_digest
from airflow_mlops.exceptions import PublishError, SpecError
from airflow_mlops.serving import config, manifest, protos
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.directory_store import DirectoryStore
from airflow_mlops.serving.publish import publish_saved_model
from airflow_mlops.serving.retention import RetentionPolicy, retain, to_keep
from airflow_mlops.serving.stores import open_store, versions
from airflow_mlops.serving.usage import Usage
from tests.bare_saved_models import saved_model

ALL = set(range(1, 10))


def by_policy(text: str) -> ModelConfig:
    """Return an entry that leaves the choice to the server."""
    message = protos.text_format.Parse(f"name: 'digits' base_path: '/models/digits' {text}", protos.model_server_config_pb2.ModelConfig())
    return ModelConfig.from_proto(message)


def named(*versions: int, **labels: int) -> ModelConfig:
    return ModelConfig("digits", "/models/digits", versions, labels)


# ---------------------------------------------------------------------------------------------------------------------- what is in use


@pytest.mark.parametrize(
    ("entries", "in_use", "asked"),
    [
        ((), set(), None),
        ((named(2, 4, stable=2, canary=4),), {2, 4}, 2),
        ((named(2, 4, canary=4),), {2, 4}, 4),
        ((named(2), named(5)), {2, 5}, 5),
        ((by_policy(""),), {9}, 9),
        ((by_policy("version_labels { key: 'stable' value: 3 }"),), {3, 9}, 3),
        ((by_policy("model_version_policy { latest { num_versions: 3 } }"),), {7, 8, 9}, 9),
        ((by_policy("model_version_policy { all { } }"),), ALL, 9),
    ],
)
def test_what_the_server_may_load_is_in_use(entries: tuple[ModelConfig, ...], in_use: set[int], asked: int | None) -> None:
    usage = Usage(entries)
    assert (usage.in_use(ALL), usage.asked(ALL)) == (in_use, asked)


def test_entries_concern_a_model_by_its_name_or_by_its_base_path() -> None:
    entries = (
        ModelConfig("digits", "s3://other/x", (1,)),
        ModelConfig("alias", "file:///models//digits/", (2,)),
        ModelConfig("signs", "/models/signs"),
    )
    assert Usage.of(ServerConfig(entries), "/models/digits").named == {1, 2}
    assert not Usage.of(ServerConfig(entries), Path("/models/digits")).left_to_server
    assert Usage.of(ServerConfig(entries), "/models/signs").left_to_server


# ---------------------------------------------------------------------------------------------------------------------- what stays


@pytest.mark.parametrize(
    ("entries", "keep_versions", "kept"),
    [
        ((), 3, {7, 8, 9}),
        ((), 1, {8, 9}),  # the newest, and the one before it
        ((named(5, stable=5),), 1, {9, 8, 5, 4}),  # what serves, and what a rollout of it goes back to
        ((named(2, 5, stable=5, archive=2),), 1, {9, 8, 5, 4, 2}),
        ((named(8, 9, stable=9),), 2, {8, 9}),
        ((by_policy(""),), 1, {8, 9}),
        ((by_policy("model_version_policy { latest { num_versions: 4 } }"),), 1, {6, 7, 8, 9}),
        ((by_policy("model_version_policy { all { } }"),), 1, ALL),
        ((named(1, stable=1),), 20, ALL),
    ],
)
def test_what_may_be_needed_stays(entries: tuple[ModelConfig, ...], keep_versions: int, kept: set[int]) -> None:
    assert to_keep(ALL, ALL, Usage(entries), keep_versions) == kept


def test_the_way_back_is_a_version_that_was_published_from_here() -> None:
    assert to_keep({2, 4, 9}, ALL, Usage((named(8, stable=8),)), 1) == {9, 8, 4}
    assert to_keep(set(), ALL, Usage(), 3) == set()


def test_a_policy_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="keep_versions is 0"):
        RetentionPolicy(0)


# ---------------------------------------------------------------------------------------------------------------------- what goes


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return tmp_path / "models.config"


@pytest.fixture(params=["directory", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "models" / "digits") if request.param == "directory" else f"memory://{uuid.uuid4()}/digits"


@pytest.fixture
def published(base: str, tmp_path: Path) -> Iterator[str]:
    """A base path with versions 1 to 5."""
    source = saved_model(tmp_path / "source")
    for version in range(1, 6):
        publish_saved_model(source, base, version, path_digest(source)[0])
    yield base


def keep(base: str, config_file: Path, keep_versions: int = 1, version: int = 5) -> list[int]:
    return retain(base, RetentionPolicy(keep_versions), config_file, version=version)


def serve(config_file: Path, base: str, *versions: int, **labels: int) -> None:
    config.write(config_file, ServerConfig((ModelConfig("digits", base, versions, labels),)))


def there(base: str) -> tuple[set[int], set[int]]:
    store = open_store(base)
    return set(versions(store)), manifest.published(store)


def test_old_versions_go_with_their_manifests(published: str, config_file: Path) -> None:
    assert keep(published, config_file, 3) == [1, 2]
    assert there(published) == ({3, 4, 5}, {3, 4, 5})
    assert keep(published, config_file, 3) == []
    assert open_store(published).names(".manifests") - {f"{number}.lock" for number in (3, 4, 5)} == {"3.json", "4.json", "5.json"}


def test_what_the_configuration_names_and_the_version_before_it_stay(published: str, config_file: Path) -> None:
    serve(config_file, published, 2, stable=2)
    assert keep(published, config_file) == [3]
    assert there(published)[0] == {1, 2, 4, 5}


def test_what_was_just_published_stays_though_it_is_old(published: str, config_file: Path) -> None:
    assert keep(published, config_file, version=1) == [2, 3]


def test_what_was_not_published_from_here_stays(published: str, config_file: Path) -> None:
    store = open_store(published)
    store.write("0/saved_model.pb", b"of somebody else")
    store.remove(".manifests/2.json")
    assert keep(published, config_file) == [1, 3]
    assert there(published) == ({0, 2, 4, 5}, {4, 5})


def test_a_removal_that_broke_off_is_ended_by_the_next_one(published: str, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_class = type(open_store(published))
    with monkeypatch.context() as patch:

        def breaks(self: Any, version: int) -> None:
            discard(self, version)
            raise PublishError("the disk went away")

        discard = store_class.discard
        patch.setattr(store_class, "discard", breaks)
        with pytest.raises(PublishError, match="went away"):
            keep(published, config_file)
    assert there(published) == ({2, 3, 4, 5}, {4, 5})
    assert keep(published, config_file) == [1, 2, 3]
    assert there(published) == ({4, 5}, {4, 5}) and manifest.doomed(open_store(published)) == set()


def test_a_removal_that_was_begun_stops_where_the_version_is_needed_again(published: str, config_file: Path, tmp_path: Path) -> None:
    store = open_store(published)
    for version in (1, 2, 3):
        manifest.doom(store, version)
    serve(config_file, published, 2, stable=2)  # a person went back to it
    publish_saved_model(tmp_path / "source", published, 3, path_digest(tmp_path / "source")[0])
    assert keep(published, config_file, 3) == [1]
    assert there(published) == ({2, 3, 4, 5}, {3, 4, 5})


def test_a_version_that_is_published_again_while_it_waits_for_its_removal_stays(
    published: str, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def published_again(store: Any, version: int) -> Any:
        for _ in others:
            publish_saved_model(tmp_path / "source", published, 2, path_digest(tmp_path / "source")[0])
        return locked(store, version)

    store_class, others = type(open_store(published)), iter([2])
    locked = store_class.locked
    monkeypatch.setattr(store_class, "locked", published_again)
    assert keep(published, config_file) == [1, 3]
    assert there(published) == ({2, 4, 5}, {2, 4, 5})


def test_a_version_that_is_published_again_while_others_are_chosen_stays(
    published: str, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publishing_2(store: Any, version: int) -> None:
        doom(store, version)
        publish_saved_model(tmp_path / "source", published, 2, path_digest(tmp_path / "source")[0])

    doom = manifest.doom
    doom(open_store(published), 2)  # a removal that broke off
    monkeypatch.setattr(manifest, "doom", publishing_2)
    assert keep(published, config_file) == [1, 3]
    assert there(published) == ({2, 4, 5}, {2, 4, 5})


def test_a_directory_that_cannot_be_removed_is_reported_and_vanishes_later(
    tmp_path: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, source = str(tmp_path / "models" / "digits"), saved_model(tmp_path / "source")
    for version in (1, 2, 3):
        publish_saved_model(source, base, version, path_digest(source)[0])
    with monkeypatch.context() as patch:

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError("not yours")

        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(PublishError, match=r"Version 1 under .* could not be removed: not yours"):
            keep(base, config_file, version=3)
    assert there(base) == ({2, 3}, {2, 3})  # it is out of sight already
    keep(base, config_file, version=3)
    assert sorted(path.name for path in Path(base).iterdir()) == [".manifests", "2", "3"]


def test_no_rollout_can_name_a_version_while_it_is_chosen(tmp_path: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    base, source = str(tmp_path / "models" / "digits"), saved_model(tmp_path / "source")
    for version in (1, 2, 3):
        publish_saved_model(source, base, version, path_digest(source)[0])
    seen, write = [], DirectoryStore.write

    def look(store: DirectoryStore, path: str, data: bytes) -> None:
        with config_file.with_name(f".{config_file.name}.lock").open("w") as lock:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen.append(path)
        write(store, path, data)

    monkeypatch.setattr(DirectoryStore, "write", look)
    assert keep(base, config_file, version=3) == [1]
    assert seen == [".manifests/1.removing"]
