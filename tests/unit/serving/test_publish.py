from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_mlops import artifacts
from airflow_mlops.artifacts import ABANDONED_SECONDS, path_digest
from airflow_mlops.exceptions import PublishError, SpecError
from airflow_mlops.serving import directory_store, manifest, warmup
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.directory_store import DirectoryStore
from airflow_mlops.serving.publish import publish_saved_model
from airflow_mlops.serving.stores import open_store
from airflow_mlops.serving.usage import Usage
from airflow_mlops.serving.warmup import WARM_UP
from tests.bare_saved_models import golden, graph, saved_model, signature, tensor
from tests.publisher import Publishers

INT_INPUT = {"serving_default": signature({"x": tensor("DT_INT64")})}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved_model(tmp_path / "source")


@pytest.fixture
def digest(source: Path) -> str:
    return path_digest(source)[0]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "models" / "digits"


def visible(base: Path) -> list[str]:
    """Return what the server would see, and what was left lying about."""
    return sorted(child.name for child in base.iterdir() if child.name != ".manifests")


def serving(base: Path | str, *versions: int, **labels: int) -> Usage:
    return Usage.of(ServerConfig((ModelConfig("digits", str(base), versions, labels),)), base)


def test_a_published_version_has_the_source_s_digest_and_nothing_else_is_left(source: Path, digest: str, base: Path) -> None:
    assert publish_saved_model(source, base, 3, digest) == str(base / "3")
    assert path_digest(base / "3")[0] == digest
    assert visible(base) == ["3"]


def test_the_manifest_names_every_file_with_size_and_digest(source: Path, digest: str, base: Path, tmp_path: Path) -> None:
    publish_saved_model(source, f"file://{base}", 3, digest, golden=golden(tmp_path / "golden.json"))
    written = json.loads((base / ".manifests" / "3.json").read_bytes())
    assert (written["schema_version"], written["version"], written["digest"]) == (1, 3, digest)
    assert sorted(written["files"]) == [WARM_UP, "saved_model.pb", "variables/variables.data-00000-of-00001", "variables/variables.index"]
    assert written["files"]["variables/variables.index"] == {"size": 16, "digest": path_digest(source / "variables" / "variables.index")[0]}


def test_publishing_the_same_version_again_changes_nothing(source: Path, digest: str, base: Path, tmp_path: Path) -> None:
    answers = golden(tmp_path / "golden.json")
    publish_saved_model(source, base, 3, digest, golden=answers)
    before = (base / "3").stat().st_ino
    shutil.rmtree(source)  # not even read again
    publish_saved_model(source, base, 3, digest, golden=answers)
    publish_saved_model(source, base, 3, digest)
    assert (base / "3").stat().st_ino == before


def test_a_version_with_another_content_is_never_overwritten(source: Path, digest: str, base: Path, tmp_path: Path) -> None:
    publish_saved_model(source, base, 3, digest)
    other = saved_model(tmp_path / "other", weights=b"other weights")
    with pytest.raises(PublishError, match=r"published already, with another content: expected .* found .* never overwritten"):
        publish_saved_model(other, base, 3, path_digest(other)[0])
    assert path_digest(base / "3")[0] == digest


def test_a_published_version_that_somebody_altered_is_reported(source: Path, digest: str, base: Path) -> None:
    publish_saved_model(source, base, 3, digest)
    (base / "3" / "variables" / "variables.index").write_bytes(b"other")
    with pytest.raises(PublishError, match="no longer what was published"):
        publish_saved_model(source, base, 3, digest)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"schema_version": 1, "version": 4, "digest": "sha256:0", "files": {}}'])
def test_a_manifest_that_is_none_of_this_version_is_reported(source: Path, digest: str, base: Path, data: bytes) -> None:
    publish_saved_model(source, base, 3, digest)
    (base / ".manifests" / "3.json").write_bytes(data)
    with pytest.raises(PublishError, match="manifest"):
        publish_saved_model(source, base, 3, digest)


def test_a_version_of_this_digest_that_lies_there_already_is_taken_for_published(source: Path, digest: str, base: Path) -> None:
    shutil.copytree(source, base / "3")  # as the releases of this package before manifests left it
    publish_saved_model(source, base, 3, digest)
    assert manifest.published(open_store(base)) == {3}


def test_another_directory_in_the_version_s_place_is_left_as_it_is(source: Path, digest: str, base: Path, tmp_path: Path) -> None:
    saved_model(base / "3", weights=b"of somebody else")
    before = path_digest(base / "3")
    with pytest.raises(PublishError, match="is there already and is not the SavedModel of digest"):
        publish_saved_model(source, base, 3, digest)
    assert path_digest(base / "3") == before and manifest.published(open_store(base)) == set()


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_has_no_files_in_the_version_s_place_is_left_as_it_is_too(source: Path, digest: str, base: Path, make: Callable[[Path], None]) -> None:
    base.mkdir(parents=True)
    make(base / "3")
    before = (base / "3").stat().st_ino
    with pytest.raises(PublishError, match="There is no SavedModel in"):
        publish_saved_model(source, base, 3, digest)
    assert (base / "3").stat().st_ino == before


def test_a_source_that_was_altered_is_not_published(source: Path, digest: str, base: Path) -> None:
    (source / "variables" / "variables.index").write_bytes(b"altered")
    with pytest.raises(PublishError, match=f"The source of .* expected {digest}, found sha256"):
        publish_saved_model(source, base, 3, digest)
    assert visible(base) == []


@pytest.mark.parametrize("file", ["saved_model.pb", "variables/variables.index", WARM_UP])
def test_a_byte_that_flips_while_it_is_copied_is_found(
    source: Path, digest: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    copyfile = shutil.copyfile

    def flip(path: Path, target: Path) -> None:
        copyfile(path, target)
        if target.as_posix().endswith(f"/copy/{file}"):
            data = bytearray(target.read_bytes())
            data[-1] ^= 1
            target.write_bytes(data)

    monkeypatch.setattr(shutil, "copyfile", flip)
    with pytest.raises(PublishError, match=r"The copy for version 3 under .* differs from its source"):
        publish_saved_model(source, base, 3, digest, golden=golden(tmp_path / "golden.json"))
    assert visible(base) == []


def test_a_disk_that_refuses_leaves_nothing_half_published(source: Path, base: Path) -> None:
    (source / "variables" / "large").write_bytes(bytes(100_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(PublishError, match="File too large"):
            publish_saved_model(source, base, 3, path_digest(source)[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert visible(base) == []
    publish_saved_model(source, base, 3, path_digest(source)[0])


def test_a_disk_for_temporary_files_that_is_gone_is_reported(source: Path, digest: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pytest.raises(PublishError, match=r"could not be made ready to publish: .*nowhere"):
        publish_saved_model(source, base, 3, digest)


def without_graph(source: Path) -> None:
    (source / "saved_model.pb").unlink()


def with_broken_graph(source: Path) -> None:
    (source / "saved_model.pb").write_bytes(b"graph")


def with_nothing_to_ask(source: Path) -> None:
    (source / "saved_model.pb").write_bytes(graph({}))


def with_a_link_out(source: Path) -> None:
    (source / "assets" / "words.txt").symlink_to("/etc/passwd")


def with_a_linked_folder(source: Path) -> None:
    (source / "more").symlink_to("/etc")


def with_a_pipe(source: Path) -> None:
    os.mkfifo(source / "assets" / "pipe")  # reading it would never end


def with_a_line_break(source: Path) -> None:
    (source / "assets" / "two\nlines").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "There is no SavedModel in"),
        (without_graph, "is no SavedModel: expected a file saved_model.pb"),
        (with_broken_graph, r"saved_model\.pb is broken"),
        (with_nothing_to_ask, "has no signature, so nobody could ask it"),
        (with_a_link_out, "found a symbolic link"),
        (with_a_linked_folder, "found a symbolic link"),
        (with_a_pipe, "expected regular files with plain names, found something else"),
        (with_a_line_break, "expected regular files with plain names"),
    ],
)
def test_a_source_that_is_no_savedmodel_is_refused_before_anything_is_copied(
    source: Path, base: Path, spoil: Callable[[Path], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(source)
    digest = path_digest(source)[0] if source.exists() else "sha256:any"
    monkeypatch.delattr(shutil, "copyfile")
    with pytest.raises(PublishError, match=words):
        publish_saved_model(source, base, 3, digest)
    assert visible(base) == []


def test_an_altered_source_is_refused_before_anything_of_it_is_read(source: Path, digest: str, base: Path) -> None:
    (source / "saved_model.pb").write_bytes(b"\xffno message")
    with pytest.raises(PublishError, match=f"is not the SavedModel that was asked for: expected {digest}"):
        publish_saved_model(source, base, 3, digest)
    assert visible(base) == []


def test_the_source_s_own_directory_may_be_a_link(source: Path, digest: str, base: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    publish_saved_model(tmp_path / "link", base, 3, digest)
    assert path_digest(base / "3")[0] == digest


@pytest.mark.parametrize(
    ("base_path", "version"), [("relative", 1), ("/absolute", -1), ("/absolute", 2**63), ("file://relative", 1), ("what", 1), ("a::b://c", 1)]
)
def test_an_impossible_place_is_refused(source: Path, digest: str, base_path: str, version: int) -> None:
    with pytest.raises(SpecError):
        publish_saved_model(source, base_path, version, digest)


# ---------------------------------------------------------------------------------------------------------------------- warm-up


def test_the_golden_rows_become_the_version_s_warm_up(source: Path, digest: str, base: Path, tmp_path: Path) -> None:
    publish_saved_model(source, base, 3, digest, golden=golden(tmp_path / "golden.json"))
    requests = [log.predict_log.request for log in warmup.read(base / "3" / WARM_UP)]
    assert [(request.model_spec.name, request.inputs["x"].tensor_shape.dim[0].size) for request in requests] == [("digits", 1), ("digits", 2)]


def test_a_savedmodel_s_own_warm_up_is_kept(source: Path, base: Path, tmp_path: Path) -> None:
    warmup.write(source / WARM_UP, [])
    publish_saved_model(source, base, 3, path_digest(source)[0], golden=golden(tmp_path / "golden.json"))
    assert warmup.read(base / "3" / WARM_UP) == []


def test_a_warm_up_that_the_server_could_not_read_is_refused(source: Path, base: Path) -> None:
    (source / WARM_UP).parent.mkdir()
    (source / WARM_UP).write_bytes(b"not a record at all")
    with pytest.raises(PublishError, match="is no usable warm-up file: at byte 0"):
        publish_saved_model(source, base, 3, path_digest(source)[0])
    assert visible(base) == []


def test_golden_rows_that_the_model_does_not_take_are_refused(source: Path, digest: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="No warm-up requests can be made"):
        publish_saved_model(source, base, 3, digest, golden=golden(tmp_path / "golden.json", [[1.0]]))
    other = saved_model(tmp_path / "other", {"classify": signature()})
    with pytest.raises(PublishError, match="no signature 'serving_default' for its golden answers, only classify"):
        publish_saved_model(other, base, 3, path_digest(other)[0], golden=golden(tmp_path / "golden.json"))
    assert visible(base) == []


# ---------------------------------------------------------------------------------------------------------------------- signatures


@pytest.mark.parametrize(
    ("usage_of", "compared"),
    [
        (lambda base: serving(base, 1, 2, stable=1), 1),
        (lambda base: serving(base, 1, 2, canary=1), 2),
        (lambda base: serving(base, 1), 1),
        (lambda base: serving(base), 2),  # the server chooses: it serves the highest
        (lambda base: Usage(), None),
    ],
)
def test_a_version_that_clients_of_the_serving_one_cannot_ask_is_refused(
    base: Path, tmp_path: Path, usage_of: Callable[[Path], Usage], compared: int | None
) -> None:
    same, other = saved_model(tmp_path / "same"), saved_model(tmp_path / "other", INT_INPUT)
    publish_saved_model(same, base, 1, path_digest(same)[0])
    publish_saved_model(other, base, 2, path_digest(other)[0])
    new, ok = (other, same) if compared == 1 else (same, other)
    if compared is None:
        publish_saved_model(new, base, 3, path_digest(new)[0], usage=usage_of(base))
        return
    with pytest.raises(PublishError, match=rf"Version 3 would break clients of version {compared} of .*: Input 'x' of 'serving_default' took "):
        publish_saved_model(new, base, 3, path_digest(new)[0], usage=usage_of(base))
    assert visible(base) == ["1", "2"]
    publish_saved_model(ok, base, 3, path_digest(ok)[0], usage=usage_of(base))
    publish_saved_model(new, base, 4, path_digest(new)[0], usage=usage_of(base), signature_change_allowed=True)
    assert visible(base) == ["1", "2", "3", "4"]


def test_without_the_serving_version_s_files_nothing_is_published(source: Path, digest: str, base: Path) -> None:
    with pytest.raises(PublishError, match=r"1/saved_model\.pb is missing, although the server's configuration names that version"):
        publish_saved_model(source, base, 2, digest, usage=serving(base, 1, stable=1))
    publish_saved_model(source, base, 2, digest, usage=serving(base, 2, stable=2))  # it is not compared with itself
    (base / "00000007").mkdir()  # as the server also reads a number
    (base / "00000007" / "saved_model.pb").write_bytes(graph())
    publish_saved_model(source, base, 8, digest, usage=serving(base, 7))


# ---------------------------------------------------------------------------------------------------------------------- crashes and rivals


def test_a_publisher_killed_at_any_moment_leaves_no_half_version_and_the_next_one_publishes_it(source: Path, digest: str, tmp_path: Path) -> None:
    answers = golden(tmp_path / "golden.json")
    with Publishers(tmp_path) as publishers:
        order = {"source": source, "version": 3, "digest": digest, "golden": answers}
        status, operations = publishers.publish(**order, base_path=tmp_path / "whole" / "digits")
        assert status == 0 and int(operations) > 40
        expected, seen = path_digest(tmp_path / "whole" / "digits" / "3"), set()
        for kill_at in range(int(operations)):
            base = tmp_path / str(kill_at) / "digits"
            assert publishers.publish(**order, base_path=base, kill_at=kill_at)[0] == -9
            whole = (base / "3").exists()
            assert not whole or path_digest(base / "3") == expected
            seen.add((whole, manifest.published(open_store(base)) == {3}))
            publish_saved_model(source, base, 3, digest, golden=answers)
            assert visible(base) == ["3"] and path_digest(base / "3") == expected
            assert sorted(path.name for path in (base / ".manifests").iterdir()) == ["3.json", "3.lock"]
    assert seen == {(False, False), (True, False)}  # after its last file operation, which shows the manifest, it is published


def test_publishers_of_one_version_at_once_all_find_it_published(source: Path, digest: str, base: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        places = list(pool.map(lambda _: publish_saved_model(source, base, 3, digest), range(12)))
    assert set(places) == {str(base / "3")}
    assert visible(base) == ["3"] and path_digest(base / "3")[0] == digest


def test_of_two_contents_for_one_version_at_once_one_is_published(base: Path, tmp_path: Path) -> None:
    sources = [saved_model(tmp_path / str(number), weights=bytes([number]) * 100_000) for number in range(4)]
    digests = [path_digest(path)[0] for path in sources]

    def attempt(number: int) -> str:
        try:
            publish_saved_model(sources[number], base, 3, digests[number])
        except PublishError as error:
            assert "published already, with another content" in str(error)
            return ""
        return digests[number]

    with ThreadPoolExecutor(4) as pool:
        (winner,) = filter(None, pool.map(attempt, range(4)))
    assert path_digest(base / "3")[0] == winner and visible(base) == ["3"]


def test_who_waited_for_a_version_that_was_removed_holds_a_lock_that_others_see(source: Path, digest: str, base: Path) -> None:
    publish_saved_model(source, base, 3, digest)
    store, entered, leave = DirectoryStore(base), threading.Event(), threading.Event()

    def wait_and_hold() -> None:
        with store.locked(3):
            entered.set()
            leave.wait(20)

    with ThreadPoolExecutor(1) as pool:
        with store.locked(3):
            held = pool.submit(wait_and_hold)
            assert not entered.wait(0.1)
            store.discard(3)  # with the lock's file
        assert entered.wait(20)
        with (base / ".manifests" / "3.lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        leave.set()
        held.result()


@pytest.mark.parametrize("rival_has", ["the same", "another"])
def test_where_the_file_system_has_no_locks_the_rename_decides(
    source: Path, digest: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rival_has: str
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    def overtaken(path: Path, target: Path) -> None:
        copyfile(path, target)
        if not (base / "3").exists():
            shutil.copytree(
                source if rival_has == "the same" else saved_model(tmp_path / "rival", weights=b"rival"), base / "3", copy_function=copyfile
            )

    copyfile = shutil.copyfile
    monkeypatch.setattr(directory_store.fcntl, "flock", no_locks)
    monkeypatch.setattr(shutil, "copyfile", overtaken)
    if rival_has == "the same":
        publish_saved_model(source, base, 3, digest)
        assert manifest.published(open_store(base)) == {3}
    else:
        with pytest.raises(PublishError, match="is there already and is not the SavedModel"):
            publish_saved_model(source, base, 3, digest)
    assert visible(base) == ["3"]


def gone() -> int:
    """Return the id of a process that has ended."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


def test_leftovers_of_a_crash_are_removed_but_not_another_version_s_copy_under_way(source: Path, digest: str, base: Path) -> None:
    ended, here = gone(), artifacts.writer()
    dead = [f".staging-{version}-{here.partition('-')[0]}-{ended}-0a1b2c3d" for version in (3, 4)]
    alive = f".staging-4-{here}-0a1b2c3d"
    for name in (*dead, alive, ".staging-5-old"):
        (base / name).mkdir(parents=True)
    os.utime(base / ".staging-5-old", (0, base.stat().st_mtime - ABANDONED_SECONDS - 60))
    publish_saved_model(source, base, 3, digest)
    assert visible(base) == [alive, "3"]


def test_a_copy_that_another_host_is_still_making_stays_whatever_version_it_is_of(
    source: Path, digest: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # which locks nothing between these two hosts, and says nothing
    copyfile, other_is_here = shutil.copyfile, iter([True])

    def copy_while_another_host_publishes(path: Path, target: Path) -> None:
        if next(other_is_here, False):
            for directory in base.glob(".staging-*"):  # its files keep it alive: a directory is no newer for what is written deep in it
                os.utime(directory, (0, 0))
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(artifacts, "_where", lambda: "0badcafe")
                elsewhere.setattr(artifacts, "_alive", lambda pid: False)  # there, this process cannot be seen
                publish_saved_model(source, base, 3, digest)
                publish_saved_model(source, base, 4, digest)
        copyfile(path, target)

    monkeypatch.setattr(shutil, "copyfile", copy_while_another_host_publishes)
    publish_saved_model(source, base, 3, digest)
    assert visible(base) == ["3", "4"]
    assert path_digest(base / "3")[0] == digest


def test_a_copy_under_way_of_files_that_are_old_is_not_taken_for_abandoned(
    source: Path, digest: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (source, *source.rglob("*")):
        os.utime(path, (0, source.stat().st_mtime - ABANDONED_SECONDS - 60))
    copyfile, others = shutil.copyfile, iter([4])

    def copy_while_another_version_is_published(path: Path, target: Path) -> None:
        for version in others:
            publish_saved_model(source, base, version, digest)
        copyfile(path, target)

    monkeypatch.setattr(shutil, "copyfile", copy_while_another_version_is_published)
    publish_saved_model(source, base, 3, digest)
    assert visible(base) == ["3", "4"]


def test_a_copy_that_vanishes_while_leftovers_are_looked_for_is_no_error(source: Path, digest: str, base: Path) -> None:
    base.mkdir(parents=True)
    (base / ".staging-4-gone").symlink_to("nowhere")  # listed, and not there when asked for its time
    assert publish_saved_model(source, base, 3, digest) == str(base / "3")
