"""A version is believed only when every file is what the manifest says."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.data import snapshot
from airflow_mlops.data.snapshot import contents, open_version, publish_version, read_manifest, verify, write_manifest
from airflow_mlops.exceptions import DatasetError, DatasetNotFound, ManifestInvalid, ManifestMismatch, SpecError
from airflow_mlops.results import DatasetVersion

SHA = "0" * 64


def write_raw(directory: Path, files: Any, **changes: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    manifest = {"schema_version": 1, "dataset": "digits", "files": files} | changes
    (directory / "manifest.json").write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))
    return directory


def entry(path: str, size: Any = 1, sha256: str = SHA) -> dict[str, Any]:
    return {"path": path, "size": size, "sha256": sha256}


def test_a_published_version_opens_with_its_name_dataset_and_place(version: DatasetVersion, inbox: Path) -> None:
    assert open_version(inbox / "v1") == version
    assert (version.name, version.dataset, version.uri) == ("v1", "digits", str(inbox / "v1"))
    assert [path.name for path in inbox.iterdir()] == ["v1"], "the staging directory is gone"


def test_the_same_content_under_another_name_is_the_same_version(tmp_path: Path) -> None:
    one = publish_version({"b.csv": b"b", "a.csv": b"a"}, tmp_path, name="monday", dataset="digits")
    two = publish_version({"a.csv": b"a", "b.csv": b"b"}, tmp_path, name="tuesday", dataset="digits")
    assert one.digest == two.digest


@pytest.mark.parametrize("other", [{"a.csv": b"A"}, {"b.csv": b"a"}, {"a.csv": b"a", "b.csv": b"b"}])
def test_other_content_names_or_files_are_another_version(tmp_path: Path, other: dict[str, bytes]) -> None:
    one = publish_version({"a.csv": b"a"}, tmp_path, name="one", dataset="digits")
    assert publish_version(other, tmp_path, name="two", dataset="digits").digest != one.digest


def test_a_rewrite_under_the_same_name_is_a_new_version_and_the_old_one_no_longer_verifies(version: DatasetVersion) -> None:
    directory = Path(version.uri)
    (directory / "part-0.csv").write_bytes(b"pixel_0,pixel_1,label\n9,9,9\n")
    write_manifest(directory, "digits")
    assert open_version(directory).digest != version.digest
    with pytest.raises(ManifestMismatch, match=version.digest):
        verify(version)
    with pytest.raises(ManifestMismatch, match="rewritten under the same name"):
        list(contents(version))


def test_an_unchanged_version_verifies_and_yields_its_files_in_sorted_order(version: DatasetVersion) -> None:
    assert verify(version) == Path(version.uri)
    assert [path for path, _ in contents(version)] == ["more/part-1.csv", "part-0.csv"]


def test_a_directory_is_published_with_its_subdirectories_and_without_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "source" / "deep").mkdir(parents=True)
    (tmp_path / "source" / "deep" / "manifest.json").write_bytes(b"data that has this name")
    (tmp_path / "source" / ".DS_Store").write_bytes(b"x")
    version = publish_version(tmp_path / "source", tmp_path / "inbox", name="v1", dataset="digits")
    assert [path for path, _ in contents(version)] == ["deep/manifest.json"]


def test_publishing_again_is_no_error_for_the_same_content_and_one_for_other_content(tmp_path: Path) -> None:
    first = publish_version({"a.csv": b"a"}, tmp_path, name="v1", dataset="digits")
    assert publish_version({"a.csv": b"a"}, tmp_path, name="v1", dataset="digits") == first
    with pytest.raises(DatasetError, match="already holds"):
        publish_version({"a.csv": b"A"}, tmp_path, name="v1", dataset="digits")
    assert open_version(tmp_path / "v1") == first


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "x" * 129])
def test_an_unusable_version_or_dataset_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="unusable"):
        publish_version({"a.csv": b"a"}, tmp_path, name=name, dataset="digits")
    with pytest.raises(SpecError, match="unusable"):
        write_manifest(tmp_path, name)


@pytest.mark.parametrize("path", ["../a.csv", "/a.csv", ".hidden.csv", "manifest.json"])
def test_publishing_an_unsafe_or_hidden_path_is_refused_and_leaves_nothing(tmp_path: Path, path: str) -> None:
    with pytest.raises(ManifestInvalid):
        publish_version({path: b"a"}, tmp_path / "inbox", name="v1", dataset="digits")
    assert list((tmp_path / "inbox").iterdir()) == []
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize("files", [{}, {"a.csv": b""}])
def test_publishing_no_data_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(ManifestInvalid, match="0 bytes"):
        publish_version(files, tmp_path, name="v1", dataset="digits")


def test_a_missing_file_is_named(version: DatasetVersion) -> None:
    (Path(version.uri) / "more/part-1.csv").unlink()
    with pytest.raises(ManifestMismatch, match=r"more/part-1\.csv is missing"):
        open_version(Path(version.uri))


def test_a_file_whose_directory_became_a_file_is_missing(version: DatasetVersion) -> None:
    (Path(version.uri) / "more/part-1.csv").unlink()
    (Path(version.uri) / "more").rmdir()
    (Path(version.uri) / "more").write_bytes(b"x")
    with pytest.raises(ManifestMismatch, match="is missing"):
        open_version(Path(version.uri))


def test_a_truncated_file_is_named_with_both_sizes_and_nothing_is_hashed(version: DatasetVersion) -> None:
    path = Path(version.uri) / "part-0.csv"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    hashed: list[Path] = []
    with pytest.raises(ManifestMismatch, match=rf"part-0\.csv has the wrong size: expected {size} bytes, found {size - 1}"):
        open_version(Path(version.uri), digest_of=lambda path: str(hashed.append(path)))
    assert hashed == []


def test_an_altered_file_of_the_same_size_is_named_with_both_digests(version: DatasetVersion) -> None:
    path = Path(version.uri) / "part-0.csv"
    path.write_bytes(path.read_bytes().replace(b"5", b"6"))
    for use in (lambda: open_version(Path(version.uri)), lambda: list(contents(version))):
        with pytest.raises(ManifestMismatch, match=r"part-0\.csv was altered: expected sha256:\w{64}, found sha256:\w{64}"):
            use()


def test_a_named_pipe_is_refused_instead_of_being_waited_for(tmp_path: Path) -> None:
    write_raw(tmp_path, [entry("pipe.csv")])
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ManifestMismatch, match="not a regular file"):
        open_version(tmp_path)


@pytest.mark.parametrize(
    "path", ["../a.csv", "/etc/passwd", "a/../b.csv", "a\\b.csv", "./a.csv", "a//b.csv", "", ".", "C:x.csv", "manifest.json", "a\0b"]
)
def test_a_manifest_with_an_unsafe_path_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ManifestInvalid, match="unsafe path"):
        read_manifest(write_raw(tmp_path, [entry(path)]))


@pytest.mark.parametrize("link", ["a.csv", "sub", "manifest.json", "."])
def test_a_symbolic_link_anywhere_on_the_path_is_refused(tmp_path: Path, link: str) -> None:
    real = tmp_path / "real"
    (real / "sub").mkdir(parents=True)
    for path in ("a.csv", "sub/b.csv"):
        (real / path).write_bytes(b"x")
    write_manifest(real, "digits")
    directory = real if link != "." else tmp_path / "link"
    target = tmp_path / "elsewhere"
    (real / link).rename(target) if link != "." else None
    (real / link).symlink_to(target) if link != "." else directory.symlink_to(real)
    with pytest.raises(ManifestInvalid, match="symbolic link"):
        open_version(directory)


def test_a_manifest_is_not_written_over_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x")
    (tmp_path / "b.csv").symlink_to(tmp_path / "a.csv")
    with pytest.raises(ManifestInvalid, match=r"b\.csv is a symbolic link"):
        write_manifest(tmp_path, "digits")


def test_a_manifest_is_not_written_over_a_named_pipe_and_does_not_wait_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ManifestInvalid, match=r"pipe\.csv is not a regular file"):
        write_manifest(tmp_path, "digits")


@pytest.mark.parametrize(
    ("files", "changes", "said"),
    [
        ([], {}, "0 bytes"),
        ([entry("a.csv", 0)], {}, "0 bytes"),
        ([entry("a.csv"), entry("a.csv")], {}, "more than once"),
        ([entry("a.csv")], {"schema_version": 2}, "schema version 2"),
        ([entry("a.csv")], {"schema_version": None}, "schema_version: Field required"),
        ([entry("a.csv")], {"dataset": None}, "dataset: Field required"),
        ([entry("a.csv")], {"dataset": "../x"}, "dataset"),
        (None, {}, "files: Field required"),
        ([{"path": "a.csv", "size": 1}], {}, r"files\.0\.sha256: Field required"),
        ([entry("a.csv", "1")], {}, r"files\.0\.size"),
        ([entry("a.csv", -1)], {}, r"files\.0\.size"),
        ([entry("a.csv", 1, "abc")], {}, r"files\.0\.sha256"),
        ([entry("a.csv")], {"note": "x"}, "note"),
    ],
)
def test_a_manifest_that_is_not_one_is_refused_with_the_field(tmp_path: Path, files: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ManifestInvalid, match=said):
        read_manifest(write_raw(tmp_path, files, **changes))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 1, "data'])
def test_half_a_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ManifestInvalid, match="not a dataset manifest"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ManifestInvalid, match="not a regular file"):
        read_manifest(tmp_path)


def test_without_a_manifest_the_version_is_not_found_and_may_still_come(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DatasetNotFound) as caught:
            read_manifest(directory)
        assert caught.value.retryable


def test_files_that_the_manifest_does_not_name_change_nothing_and_are_not_read(version: DatasetVersion) -> None:
    (Path(version.uri) / "_SUCCESS").write_bytes(b"")
    (Path(version.uri) / "stray.csv").write_bytes(b"1,2,3")
    assert open_version(Path(version.uri)) == version
    assert "stray.csv" not in dict(contents(version))


def test_snapshot_arrival_and_suites_import_neither_pandas_nor_great_expectations_nor_numpy() -> None:
    script = (
        "import sys; import airflow_mlops.data.snapshot, airflow_mlops.data.arrival, airflow_mlops.data.suites;"
        "print([name for name in ('pandas', 'numpy', 'great_expectations', 'airflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_digest_is_that_of_the_sorted_canonical_file_list_and_nothing_else() -> None:
    manifest = snapshot.Manifest(1, "digits", (snapshot.FileEntry("b", 1, SHA), snapshot.FileEntry("a", 2, SHA)))
    text = f'[{{"path":"a","sha256":"{SHA}","size":2}},{{"path":"b","sha256":"{SHA}","size":1}}]'
    assert manifest.digest == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_what_publishing_a_directory_would_leave_out_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.csv").write_bytes(b"a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.csv").write_bytes(b"b")
    (tmp_path / "source" / "more").symlink_to(tmp_path / target)
    with pytest.raises(ManifestInvalid, match=r"source/more is not a regular file"):
        publish_version(tmp_path / "source", tmp_path / "inbox", name="v1", dataset="digits")
    assert list((tmp_path / "inbox").iterdir()) == []


def test_a_link_to_a_file_is_published_as_a_copy(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "b.csv").symlink_to(tmp_path / "a.csv")
    version = publish_version(tmp_path / "source", tmp_path / "inbox", name="v1", dataset="digits")
    assert list(contents(version)) == [("b.csv", b"a")]
