from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

import pytest

from airflow_mlops.artifacts import path_digest
from airflow_mlops.exceptions import PublishError, SpecError
from airflow_mlops.serving import config, publish
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.publish import ABANDONED_SECONDS, publish_saved_model, remove_version


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    (directory / "variables").mkdir(parents=True)
    (directory / "saved_model.pb").write_bytes(b"graph")
    (directory / "variables" / "variables.index").write_bytes(b"weights")
    return directory


@pytest.fixture
def digest(source: Path) -> str:
    return path_digest(source)[0]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "models" / "digits"


def test_a_published_version_has_the_source_s_digest_and_nothing_else_is_left(source: Path, digest: str, base: Path) -> None:
    published = publish_saved_model(source, base, 3, digest)
    assert published == base / "3" and path_digest(published)[0] == digest
    assert [child.name for child in base.iterdir()] == ["3"]


def test_publishing_the_same_version_again_changes_nothing(source: Path, digest: str, base: Path) -> None:
    before = publish_saved_model(source, base, 3, digest).stat().st_ino
    shutil.rmtree(source)  # not even read again
    assert publish_saved_model(source, base, 3, digest).stat().st_ino == before


def test_a_version_with_another_content_is_never_overwritten(source: Path, digest: str, base: Path) -> None:
    publish_saved_model(source, base, 3, digest)
    (source / "saved_model.pb").write_bytes(b"another graph")
    with pytest.raises(PublishError, match="never overwritten"):
        publish_saved_model(source, base, 3, path_digest(source)[0])
    assert path_digest(base / "3")[0] == digest


def test_a_source_that_was_altered_is_not_published(source: Path, digest: str, base: Path) -> None:
    (source / "saved_model.pb").write_bytes(b"altered")
    with pytest.raises(PublishError, match=f"expected {digest}"):
        publish_saved_model(source, base, 3, digest)
    assert list(base.iterdir()) == []


def test_a_disk_that_refuses_leaves_nothing_half_published(source: Path, base: Path) -> None:
    (source / "variables" / "large").write_bytes(bytes(100_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(PublishError, match="File too large"):
            publish_saved_model(source, base, 3, path_digest(source)[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(base.iterdir()) == []


def test_a_missing_source_is_a_publish_error(digest: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="could not be published"):
        publish_saved_model(tmp_path / "nowhere", base, 3, digest)


def test_leftovers_of_a_crash_are_removed_but_not_another_version_s_copy_under_way(source: Path, digest: str, base: Path) -> None:
    for name in (".staging-3-dead", ".staging-4-alive", ".staging-5-old"):
        (base / name).mkdir(parents=True)
    os.utime(base / ".staging-5-old", (0, base.stat().st_mtime - ABANDONED_SECONDS - 60))
    publish_saved_model(source, base, 3, digest)
    assert sorted(child.name for child in base.iterdir()) == [".staging-4-alive", "3"]


def test_a_copy_under_way_of_files_that_are_old_is_not_taken_for_abandoned(
    source: Path, digest: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(source, (0, source.stat().st_mtime - ABANDONED_SECONDS - 60))
    check, others = publish._check, iter([4])

    def check_while_another_version_is_published(path: Path, digest: str) -> None:
        for version in others:
            publish_saved_model(source, base, version, digest)
        check(path, digest)

    monkeypatch.setattr(publish, "_check", check_while_another_version_is_published)
    publish_saved_model(source, base, 3, digest)
    assert sorted(child.name for child in base.iterdir()) == ["3", "4"]


def test_a_copy_that_vanishes_while_leftovers_are_looked_for_is_no_error(source: Path, digest: str, base: Path) -> None:
    base.mkdir(parents=True)
    (base / ".staging-4-gone").symlink_to("nowhere")  # listed, and not there when asked for its time
    assert publish_saved_model(source, base, 3, digest) == base / "3"


@pytest.mark.parametrize(("base_path", "version"), [(Path("relative"), 1), (Path("/absolute"), -1)])
def test_an_impossible_place_is_refused(source: Path, digest: str, base_path: Path, version: int) -> None:
    with pytest.raises(SpecError):
        publish_saved_model(source, base_path, version, digest)


def test_only_a_version_outside_the_configuration_can_be_removed(source: Path, digest: str, base: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    for version in (3, 4):
        publish_saved_model(source, base, version, digest)
    config.write(file, ServerConfig((ModelConfig("digits", str(base), (4,), {"stable": 4}),)))
    with pytest.raises(PublishError, match="in use"):
        remove_version(base, 4, file)
    remove_version(base, 3, file)
    remove_version(base, 3, file)  # again: nothing to do
    assert [child.name for child in base.iterdir()] == ["4"]
