"""Files are believed by their digest, and nobody ever reads half of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_mlops import artifacts
from airflow_mlops.artifacts import (
    ABANDONED_SECONDS,
    Artifact,
    abandoned,
    bytes_digest,
    canonical_json,
    clear_abandoned,
    file_digest,
    path_digest,
    write_atomically,
    writer,
)
from airflow_mlops.exceptions import ResultInvalid


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "saved_model"
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"graph")
    (path / "variables" / "index").write_bytes(b"index")
    return path


def test_a_digest_names_its_algorithm() -> None:
    assert bytes_digest(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_an_untouched_file_and_an_untouched_directory_verify(directory: Path) -> None:
    for path, size in ((directory / "saved_model.pb", 5), (directory, 10)):
        artifact = Artifact.of(path)
        assert artifact.verify() == path
        assert artifact.size == size


def test_a_directory_has_the_digest_of_its_content_wherever_it_lies(directory: Path, tmp_path: Path) -> None:
    before = path_digest(directory)
    assert path_digest(directory.rename(tmp_path / "moved")) == before


@pytest.mark.parametrize("change", ["alter", "add", "remove", "rename"])
def test_every_change_in_a_directory_is_noticed(directory: Path, change: str) -> None:
    artifact = Artifact.of(directory)
    index = directory / "variables" / "index"
    if change == "alter":
        index.write_bytes(b"indEx")
    elif change == "add":
        (directory / "more").write_bytes(b"")
    elif change == "remove":
        index.unlink()
    else:
        index.rename(index.with_name("index2"))
    with pytest.raises(ResultInvalid, match="changed after it was recorded: expected sha256:"):
        artifact.verify()


def test_a_missing_artefact_says_what_to_do(directory: Path) -> None:
    artifact = Artifact.of(directory / "saved_model.pb")
    artifact.path.unlink()
    with pytest.raises(ResultInvalid, match=r"saved_model.pb is missing.*Run the stage"):
        artifact.verify()


@pytest.mark.parametrize("what", ["nothing", "named pipe"])
def test_what_is_neither_file_nor_directory_has_no_digest(tmp_path: Path, what: str) -> None:
    path = tmp_path / "model.keras"
    if what == "named pipe":
        os.mkfifo(path)
    with pytest.raises(ResultInvalid, match=r"model\.keras is neither a file nor a directory"):
        Artifact.of(path)


def test_the_order_of_keys_does_not_change_canonical_json() -> None:
    assert canonical_json({"b": 1, "a": ["ü"]}) == canonical_json({"a": ["ü"], "b": 1}) == '{"a":["ü"],"b":1}'.encode()


def test_canonical_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"accuracy": float("nan")})


def test_a_written_file_is_whole_readable_by_others_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode", "expected"), [(0o022, 0o644, 0o644), (0o077, 0o644, 0o600), (0o022, 0o600, 0o600)])
def test_who_keeps_files_private_keeps_written_ones_private(tmp_path: Path, umask: int, mode: int, expected: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "result.json", b"one", mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "result.json").stat().st_mode & 0o777 == expected


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_digest_is_that_of_a_file_and_nothing_else_is_waited_for(tmp_path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / "x")
    else:
        (tmp_path / "x").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="no regular file"):
        file_digest(tmp_path / "x")


def test_a_disk_that_fills_up_leaves_the_old_content_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(b"old")
    program = (
        "import resource, signal, sys, pathlib\n"
        "from airflow_mlops.artifacts import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_atomically(pathlib.Path(sys.argv[1]), b'x' * 5000)\n"
    )
    failed = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert "File too large" in failed.stderr
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def ended() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_a_killed_writer_left_goes_and_what_a_living_one_is_writing_stays(tmp_path: Path, ended: int) -> None:
    path, here = tmp_path / "result.json", writer().partition("-")[0]
    living, dead, elsewhere = (
        tmp_path / f".result.json.{mark}.abc" for mark in (writer(), f"{here}-{ended}", f"0badcafe-{ended}")
    )  # of another host or container, whose processes cannot be seen from here
    for left in (living, dead, elsewhere):
        left.write_bytes(b"half")
    clear_abandoned(path)
    assert sorted(tmp_path.iterdir()) == sorted([living, elsewhere])
    for left in (living, elsewhere):
        os.utime(left, (0, left.stat().st_mtime - ABANDONED_SECONDS - 60))
    clear_abandoned(path)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_as_young_as_its_newest_file(tmp_path: Path) -> None:
    directory = tmp_path / ".staging"
    (directory / "deep").mkdir(parents=True)
    (directory / "deep" / "file").write_bytes(b"")
    for path in (directory, directory / "deep"):
        os.utime(path, (0, 0))
    assert not abandoned(directory)
    os.utime(directory / "deep" / "file", (0, 0))
    assert abandoned(directory)


def test_the_process_of_another_user_is_alive() -> None:
    assert artifacts._alive(1)


def test_a_system_without_containers_tells_hosts_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(path: Path) -> os.stat_result:
        raise FileNotFoundError(path)

    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(Path, "stat", nothing)
        one = writer()
        elsewhere.setattr("socket.gethostname", lambda: "another")
        assert writer() != one
    assert writer().endswith(f"-{os.getpid()}")
