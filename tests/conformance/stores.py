"""What every store of versions must do, whatever holds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_mlops.artifacts import path_digest
from airflow_mlops.exceptions import PublishError
from airflow_mlops.serving import manifest
from airflow_mlops.serving.content import Content, FileEntry, listed
from airflow_mlops.serving.stores import Store, versions
from airflow_mlops.serving.warmup import WARM_UP
from tests.bare_saved_models import golden, saved_model

FILES = {"saved_model.pb", "variables/variables.data-00000-of-00001", "variables/variables.index"}


def content(directory: Path, warm_up: Path | None = None) -> Content:
    return Content(listed(directory), path_digest(directory)[0], {WARM_UP: warm_up} if warm_up else {})


class StoreConformance:
    """A subclass gives the fixtures `store`, of an empty base path that does not exist yet, and `publish`, which publishes there."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        return saved_model(tmp_path / "source")

    def test_nothing_is_there_at_first(self, store: Store) -> None:
        assert (store.names(), store.names("3"), versions(store), store.read("3/saved_model.pb")) == (set(), set(), {}, None)
        store.remove("nothing")
        store.discard(3)
        assert not store.intact(3, {"saved_model.pb": FileEntry(0, "sha256:0")})

    def test_a_version_placed_is_there_with_its_files(self, store: Store, source: Path, tmp_path: Path) -> None:
        (tmp_path / "warm").write_bytes(b"requests")
        with store.locked(3):
            files = store.place(3, content(source, tmp_path / "warm"))
        assert files.keys() == {*FILES, WARM_UP} and files[WARM_UP] == FileEntry.of(tmp_path / "warm")
        assert store.read(f"3/{WARM_UP}") == b"requests" and store.read("3/saved_model.pb") == (source / "saved_model.pb").read_bytes()
        assert versions(store) == {3: "3"} and store.intact(3, files)
        assert store.place(3, content(source, tmp_path / "warm")) == files

    def test_a_source_of_another_digest_is_not_placed(self, store: Store, source: Path) -> None:
        with pytest.raises(PublishError, match="is not the SavedModel that was asked for: expected sha256:other"):
            store.place(3, Content(listed(source), "sha256:other", {}))
        assert versions(store) == {}

    @pytest.mark.parametrize("file", sorted(FILES))
    def test_a_version_that_lacks_a_file_or_has_one_of_another_size_is_not_intact(self, store: Store, source: Path, file: str) -> None:
        files = store.place(3, content(source))
        store.write(f"3/{file}", b"of another size")
        assert not store.intact(3, files)
        store.remove(f"3/{file}")
        assert not store.intact(3, files)

    def test_a_version_with_a_file_too_many_is_not_intact(self, store: Store, source: Path) -> None:
        files = store.place(3, content(source))
        store.write("3/assets/more", b"more")
        assert not store.intact(3, files)

    def test_a_discarded_version_is_gone_and_the_others_stay(self, store: Store, source: Path) -> None:
        for version in (3, 33):
            store.place(version, content(source))
        store.discard(3)
        assert versions(store) == {33: "33"} and store.names("3") == set()
        assert store.names("33") == {"saved_model.pb", "variables"}

    def test_small_files_are_written_read_listed_and_removed(self, store: Store) -> None:
        store.write("folder/a", b"1")
        store.write("folder/a", b"2")
        store.write("folder/empty", b"")
        assert (store.read("folder/a"), store.read("folder/empty"), store.names("folder")) == (b"2", b"", {"a", "empty"})
        store.remove("folder/a")
        assert (store.read("folder/a"), store.names("folder")) == (None, {"empty"})

    def test_only_numbers_are_versions(self, store: Store) -> None:
        for name in ("7", "00000008", "-9", "1e3", "latest", "9223372036854775808", ".manifests", "٣"):
            store.write(f"{name}/saved_model.pb", b"graph")
        assert versions(store) == {7: "7", 8: "00000008"}

    def test_it_can_be_published_once_and_the_manifest_says_what(
        self, store: Store, source: Path, tmp_path: Path, publish: Callable[..., str]
    ) -> None:
        answers = golden(tmp_path / "golden.json")
        digest = path_digest(source)[0]
        assert publish(source, 3, digest, golden=answers) == publish(source, 3, digest, golden=answers) == f"{store.uri}/3"
        found = manifest.read(store, 3)
        assert found and found.digest == digest and found.files.keys() == {*FILES, WARM_UP} and store.intact(3, found.files)
        other = saved_model(tmp_path / "other", weights=b"others")
        with pytest.raises(PublishError, match="published already, with another content"):
            publish(other, 3, path_digest(other)[0])
        assert store.read("3/variables/variables.data-00000-of-00001") == b"weights"

    def test_a_removal_that_was_begun_is_remembered_until_it_ends_or_the_version_is_published_again(
        self, store: Store, source: Path, publish: Callable[..., str]
    ) -> None:
        digest = path_digest(source)[0]
        publish(source, 3, digest)
        manifest.doom(store, 3)
        assert (manifest.published(store), manifest.doomed(store)) == (set(), {3})
        publish(source, 3, digest)
        assert (manifest.published(store), manifest.doomed(store)) == ({3}, set())
        assert "3.removing" not in store.names(".manifests")
        manifest.doom(store, 3)
        store.discard(3)
        manifest.forget(store, 3)
        assert (manifest.published(store), manifest.doomed(store), versions(store)) == (set(), set(), {})

    def test_a_manifest_alone_is_no_version(self, store: Store, source: Path, publish: Callable[..., str]) -> None:
        digest = path_digest(source)[0]
        publish(source, 3, digest)
        store.discard(3)
        assert manifest.published(store) == set()
        with pytest.raises(PublishError, match="no longer what was published"):
            publish(source, 3, digest)
