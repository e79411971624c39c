"""The evidence pack: whole or not there, the same for the same release, and nothing in it can be changed unseen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from airflow_mlops.artifacts import Artifact, bytes_digest, writer
from airflow_mlops.exceptions import EvidenceInvalid, LedgerError
from airflow_mlops.ledger.chain import GENESIS
from airflow_mlops.ledger.evidence import pack as packs
from airflow_mlops.ledger.evidence.facts import Release, trail
from airflow_mlops.ledger.evidence.pack import Pack, verify
from airflow_mlops.ledger.evidence.score import Statement
from airflow_mlops.ledger.store import Store
from airflow_mlops.records import ResultRef
from tests import fakes
from tests.released import MODEL, PACKAGES, VERSION, Released, tags_of

OWN_FILES = {
    *("SHA256SUMS", "approvals.json", "dataset_card.md", "environment.cdx.json", "index.html", "lineage.json", "manifest.json", "model_card.md"),
    *("records/evaluate.json", "records/robustness.json", "records/train.json", "records/validate.json", "score.json", "statements.json"),
    *("reports/defects.jsonl", "reports/robustness.html", "reports/validation/index.html", "trail.jsonl"),
}
UNBUILT = {"differential report", "model-test report"}


@pytest.fixture
def sqlite(database: Path) -> Iterator[Store]:
    """A ledger on SQLite alone: the questions here are about files."""
    with Store(f"sqlite:///{database}") as store:
        yield store


@pytest.fixture
def released(tmp_path: Path, sqlite: Store) -> Released:
    return Released(tmp_path, sqlite).promoted()


@pytest.fixture
def pack(released: Released) -> Pack:
    return released.pack()


def files(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def read(pack: Pack, name: str) -> str:
    return (pack.path / name).read_text()


def sha256sum(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=path, capture_output=True, text=True, check=False)


def test_a_pack_holds_everything_and_sha256sum_agrees(pack: Pack) -> None:
    assert set(files(pack.path)) == OWN_FILES
    assert (sha256sum(pack.path).returncode, verify(pack.path, pack.digest)) == (0, pack.digest)
    assert len(read(pack, "SHA256SUMS").splitlines()) == len(OWN_FILES) - 1
    assert set(pack.missing) == UNBUILT


def test_code_without_known_authors_is_named_in_the_pack_and_its_card(tmp_path: Path, sqlite: Store) -> None:
    pack = Released(tmp_path, sqlite, training={"code_authors": ()}).promoted().pack()
    assert "its authors could not be kept from approving" in pack.missing["code authors"]
    assert "whose authors are not known" in read(pack, "model_card.md") and "code authors" in read(pack, "index.html")


def test_the_same_release_gives_the_same_bytes_and_another_one_does_not(released: Released) -> None:
    first, second = released.pack("first"), released.pack("second")
    assert first.digest == second.digest
    assert files(first.path) == files(second.path)
    released.happened("served", label="stable", previous=7)
    assert released.pack("third").digest != first.digest


def test_a_pack_that_is_there_is_found_and_never_written_over(released: Released, pack: Pack) -> None:
    before = files(pack.path)
    assert released.pack() == pack
    released.happened("served", label="stable", previous=7)
    with pytest.raises(EvidenceInvalid, match=r"there with other content: expected sha256:\w+, found sha256:\w+\. Evidence is never written over"):
        released.pack()
    assert files(pack.path) == before
    assert [path.name for path in pack.path.parent.iterdir()] == ["pack"]


def test_of_several_writers_at_once_each_finds_the_one_pack(released: Released) -> None:
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(lambda _: released.pack(), range(8)))
    assert {pack.digest for pack in written} == {verify(written[0].path)}
    assert [path.name for path in written[0].path.parent.iterdir()] == ["pack"]


def test_what_a_killed_writer_left_is_removed_and_what_a_live_one_writes_is_not(released: Released) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    where = writer().rpartition("-")[0]
    dead, live = (released.home / "evidence" / f".pack.{where}-{pid}.0a1b2c3d" for pid in (gone.pid, os.getpid()))
    for left in (dead, live):
        (left / "reports").mkdir(parents=True)
    released.pack()
    assert (dead.exists(), live.exists()) == (False, True)


def test_a_write_that_fails_leaves_nothing(released: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(packs, "_flush", full)
    with pytest.raises(OSError, match="No space left"):
        released.pack()
    assert list((released.home / "evidence").iterdir()) == []


def test_a_flipped_bit_in_any_file_is_found_and_the_file_is_named(pack: Pack) -> None:
    for name, content in files(pack.path).items():
        (pack.path / name).write_bytes(bytes([content[0] ^ 1]) + content[1:] if content else b"x")
        with pytest.raises(EvidenceInvalid, match=name):
            verify(pack.path)
        (pack.path / name).write_bytes(content)
    assert verify(pack.path) == pack.digest


def test_a_file_that_is_gone_is_found(pack: Pack) -> None:
    for name, content in files(pack.path).items():
        (pack.path / name).unlink()
        with pytest.raises(EvidenceInvalid, match=name):
            verify(pack.path)
        (pack.path / name).write_bytes(content)


def _link(pack: Path) -> None:
    (pack / "score.json").rename(pack.parent / "elsewhere.json")
    (pack / "score.json").symlink_to(pack.parent / "elsewhere.json")


def _directory_link(pack: Path) -> None:
    (pack / "more").symlink_to(pack / "reports")


def _better_score(pack: Path, *, sums: bool = False) -> None:
    """Claim a better score, with the manifest and perhaps the sums changed to fit."""
    score, manifest = pack / "score.json", json.loads((pack / "manifest.json").read_bytes())
    before = manifest["files"]["score.json"]["sha256"], bytes_digest((pack / "manifest.json").read_bytes())[7:]
    score.write_text(score.read_text().replace('"score": 0', '"score": 7'))
    after = bytes_digest(score.read_bytes())[7:]
    (pack / "manifest.json").write_text((pack / "manifest.json").read_text().replace(before[0], after))
    if sums:
        text = (pack / "SHA256SUMS").read_text().replace(before[0], after)
        (pack / "SHA256SUMS").write_text(text.replace(before[1], bytes_digest((pack / "manifest.json").read_bytes())[7:]))


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (lambda pack: (pack / "reports" / "new.html").write_text("x"), r"reports/new\.html was added"),
        (lambda pack: (pack / ".hidden").write_text("x"), r"\.hidden was added"),
        (_link, r"score\.json changed"),
        (_directory_link, "more was added"),
        (lambda pack: (pack / "score.json").rename(pack / "points.json"), r"points\.json was added; score\.json is missing"),
        (_better_score, r"manifest\.json or SHA256SUMS changed: they do not fit together"),
        (lambda pack: (pack / "manifest.json").write_text("[]"), "is no evidence pack"),
        (lambda pack: (pack / "manifest.json").write_text('{"files": {"a": 1}}'), "is no evidence pack"),
        (shutil.rmtree, "is no evidence pack"),
    ],
)
def test_every_kind_of_tampering_is_found(pack: Pack, attack: Callable[[Path], object], words: str) -> None:
    attack(pack.path)
    with pytest.raises(EvidenceInvalid, match=words):
        verify(pack.path)


def test_a_pack_that_was_forged_whole_differs_from_what_the_trail_says(pack: Pack) -> None:
    _better_score(pack.path, sums=True)
    assert verify(pack.path) != pack.digest
    with pytest.raises(EvidenceInvalid, match=f"the pack's digest is sha256:.*, expected {pack.digest}"):
        verify(pack.path, pack.digest)


def test_of_many_files_that_changed_some_are_named_and_the_rest_counted(pack: Pack) -> None:
    for number in range(14):
        (pack.path / f"added-{number:02}").write_text("x")
    with pytest.raises(EvidenceInvalid, match=r"added-09 was added; and 4 more\."):
        verify(pack.path)


@pytest.mark.parametrize(
    ("stage", "damage", "words"),
    [
        ("evaluate", lambda home: (home / "evaluate" / "result.json").unlink(), "No such file"),
        ("evaluate", lambda home: (home / "evaluate" / "result.json").write_text("{}"), "changed after its stage ended"),
        ("validate", lambda home: shutil.rmtree(home / "data_docs"), "is missing, though a result record names it"),
        ("train", lambda home: (home / "model.keras").write_bytes(b"another"), "changed after it was recorded"),
        ("robustness", lambda home: (home / "report.html").unlink(), "is missing, though a result record names it"),
    ],
)
def test_evidence_that_is_gone_or_changed_is_named_with_the_reason(
    released: Released, stage: str, damage: Callable[[Path], object], words: str
) -> None:
    whole = released.pack("whole")
    damage(released.home)
    pack = released.pack()
    assert set(pack.missing) == {*UNBUILT, stage}
    assert words in pack.missing[stage]
    assert json.loads(read(pack, "manifest.json"))["missing"] == pack.missing
    assert words.replace("'", "&#39;") in read(pack, "index.html")
    assert pack.score.sections.items() <= whole.score.sections.items() if stage == "robustness" else pack.score.sections != whole.score.sections
    assert verify(pack.path) == pack.digest


def test_a_version_from_before_there_was_evidence_says_so_for_each_stage(released: Released) -> None:
    del released.tags["evidence"]
    pack = released.pack()
    assert set(pack.missing) == {*UNBUILT, "references", "validate", "train", "evaluate", "robustness"}
    assert "has no tag 'evidence'" in pack.missing["references"]
    assert pack.score.total == max(verdict.points for verdict in pack.score.verdicts) == 0
    assert set(files(pack.path)) == {name for name in OWN_FILES if not name.startswith(("records/", "reports/", "environment"))}


@pytest.mark.parametrize("tag", ["{", "[]", '{"train": 1}', '{"train": {"uri": "/x"}}'])
def test_a_damaged_tag_is_named(released: Released, tag: str) -> None:
    released.tags["evidence"] = tag
    assert "'evidence' was altered" in released.pack().missing["references"]


def test_records_that_nobody_approved_prove_nothing(released: Released) -> None:
    """Tags can be changed by everybody who can write the registry; what people agreed to cannot."""
    better = fakes.leave_record(released.home / "forged", "evaluate", fakes.evaluation(metrics={"accuracy": 1.0}))
    released.tags |= tags_of({**released.refs, "evaluate": better})
    pack = released.pack()
    assert "names other records than event 2 (approval granted) vouches for" in pack.missing["references"]
    assert "evaluate" in pack.missing
    released.tags["evidence_digest"] = "sha256:0"
    assert "than the tag 'evidence_digest' vouches for" in released.pack("second").missing["references"]


def test_a_version_that_was_compared_anew_is_held_against_its_newest_approval(released: Released) -> None:
    again = fakes.leave_record(released.home / "again", "evaluate", fakes.evaluation(metrics={"accuracy": 0.97}))
    released.tags |= tags_of({**released.refs, "evaluate": again})
    released.promoted()
    assert set(released.pack().missing) == UNBUILT


def test_the_record_of_a_stage_that_this_package_does_not_know_is_kept(released: Released) -> None:
    path = released.home / "drift.json"
    path.write_text("{}")
    released.refs["drift"] = ResultRef("drift", str(path), bytes_digest(b"{}"))
    released.tags = tags_of(released.refs)
    released.promoted()
    assert read(released.pack(), "records/drift.json") == "{}"
    path.write_text("[]")
    assert "changed after its stage ended" in released.pack("second").missing["drift"]


def test_a_report_that_is_too_large_stays_where_it_is_and_the_pack_says_where(released: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "MAX_REPORT_BYTES", Artifact.of(released.home / "data_docs").size)
    large = fakes.artifact(released.home / "large.html", bytes(106))
    robust = fakes.leave_record(released.home, "robustness", fakes.robustness(released.home, report_page=large))
    released.refs["robustness"] = robust
    released.tags = tags_of(released.refs)
    released.promoted()
    pack = released.pack()
    assert pack.missing["robustness report"] == f"Its 106 bytes are more than a pack copies (6); it lies at {released.home}/large.html."
    assert not (pack.path / "reports" / "robustness.html").exists()
    assert (pack.path / "reports" / "validation" / "index.html").exists()


def test_names_that_sha256sum_escapes_are_written_as_it_does(released: Released) -> None:
    for name in ("line\nfeed.html", "back\\slash.html", "carriage\rreturn.html", "ümläut und Leerzeichen.html"):
        (released.home / "data_docs" / name).write_text(name)
    docs = fakes.leave_record(released.home, "validate", fakes.validation(released.home))
    released.refs["validate"] = docs
    released.tags = tags_of(released.refs)
    released.promoted()
    pack = released.pack()
    done = sha256sum(pack.path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert verify(pack.path) == pack.digest


def test_a_release_without_any_event_is_refused(released: Released) -> None:
    with pytest.raises(LedgerError, match="says nothing of digits@8"):
        packs.write(Release(MODEL, 8, "run", released.tags, ()), released.home / "evidence" / "8", {})


def test_the_trail_is_that_of_the_version_and_of_going_back_to_any_version(tmp_path: Path, store: Store) -> None:
    released = Released(tmp_path, store).promoted()
    released.happened("promoted", 6)
    released.happened("rolled back", 6)
    released.happened("evidence", digest="sha256:own")
    with_others = trail(released.store, MODEL, VERSION)
    assert [(json.loads(line)["kind"], json.loads(line)["subject"]) for line in with_others] == [
        ("approved", "digits@7"),
        ("approval granted", "digits@7"),
        ("served", "digits@7"),
        ("promoted", "digits@7"),
        ("rolled back", "digits@6"),
    ]
    assert json.loads(with_others[0])["previous"] == GENESIS
    assert trail(released.store, "digit_", VERSION) == ()


def test_the_environment_is_a_valid_cyclonedx_document_of_the_training(pack: Pack) -> None:
    text = read(pack, "environment.cdx.json")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    assert (document["bomFormat"], document["specVersion"], document["version"]) == ("CycloneDX", "1.6", 1)
    assert {part["name"]: part["version"] for part in document["components"]} == PACKAGES
    assert {part["name"]: (part["type"], part.get("purl")) for part in document["components"]} == {
        "keras": ("library", "pkg:pypi/keras@3.15.1"),
        "python": ("platform", None),
        "typing-extensions": ("library", "pkg:pypi/typing-extensions@4.15.0"),
    }
    assert document["metadata"]["component"]["name"] == "digits"


def test_the_cards_say_what_the_records_say(pack: Pack) -> None:
    model, dataset = read(pack, "model_card.md"), read(pack, "dataset_card.md")
    for words in ("approved by ann", "| accuracy | 0.9500 | 0.9500 |", "epochs 3", "Code abc+dirty", "defect rate 30.0%", "ML Test Score 0"):
        assert words in model
    for words in (
        "digits v1",
        "`sha256:v1`",
        "4/5 expectations hold on 100 rows",
        "* The mean of pixel_3 is 9",
        "80 rows to learn from, 20 held out",
    ):
        assert words in dataset


def test_the_model_card_names_the_formats_that_are_offered_and_why_others_are_not(tmp_path: Path, sqlite: Store) -> None:
    onnx, features = (fakes.artifact(tmp_path / name) for name in ("model.onnx", "features"))
    problems = {"tflite": "The model cannot be offered as 'tflite'. It has an operation of its own."}
    training = {"formats": {"onnx": onnx}, "format_problems": problems, "features": features}
    card = read(Released(tmp_path, sqlite, training=training).promoted().pack(), "model_card.md")
    assert "* Formats that answer as the model does: keras, saved_model, onnx\n" in card
    assert "## Caveats and recommendations\n\n* The model cannot be offered as 'tflite'. It has an operation of its own.\n" in card
    assert f"* Features, a part of the served files: `{features.digest}`" in card


def test_the_lineage_leads_from_the_version_to_the_dataset(pack: Pack, released: Released) -> None:
    lineage = json.loads(read(pack, "lineage.json"))
    stages = lineage["stages"]
    assert {stage: [ref["stage"] for ref in entry["inputs"].values()] for stage, entry in stages.items()} == {
        "evaluate": ["train"],
        "robustness": ["train"],
        "train": ["validate"],
        "validate": [],
    }
    assert {stage: entry["digest"] for stage, entry in stages.items()} == {stage: ref.digest for stage, ref in released.refs.items()}
    assert (lineage["dataset"]["digest"], lineage["code_version"], lineage["runs"]["mlflow"]) == ("sha256:v1", "abc+dirty", "r1")


def test_approvals_are_every_question_and_answer(pack: Pack) -> None:
    assert [(event["kind"], event["actor"]) for event in json.loads(read(pack, "approvals.json"))] == [
        ("approved", "ann"),
        ("approval granted", "digits_release/run 1"),
    ]


def test_the_page_escapes_what_people_wrote_and_its_links_lead_to_files_of_the_pack(released: Released) -> None:
    statement = Statement("<script>alert(1)</script> reviewed", "https://git.example.org/reviews?a=1&b=2")
    pack = released.pack(statements={"privacy_controls": statement})
    page = read(pack, "index.html")
    assert "<script" not in page
    assert "&lt;b&gt;fine&lt;/b&gt;" in page
    links = {part.split('"')[0] for part in page.split('href="')[1:]}
    assert {link for link in links if not link.startswith("https://")} == OWN_FILES - {"index.html"}
