"""A complete version is announced once, a broken one after it settled, a half-written one not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_mlops.artifacts import file_digest
from airflow_mlops.data.arrival import (
    AnnounceBroken,
    AnnounceComplete,
    ArrivalPolicy,
    Candidate,
    DigestCache,
    Heading,
    HeadingCache,
    Observation,
    candidates,
    decide,
    heading,
    scan,
)
from airflow_mlops.data.snapshot import publish_version, write_manifest
from airflow_mlops.exceptions import DatasetNotFound, SpecError
from airflow_mlops.results import DatasetVersion

POLICY = ArrivalPolicy(settle_seconds=60)
LATER = 10_000_000_000.0  # epoch seconds long after any file of these tests


def complete(name: str, key: str, changed_at: float = 0.0) -> Candidate:
    return Candidate(name, key, DatasetVersion("digits", name, key, f"/inbox/{name}"), changed_at=changed_at)


def broken(name: str, changed_at: float, key: str = "broken") -> Candidate:
    return Candidate(name, key, problem="a.csv was altered", changed_at=changed_at)


@pytest.mark.parametrize(
    ("candidates", "announced", "now", "expected"),
    [
        ((), (), 100.0, []),
        ((complete("v1", "d1"),), (), 0.0, ["d1"]),
        ((complete("v1", "d1"),), ("d1",), 100.0, []),
        ((complete("v10", "d10", 10.0), complete("v9", "d9", 9.0)), (), 20.0, ["d9"]),
        ((complete("v10", "d10", 10.0), complete("v9", "d9", 9.0)), ("d9",), 20.0, ["d10"]),
        ((complete("v1", "d1"), complete("copy", "d1")), (), 0.0, ["d1"]),
        ((complete("v1", "rewritten"),), ("d1",), 0.0, ["rewritten"]),
        ((broken("v1", 100.0),), (), 159.9, []),
        ((broken("v1", 100.0),), (), 160.0, ["broken"]),
        ((broken("v1", 100.0),), ("broken",), 160.0, []),
        ((broken("v1", 100.0),), (), 50.0, []),
        ((complete("v1", "d1"),), ("broken",), 160.0, ["d1"]),
        ((broken("a", 100.0), complete("b", "d1")), (), 100.0, ["d1"]),
    ],
    ids=[
        "nothing is there",
        "a complete version needs no settling",
        "what was announced is not announced again",
        "of several the oldest is announced first",
        "then the next",
        "the same content twice is one version",
        "a rewrite is a new version",
        "a mismatch may still be an upload",
        "a settled mismatch is broken",
        "a broken version is told once",
        "a clock behind the files' waits",
        "a repaired version is complete after all",
        "a broken version does not hold up the others",
    ],
)
def test_decide(candidates: tuple[Candidate, ...], announced: tuple[str, ...], now: float, expected: list[str]) -> None:
    assert [action.key for action in decide(Observation(candidates, frozenset(announced)), now, POLICY)] == expected


def test_a_broken_version_is_announced_as_broken_with_its_reason_and_a_complete_one_with_its_record() -> None:
    observation = Observation((complete("a", "d1"), broken("b", 0.0)))
    assert decide(observation, 60.0, POLICY) == (
        AnnounceComplete("d1", DatasetVersion("digits", "a", "d1", "/inbox/a")),
        AnnounceBroken("broken", "b", "a.csv was altered"),
    )


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_an_impossible_settling_time_is_refused(seconds: float) -> None:
    with pytest.raises(SpecError, match="settle_seconds"):
        ArrivalPolicy(settle_seconds=seconds)
    with pytest.raises(SpecError, match="hold_seconds"):
        ArrivalPolicy(hold_seconds=seconds)


def test_a_scan_finds_the_complete_version_and_nothing_else(version: DatasetVersion, inbox: Path) -> None:
    (inbox / ".staging-x").mkdir()
    (inbox / ".staging-x" / "manifest.json").write_text("{")
    (inbox / "still-uploading").mkdir()
    (inbox / "still-uploading" / "a.csv").write_bytes(b"half a fi")
    (inbox / "a-file.csv").write_bytes(b"x")
    written = (inbox / "v1" / "manifest.json").stat().st_ctime
    assert scan(inbox) == [Candidate("v1", version.digest, version, changed_at=written)]


def test_complete_versions_can_be_ordered_by_when_they_were_published(inbox: Path) -> None:
    for name in ("b", "a"):
        publish_version({"a.csv": name.encode()}, inbox, name=name, dataset="digits")
        time.sleep(0.02)
    (inbox / "b" / "stray").touch()
    assert [candidate.name for candidate in sorted(scan(inbox), key=lambda candidate: candidate.changed_at)] == ["b", "a"]


def test_a_half_written_version_is_announced_as_soon_as_its_last_bytes_are_there(inbox: Path, tmp_path: Path) -> None:
    whole = publish_version({"a.csv": b"0,1\n" * 100, "b.csv": b"2,3\n"}, tmp_path / "elsewhere", name="v1", dataset="digits")
    source, target = Path(whole.uri), inbox / "v1"
    target.mkdir()
    (target / "manifest.json").write_bytes((source / "manifest.json").read_bytes())
    (target / "a.csv").write_bytes((source / "a.csv").read_bytes()[:50])
    now = time.time()
    assert decide(Observation(tuple(scan(inbox))), now, POLICY) == ()

    (target / "a.csv").write_bytes((source / "a.csv").read_bytes())
    (target / "b.csv").write_bytes((source / "b.csv").read_bytes())
    (action,) = decide(Observation(tuple(scan(inbox))), now, POLICY)
    assert isinstance(action, AnnounceComplete)
    assert (action.version.digest, action.version.uri) == (whole.digest, str(target))


def test_a_truncated_version_is_told_as_broken_once_and_announced_when_repaired(version: DatasetVersion, inbox: Path) -> None:
    path = Path(version.uri) / "part-0.csv"
    data = path.read_bytes()
    path.write_bytes(data[:5])
    (action,) = decide(Observation(tuple(scan(inbox))), LATER, POLICY)
    assert isinstance(action, AnnounceBroken)
    assert action.name == "v1"
    assert "part-0.csv has the wrong size" in action.reason
    announced = frozenset({action.key})
    assert decide(Observation(tuple(scan(inbox)), announced), LATER, POLICY) == ()
    path.write_bytes(data)
    assert [action.key for action in decide(Observation(tuple(scan(inbox)), announced), LATER, POLICY)] == [version.digest]


def test_an_upload_that_keeps_old_modification_times_still_counts_as_a_change_of_now(version: DatasetVersion, inbox: Path) -> None:
    (Path(version.uri) / "part-0.csv").write_bytes(b"half")
    for path in (Path(version.uri), *Path(version.uri).rglob("*")):
        os.utime(path, (0, 0))
    assert scan(inbox)[0].changed_at == pytest.approx(time.time(), abs=30)


@pytest.mark.parametrize(
    "manifest", ["{", '{"schema_version": 1, "dataset": "digits", "files": [{"path": "../x", "size": 1, "sha256": "' + "0" * 64 + '"}]}']
)
def test_an_invalid_manifest_is_broken_and_does_not_stop_the_others(version: DatasetVersion, inbox: Path, manifest: str) -> None:
    (inbox / "bad").mkdir()
    (inbox / "bad" / "manifest.json").write_text(manifest)
    actions = decide(Observation(tuple(scan(inbox))), LATER, POLICY)
    assert {type(action) for action in actions} == {AnnounceBroken, AnnounceComplete}


def test_a_version_waits_until_a_run_has_taken_the_one_before_it_or_the_wait_is_over() -> None:
    policy = ArrivalPolicy(settle_seconds=60, hold_seconds=100)
    candidates = (complete("v2", "d2", 2.0), broken("v3", 3.0))
    waiting = Observation(candidates, frozenset({"d1"}), waiting_since=1000.0)
    assert [action.key for action in decide(waiting, 1099.0, policy)] == ["broken"]
    assert [action.key for action in decide(waiting, 1100.0, policy)] == ["d2", "broken"]


def test_a_manifest_that_is_a_named_pipe_or_a_directory_is_broken_instead_of_waited_for(inbox: Path) -> None:
    (inbox / "directory" / "manifest.json").mkdir(parents=True)
    (inbox / "pipe").mkdir()
    os.mkfifo(inbox / "pipe" / "manifest.json")
    actions = decide(Observation(tuple(scan(inbox))), LATER, POLICY)
    assert [type(action) for action in actions] == [AnnounceBroken, AnnounceBroken]


def test_a_version_behind_a_symbolic_link_is_broken(version: DatasetVersion, inbox: Path) -> None:
    (inbox / "latest").symlink_to(version.uri)
    actions = {action.key: action for action in decide(Observation(tuple(scan(inbox))), LATER, POLICY)}
    assert set(map(type, actions.values())) == {AnnounceBroken, AnnounceComplete}
    assert isinstance(actions[version.digest], AnnounceComplete)


def test_a_manifest_that_is_a_link_to_nothing_is_broken_for_every_way_to_read_it(inbox: Path) -> None:
    (inbox / "v1").mkdir()
    (inbox / "v1" / "manifest.json").symlink_to(inbox / "nowhere")
    for heading_of in (heading, HeadingCache()):
        (found,) = scan(inbox, wanted=unknown(), heading_of=heading_of)
        assert "symbolic link" in (found.problem or "")


@pytest.mark.parametrize("name", ["missing", "a-file", "x" * 300], ids=["missing", "a file", "impossible"])
def test_an_inbox_that_can_not_be_listed_is_not_an_empty_one_and_may_be_there_later(tmp_path: Path, name: str) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(DatasetNotFound, match=r"The inbox .* can not be listed"):
        scan(tmp_path / name)


def test_polling_an_unchanged_inbox_hashes_nothing_and_a_change_is_seen(version: DatasetVersion, inbox: Path) -> None:
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return file_digest(path)

    cache = DigestCache(counting, racy_seconds=0.0)
    assert [len(scan(inbox, digest_of=cache)) for _ in range(5)] == [1] * 5
    assert sorted(hashed) == ["part-0.csv", "part-1.csv"]

    path = Path(version.uri) / "part-0.csv"
    before = path.stat()
    time.sleep(0.05)
    path.write_bytes(path.read_bytes().replace(b"5", b"6"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert scan(inbox, digest_of=cache)[0].problem is not None, "same name, size and modification time, and yet altered"
    assert len(hashed) == 3


def test_a_file_written_a_moment_ago_is_hashed_each_time(version: DatasetVersion, inbox: Path) -> None:
    hashed: list[Path] = []
    cache = DigestCache(lambda path: hashed.append(path) or file_digest(path), racy_seconds=1000.0)
    scan(inbox, digest_of=cache)
    scan(inbox, digest_of=cache)
    assert len(hashed) == 4


def test_a_rewrite_under_the_same_name_is_announced_again(version: DatasetVersion, inbox: Path) -> None:
    (Path(version.uri) / "part-0.csv").write_bytes(b"other rows")
    write_manifest(Path(version.uri), "digits")
    (action,) = decide(Observation(tuple(scan(inbox)), frozenset({version.digest})), 0.0, POLICY)
    assert isinstance(action, AnnounceComplete)
    assert action.version.digest != version.digest


def unknown(*known: str) -> Callable[[Heading], bool]:
    return lambda found: found.dataset == "digits" and found.digest not in known


def unread(path: Path) -> str:
    raise AssertionError(f"{path} was read")


def test_the_files_of_versions_that_nobody_wants_are_not_looked_at(version: DatasetVersion, inbox: Path) -> None:
    publish_version({"a.csv": b"0,1"}, inbox, name="letters", dataset="letters")
    (Path(version.uri) / "part-0.csv").write_bytes(b"altered")
    assert scan(inbox, wanted=unknown(version.digest), digest_of=unread) == []
    assert [candidate.name for candidate in scan(inbox, wanted=unknown())] == ["v1"]


def test_candidates_are_examined_one_at_a_time_from_either_end(inbox: Path) -> None:
    for name in ("b", "c", "a"):
        publish_version({f"{name}.csv": name.encode()}, inbox, name=name, dataset="digits")
        time.sleep(0.02)
    hashed: list[str] = []
    digest_of = DigestCache(lambda path: hashed.append(path.name) or file_digest(path))  # type: ignore[func-returns-value]
    assert next(candidates(inbox, digest_of=digest_of)).name == "b"
    assert next(candidates(inbox, newest_first=True, digest_of=digest_of)).name == "a"
    assert hashed == ["b.csv", "a.csv"]


def test_polling_reads_a_manifest_again_only_after_it_was_rewritten(version: DatasetVersion, inbox: Path) -> None:
    read: list[str] = []

    def reading(path: Path) -> Heading:
        read.append(path.parent.name)
        return heading(path)

    cache = HeadingCache(reading, racy_seconds=0.0)
    polls = [scan(inbox, wanted=unknown(version.digest), digest_of=unread, heading_of=cache) for _ in range(5)]
    assert (polls, read) == ([[]] * 5, ["v1"])

    (Path(version.uri) / "part-0.csv").write_bytes(b"other rows")
    write_manifest(Path(version.uri), "digits")
    (found,) = scan(inbox, wanted=unknown(version.digest), heading_of=cache)
    assert found.version is not None
    assert (found.name, read) == ("v1", ["v1", "v1"])


def test_a_version_rewritten_while_it_is_examined_is_what_it_is_now(version: DatasetVersion, inbox: Path) -> None:
    def outdated(path: Path) -> Heading:
        return Heading("digits", "sha256:before the rewrite")

    assert scan(inbox, wanted=unknown(version.digest), heading_of=outdated) == []
    assert [candidate.version for candidate in scan(inbox, wanted=unknown(), heading_of=outdated)] == [version]
