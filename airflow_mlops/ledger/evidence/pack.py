"""The pack: written whole or not at all, never written over, and verified down to the last file.

``manifest.json`` names every file with its digest and size, and what is missing; ``SHA256SUMS`` names the manifest, too, for ``sha256sum -c``.
The digest of a pack is that of ``SHA256SUMS``: whoever forges a whole pack changes it, and it stands in the audit trail.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_mlops.artifacts import Artifact, abandoned, bytes_digest, file_digest, path_digest, writer
from airflow_mlops.exceptions import EvidenceInvalid
from airflow_mlops.ledger.evidence.cards import as_json, documents
from airflow_mlops.ledger.evidence.facts import Facts, Release, collect
from airflow_mlops.ledger.evidence.page import page
from airflow_mlops.ledger.evidence.score import Score, Statement, score
from airflow_mlops.results import RobustnessResult, ValidationResult

SCHEMA_VERSION = 1
MANIFEST, SUMS = "manifest.json", "SHA256SUMS"
MAX_REPORT_BYTES = 64 << 20  # a pack is kept for years; the data docs of a wide table have some megabytes
SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class Pack:
    """A written pack: its directory, its digest, its score, and what is missing in it, with the reason."""

    path: Path
    digest: str
    score: Score
    missing: Mapping[str, str]


def write(release: Release, path: Path, statements: Mapping[str, Statement]) -> Pack:
    """Write the evidence of `release` to the directory `path`, or find it there with the same content.

    :raises EvidenceInvalid: `path` is there with other content.
    :raises SpecError: a statement is about no test of the rubric.
    """
    facts = collect(release)
    judged = score(facts, statements)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    staging = path.parent / f".{path.name}.{writer()}.{secrets.token_hex(4)}"
    try:
        reports, left_out = _copy_reports(facts, staging / "reports")
        missing = {**facts.problems, **left_out}
        files = {**documents(facts, judged, statements), "index.html": page(facts, judged, missing, reports)}
        for name, data in files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(data)
        digest = _seal(staging, facts, judged, missing)
        _place(staging, path, digest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # after an error, whose words count; what stays is removed by the next writer
    return Pack(path, digest, judged, missing)


def verify(path: Path, digest: str | None = None) -> str:
    """Return the digest of the pack at `path`, every file of it as it was written.

    :param digest: what the audit trail says of the pack; without it a pack that was forged whole looks whole.
    :raises EvidenceInvalid: naming the files that changed, are missing or were added.
    """
    try:
        manifest = (path / MANIFEST).read_bytes()
        named = {name: f"sha256:{entry['sha256']}" for name, entry in json.loads(manifest)["files"].items()}
        sums = (path / SUMS).read_bytes()
        found = {name: file_digest(path / name) if plain else "" for name, plain in _listing(path).items() if name not in (MANIFEST, SUMS)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise EvidenceInvalid(f"{path} is no evidence pack, or its {MANIFEST} is damaged: {type(error).__name__}: {error}. {_ADVICE}") from error
    problems = [f"{name} is missing" for name in named if name not in found]
    problems += [f"{name} was added" for name in found if name not in named]
    problems += [f"{name} changed" for name in named if name in found and found[name] != named[name]]
    if _sums({**named, MANIFEST: bytes_digest(manifest)}) != sums:
        problems.append(f"{MANIFEST} or {SUMS} changed: they do not fit together")
    if digest is not None and bytes_digest(sums) != digest:
        problems.append(f"the pack's digest is {bytes_digest(sums)}, expected {digest}")
    if problems:
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise EvidenceInvalid(f"The evidence pack {path} is not as it was written: {'; '.join(sorted(problems)[:SHOWN_PROBLEMS])}{more}. {_ADVICE}")
    return bytes_digest(sums)


_ADVICE = "Take it from a backup, and find out who could write there."


def read_score(path: Path) -> dict[str, Any]:
    """Return ``score.json`` of the pack at `path`, which is verified first."""
    verify(path)
    found: dict[str, Any] = json.loads((path / "score.json").read_bytes())
    return found


def _copy_reports(facts: Facts, directory: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Copy what stages wrote for people; return by what it is its page relative to the pack, and what is not copied, with the reason."""
    reports, left_out = {}, {}
    for name, (artifact, copy, shown) in _reports(facts).items():
        if artifact.size > MAX_REPORT_BYTES:
            left_out[name] = f"Its {artifact.size:,} bytes are more than a pack copies ({MAX_REPORT_BYTES:,}); it lies at {artifact.uri}."
            continue
        target = directory / copy
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if artifact.path.is_dir() else shutil.copyfile)(artifact.path, target)
        if path_digest(target)[0] != artifact.digest:
            raise EvidenceInvalid(f"{artifact.uri} changed while it was copied. Run this again; then it is named as missing.")
        reports[name] = f"{directory.name}/{copy}{shown}"
    return reports, left_out


def _reports(facts: Facts) -> dict[str, tuple[Artifact, str, str]]:
    """Return by what it is: the artefact, its place below ``reports``, and the page in it."""
    found = {}
    if validation := facts.result("validate", ValidationResult):
        found["validation report"] = (validation.data_docs, "validation", "/index.html")
    if robustness := facts.result("robustness", RobustnessResult):
        found["robustness report"] = (robustness.report_page, "robustness.html", "")
        found["recipes of all defects"] = (robustness.recipes, "defects.jsonl", "")
    return found


def _seal(staging: Path, facts: Facts, judged: Score, missing: Mapping[str, str]) -> str:
    """Write the manifest and the sums, flush everything, and return the pack's digest."""
    named = {name: file_digest(staging / name) for name in _listing(staging)}
    release = facts.release
    about = {"model": release.model, "version": release.version, "run": release.run, "at": facts.at, "score": judged.total}
    entries = {name: {"sha256": _hex(digest), "size": (staging / name).stat().st_size} for name, digest in named.items()}
    manifest = as_json({"schema_version": SCHEMA_VERSION, **about, "missing": dict(missing), "files": entries})
    sums = _sums({**named, MANIFEST: bytes_digest(manifest)})
    (staging / MANIFEST).write_bytes(manifest)
    (staging / SUMS).write_bytes(sums)
    for each in (*staging.rglob("*"), staging):
        _flush(each)
    return bytes_digest(sums)


def _place(staging: Path, path: Path, digest: str) -> None:
    """Give the pack its name, unless it is there already."""
    try:
        staging.rename(path)
    except OSError as error:  # of a directory that is not empty; another error says the same and more below
        if not path.exists():
            raise
        if (found := verify(path)) != digest:
            raise EvidenceInvalid(
                f"{path} is there with other content: expected {digest}, found {found}. Evidence is never written over: if no event of the trail "
                "names that digest, take the directory away and run this again."
            ) from error
    _flush(path.parent)


def _remove_leftovers(path: Path) -> None:
    for left in path.parent.glob(f".{path.name}.*"):
        with contextlib.suppress(FileNotFoundError):  # its owner, or another writer, renamed or removed it first
            if abandoned(left):
                shutil.rmtree(left)


def _listing(path: Path) -> dict[str, bool]:
    """Return every file below `path` by its relative path, and whether it is a plain one; whatever is no directory counts as a file."""
    entries = [entry for entry in path.rglob("*") if entry.is_symlink() or not entry.is_dir()]
    return {entry.relative_to(path).as_posix(): entry.is_file() and not entry.is_symlink() for entry in sorted(entries)}


def _sums(digests: Mapping[str, str]) -> bytes:
    """Return what ``sha256sum`` would print; it marks a line in whose name it escapes something."""
    lines = []
    for name in sorted(digests):
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        lines.append(f"{'' if escaped == name else chr(92)}{_hex(digests[name])}  {escaped}\n")
    return "".join(lines).encode()


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
