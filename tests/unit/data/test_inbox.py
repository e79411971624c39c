"""One version is examined as often as it changes, and whatever lies in the inbox, the others are seen."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.data import inbox as inbox_module
from airflow_mlops.data import manifest
from airflow_mlops.data.arrival import Candidate
from airflow_mlops.data.inbox import Inbox, in_order
from airflow_mlops.data.reading import Digests, Headings, NotRead
from airflow_mlops.data.snapshot import publish_version, read_manifest, write_manifest
from airflow_mlops.exceptions import DatasetNotFound
from airflow_mlops.ledger.store import Store
from airflow_mlops.results import DatasetVersion

SHA = "0" * 64


class Clock:
    """Epoch seconds, as the test says."""

    now = 1e9

    def __call__(self) -> float:
        return self.now


def look(root: Path, **settings: Any) -> dict[str, Candidate]:
    """Return by name what one first look at an inbox finds."""
    inbox = Inbox(root, **settings)
    return {candidate.name: candidate for candidate in inbox.examine(inbox.listed())}


def age(root: Path) -> None:
    """Let the files be older than a tick of the clock."""
    time.sleep(0.05)


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was read, in the order of reading; every file counts as old at once."""
    read: list[str] = []
    heading = inbox_module._read_heading

    def noting(path: Path) -> Any:
        read.append(path.parent.name)
        return heading(path)

    monkeypatch.setattr(inbox_module, "_read_heading", noting)
    monkeypatch.setattr(Headings, "old", lambda *_: True)
    monkeypatch.setattr(inbox_module, "RACY_SECONDS", 0.0)
    digest = Digests.__call__

    def hashing(self: Digests, path: Path, deadline: float) -> str:
        before = self.of(path, path.lstat()).value
        value = digest(self, path, deadline)
        if before is None:
            read.append(path.name)
        return value

    monkeypatch.setattr(Digests, "__call__", hashing)
    return read


def test_a_look_finds_the_complete_version_and_nothing_else(version: DatasetVersion, inbox: Path) -> None:
    (inbox / ".staging-x").mkdir()
    (inbox / ".staging-x" / "manifest.json").write_text("{")
    (inbox / "still-uploading").mkdir()
    (inbox / "still-uploading" / "a.csv").write_bytes(b"half a fi")
    (inbox / "a-file.csv").write_bytes(b"x")
    assert look(inbox) == {"v1": Candidate("v1", version.digest, version)}


def test_a_half_written_version_is_complete_as_soon_as_its_last_bytes_are_there(inbox: Path, tmp_path: Path) -> None:
    whole = publish_version({"a.csv": b"0,1\n" * 100, "b.csv": b"2,3\n"}, tmp_path / "elsewhere", name="v1", dataset="digits")
    source, target = Path(whole.uri), inbox / "v1"
    target.mkdir()
    (target / "manifest.json").write_bytes((source / "manifest.json").read_bytes())
    (target / "a.csv").write_bytes((source / "a.csv").read_bytes()[:50])
    looking = Inbox(inbox)
    (half,) = looking.examine(looking.listed())
    assert "a.csv has the wrong size" in (half.problem or "")
    for name in ("a.csv", "b.csv"):
        (target / name).write_bytes((source / name).read_bytes())
    (found,) = looking.examine(looking.listed())
    assert (found.key, found.version and found.version.uri) == (whole.digest, str(target))


def test_a_broken_version_has_one_key_until_its_manifest_changes(version: DatasetVersion, inbox: Path) -> None:
    path = Path(version.uri) / "part-0.csv"
    data = path.read_bytes()
    path.write_bytes(data[:5])
    key = look(inbox)["v1"].key
    path.write_bytes(data[:4])
    assert look(inbox)["v1"].key == key
    looking = Inbox(inbox)
    assert looking.examine(looking.listed(), frozenset({key})) == []
    write_manifest(Path(version.uri), "digits")
    (Path(version.uri) / "part-0.csv").write_bytes(data)
    assert look(inbox)["v1"].key not in (key, version.digest)


def test_how_long_a_problem_is_the_same_is_measured_by_our_clock_and_begins_again_with_every_change(version: DatasetVersion, inbox: Path) -> None:
    clock, path = Clock(), Path(version.uri) / "part-0.csv"
    looking = Inbox(inbox, clock=clock)

    def since() -> float:
        clock.now += 100.0
        (candidate,) = looking.examine(looking.listed())
        return candidate.since - 1e9

    path.write_bytes(b"1")
    for name in ("part-0.csv", "manifest.json", "."):
        os.utime(Path(version.uri) / name, (4e9, 4e9))
    assert [since() for _ in range(3)] == [100.0] * 3
    path.write_bytes(b"12")
    assert [since() for _ in range(2)] == [400.0] * 2
    (Path(version.uri) / "more" / "part-1.csv").write_bytes(b"a file after it")
    assert [since() for _ in range(2)] == [600.0] * 2
    clock.now -= 5000.0
    assert since() == 700.0 - 5000.0 + 100.0, "a clock that was set back"


@pytest.mark.parametrize("times", [(0, 0), (4e9, 4e9), (2**33 * 100, 2**33 * 100)], ids=["1970", "2096", "far"])
def test_times_of_files_decide_nothing(version: DatasetVersion, inbox: Path, times: tuple[float, float]) -> None:
    for path in (Path(version.uri), *Path(version.uri).rglob("*")):
        os.utime(path, times)
    assert look(inbox)["v1"].version == version


def test_what_is_unchanged_is_not_read_again_and_a_change_of_the_same_size_and_time_is_seen(
    version: DatasetVersion, inbox: Path, reading: list[str]
) -> None:
    clock = Clock()
    looking = Inbox(inbox, clock=clock)
    for _ in range(5):
        clock.now += 100.0
        assert [candidate.version for candidate in looking.examine(looking.listed())] == [version]
    assert sorted(reading) == ["part-0.csv", "part-1.csv", "v1"]
    path = Path(version.uri) / "part-0.csv"
    before = path.stat()
    age(inbox)
    path.write_bytes(path.read_bytes().replace(b"5", b"6"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    clock.now += 100.0
    assert looking.examine(looking.listed())[0].problem is not None
    assert sorted(reading) == ["part-0.csv", "part-0.csv", "part-1.csv", "v1"]


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"schema_version": 1, "dataset": "digits", "files": []}'])
def test_a_manifest_that_is_none_is_read_once(inbox: Path, reading: list[str], text: str) -> None:
    (inbox / "bad").mkdir(parents=True)
    (inbox / "bad" / "manifest.json").write_text(text)
    looking = Inbox(inbox, clock=Clock())
    assert [len(looking.examine(looking.listed())) for _ in range(4)] == [1] * 4
    assert reading == ["bad"]


def test_a_version_with_a_wrong_file_is_examined_once_until_that_file_changes(
    version: DatasetVersion, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Headings, "old", lambda *_: True)
    monkeypatch.setattr(inbox_module, "RACY_SECONDS", 0.0)
    (Path(version.uri) / "part-0.csv").unlink()
    looking, opened = Inbox(inbox, clock=Clock()), list[Path]()
    looking.examine(looking.listed())
    monkeypatch.setattr(inbox_module, "read_manifest", lambda path: opened.append(path) or read_manifest(path))
    for _ in range(3):
        looking.examine(looking.listed())
    assert opened == []
    (Path(version.uri) / "part-0.csv").write_bytes(b"x")
    looking.examine(looking.listed())
    assert opened == [inbox / "v1"]  # the manifest is parsed again, and the file is wrong in another way


def test_a_file_written_a_moment_ago_is_read_once_more(version: DatasetVersion) -> None:
    digests, path = Digests(racy_seconds=1000.0), Path(version.uri) / "part-0.csv"
    whole = digests(path, float("inf"))
    content = path.read_bytes()
    before = path.stat()
    path.write_bytes(bytes(len(content)))
    known = digests.of(path, before)
    known.signature = (*digests.of(path, path.lstat()).signature[:2], *known.signature[2:])
    assert digests(path, float("inf")) != whole


def test_a_long_file_is_read_in_pieces_by_one_look_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(os.urandom(3 * 2**20 + 5))
    digests, looks = Digests(racy_seconds=0.0), 0
    while True:
        looks += 1
        try:
            digest = digests(path, deadline=0.0)
            break
        except NotRead:
            assert looks < 10
    assert digest == Digests()(path, float("inf")) and looks == 4


def test_a_long_file_that_changes_between_two_looks_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(bytes(3 * 2**20))
    digests = Digests(racy_seconds=0.0)
    with pytest.raises(NotRead):
        digests(path, deadline=0.0)
    age(tmp_path)
    path.write_bytes(b"1" + bytes(3 * 2**20 - 1))
    assert digests(path, float("inf")) == Digests()(path, float("inf"))


def test_a_look_that_takes_too_long_has_seen_the_small_versions_and_continues_with_the_large_ones(
    inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_version({"a.csv": os.urandom(3 * 2**20)}, inbox, name="a-large", dataset="digits")
    publish_version({"a.csv": b"1"}, inbox, name="b-small", dataset="digits")
    listed = Inbox(inbox).listed()
    ticks = itertools.count()  # every question for the time takes a second
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    looking = Inbox(inbox, look_seconds=3.0)
    looks = [[candidate.name for candidate in looking.examine(listed)] for _ in range(5)]
    assert looks[0] == ["b-small"] and looks[-1] == ["b-small", "a-large"]


def test_a_listing_that_takes_too_long_has_read_the_small_manifests_and_continues_with_the_large_ones(
    inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Headings, "old", lambda *_: True)
    for name, num_files in (("a-large", 50), ("b-small", 1), ("c-medium", 7)):
        publish_version({f"{number}.csv": b"1" for number in range(num_files)}, inbox, name=name, dataset="digits")
    ticks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    looking = Inbox(inbox, look_seconds=4.0)
    looks = [[one.directory.name for one in looking.listed()] for _ in range(3)]
    assert looks[0][0] == "b-small" and len(looks[0]) < 3 and looks[-1] == ["a-large", "b-small", "c-medium"]


def test_what_could_not_be_read_for_the_moment_is_looked_at_again(version: DatasetVersion, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looking = Inbox(inbox, clock=Clock())

    def failing(path: Path) -> Any:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(looking._headings, "_read", failing)
        (found,) = looking.examine(looking.listed())
        assert "cannot be read" in (found.problem or "")
    assert [candidate.version for candidate in looking.examine(looking.listed())] == [version]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_we_may_not_read_is_broken_until_we_may(version: DatasetVersion, inbox: Path) -> None:
    looking = Inbox(inbox)
    for path in (inbox / "v1", inbox / "v1" / "manifest.json", inbox / "v1" / "part-0.csv"):
        mode = path.stat().st_mode
        path.chmod(0)
        (found,) = looking.examine(looking.listed())
        assert "cannot be read" in (found.problem or "") and "permissions" in (found.problem or "")
        path.chmod(mode)
        assert [candidate.version for candidate in looking.examine(looking.listed())] == [version]


def listing(*paths: str, size: int = 1) -> bytes:
    return json.dumps({"schema_version": 1, "dataset": "digits", "files": [{"path": path, "size": size, "sha256": SHA} for path in paths]}).encode()


def raw(directory: Path, data: bytes) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "manifest.json").write_bytes(data)


def named(name: bytes) -> Callable[[Path], None]:
    def make(inbox: Path) -> None:
        directory = Path(os.fsdecode(os.fsencode(inbox) + b"/" + name))
        directory.mkdir()
        (directory / "a.csv").write_bytes(b"x")
        write_manifest(directory, "digits")

    return make


def saying(data: bytes) -> Callable[[Path], None]:
    return lambda inbox: raw(inbox / "odd", data)


def special(kind: str) -> Callable[[Path], None]:
    def make(inbox: Path) -> None:
        directory = inbox / "odd"
        directory.mkdir()
        role, what = kind.split()
        target = directory / ("manifest.json" if role == "manifest" else "a.csv")
        if role == "file":
            raw(directory, listing("a.csv"))
        if what == "pipe":
            os.mkfifo(target)
        elif what == "socket":
            here = Path.cwd()
            os.chdir(directory)
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(target.name)
            os.chdir(here)
        elif what == "directory":
            target.mkdir()
        elif what == "loop":
            target.symlink_to(target.name)
        elif what == "device":
            target.symlink_to("/dev/zero")

    return make


ODD: dict[str, Callable[[Path], None]] = {
    "a name that is not UTF-8": named(b"v\xff\xfe1"),
    "a name with a newline": named(b"v\n1"),
    "a name with an escape sequence": named(b"v\x1b[31m"),
    "a name that turns the direction": named("v\u202e1".encode()),
    "a name of 255 bytes that are not UTF-8": named(b"\xff" * 255),
    "a name of one line separator": named("\u2028".encode()),
    "deep nesting": saying(b"[" * 200_000),
    "deep nesting of objects": saying(b'{"a":' * 200_000),
    "a number of 5000 digits": saying(listing("a").replace(b'"size": 1', b'"size": ' + b"9" * 5000)),
    "a size beyond all files": saying(listing("a", size=2**60)),
    "half a surrogate in a path": saying(listing("a").replace(b'"a"', b'"a\\ud800"')),
    "NUL in a path": saying(listing("a\0b")),
    "NUL between the tokens": saying(b"\0" * 100),
    "a path of 3000 characters": saying(listing("a" * 3000)),
    "a part of 300 characters": saying(listing("a/" + "b" * 300)),
    "a path of 40,000 parts": saying(listing("a/" * 40_000 + "b")),
    "a path of 1 MB": saying(listing("a" * 2**20)),
    "a path with control characters": saying(listing("a\x1b[31m\n.csv")),
    "a path that turns the direction": saying(listing("a\u202e.csv")),
    "200,000 files": saying(listing(*map(str, range(200_000)))),
    "400,000 fields": saying(b"{" + b",".join(b'"%x":1' % i for i in range(400_000)) + b"}"),
    "300,000 numbers for files": saying(b'{"schema_version":1,"dataset":"d","files":[' + b",".join([b"1"] * 300_000) + b"]}"),
    "17 MB of blanks": saying(b" " * 17 * 2**20),
    "one field of 15 MB": saying(b'{"' + b"z" * 15 * 2**20 + b'":1}'),
    "no UTF-8": saying(b'{"dataset": "\xff\xfe"}'),
    **{
        f"a {kind.replace(' ', ' that is a ')}": special(kind)
        for kind in (
            "manifest pipe",
            "manifest socket",
            "manifest directory",
            "manifest loop",
            "manifest device",
            "file pipe",
            "file socket",
            "file directory",
            "file loop",
            "file device",
        )
    },
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())
def test_whatever_lies_next_to_it_a_version_is_seen_and_oddities_are_reported_in_words_that_print(
    make: Callable[[Path], None], version: DatasetVersion, inbox: Path
) -> None:
    make(inbox)
    found = look(inbox)
    good, (odd,) = found.pop("v1"), found.values()
    assert good.version == version
    assert odd.problem is not None and odd.version is None
    for said, limit in ((odd.name, 250), (odd.problem, 2000), (odd.key, 500)):
        assert said.isprintable() and 0 < len(said) <= limit
        said.encode()


def test_entries_that_lead_nowhere_or_round_in_circles_do_not_hide_the_others(version: DatasetVersion, inbox: Path) -> None:
    (inbox / "loop").symlink_to("loop")
    (inbox / "nowhere").symlink_to("/nowhere/at/all")
    (inbox / "file").symlink_to(inbox / "v1" / "part-0.csv")
    (inbox / "latest").symlink_to(version.uri)
    os.mkfifo(inbox / "pipe")
    found = look(inbox)
    assert found["v1"].version == version
    assert "symbolic link" in (found["latest"].problem or "") and len(found) == 2


def test_a_file_that_becomes_a_pipe_while_it_is_looked_at_is_not_waited_for(version: DatasetVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(version.uri) / "part-0.csv"
    digests, status = Digests(), path.lstat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "lstat", lambda _: status)
    with pytest.raises(NotRead):
        digests(path, float("inf"))


def test_a_manifest_that_becomes_a_pipe_or_a_link_while_it_is_opened_is_not_waited_for_nor_followed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(manifest.ManifestInvalid, match="not a regular file"):
        manifest.read_regular(tmp_path / "pipe", 100)
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match=r"Too many levels|\[Errno 40\]"):
        manifest.read_regular(tmp_path / "link", 100)


def test_a_version_that_is_removed_or_swapped_between_listing_and_looking_is_left_out(version: DatasetVersion, inbox: Path) -> None:
    looking = Inbox(inbox)
    listed = looking.listed()
    publish_version({"a.csv": b"other"}, inbox, name="v2", dataset="digits")
    shutil.rmtree(inbox / "v1")
    assert looking.examine(listed) == []
    (inbox / "v2").rename(inbox / "v1")
    assert looking.examine(listed) == []
    (found,) = looking.examine(looking.listed())
    assert found.version is not None and found.version.name == "v1" and found.key != version.digest


def test_versions_that_are_gone_are_forgotten(version: DatasetVersion, inbox: Path) -> None:
    looking = Inbox(inbox)
    for number in range(20):
        publish_version({"a.csv": str(number).encode()}, inbox, name=f"x{number}", dataset="digits")
        looking.examine(looking.listed())
        shutil.rmtree(inbox / f"x{number}")
    looking.examine(looking.listed())
    assert [len(looking._headings._known), len(looking._digests._known), len(looking._verdicts)] == [1, 2, 1]


@pytest.mark.parametrize("name", ["missing", "a-file", "x" * 300], ids=["missing", "a file", "impossible"])
def test_an_inbox_that_cannot_be_listed_is_not_an_empty_one_and_may_be_there_later(tmp_path: Path, name: str) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(DatasetNotFound, match=r"The inbox .* cannot be listed"):
        look(tmp_path / name)


def test_a_crowd_of_entries_costs_no_more_than_its_listing(version: DatasetVersion, inbox: Path, reading: list[str]) -> None:
    for number in range(5_000):
        (inbox / f"{number}.csv").touch()
    for number in range(500):
        (inbox / f"{number}").mkdir()
    looking = Inbox(inbox)
    assert [one.directory.name for one in looking.listed()] == ["v1"]
    assert reading == ["v1"]


def test_the_order_is_that_of_the_ledger_and_of_names_for_what_it_sees_at_once(inbox: Path, store: Store) -> None:
    def order() -> list[str]:
        return [one.directory.name for one, _ in in_order(store, Inbox(inbox).listed(), "digits")]

    for name in ("v10", "v9", "letters"):
        publish_version({"a.csv": name.encode()}, inbox, name=name, dataset="digits" if name.startswith("v") else "letters")
    assert order() == ["v9", "v10"]
    publish_version({"a.csv": b"new"}, inbox, name="a", dataset="digits")
    (inbox / "v9").chmod(0o700)
    os.utime(inbox / "v9" / "manifest.json", (4e9, 4e9))
    shutil.copytree(inbox / "v9", inbox.parent / "backup", copy_function=os.link)
    assert order() == ["v9", "v10", "a"]
    (inbox / "v9").rename(inbox / "zzz")
    assert order() == ["zzz", "v10", "a"], "the same content is the same version"


def test_names_people_use_are_names(inbox: Path) -> None:
    names = ["2026-01-01", "größer", "数据", "with blanks", "כיתה", "x" * 255, "a&b", "~", "-rf"]
    for number, name in enumerate(names):
        named(name.encode())(inbox)
        (inbox / name / "a.csv").write_bytes(str(number).encode())
        write_manifest(inbox / name, "digits")
    assert {name for name, candidate in look(inbox).items() if candidate.version} == set(names)
    assert sys.getfilesystemencoding() == "utf-8"
