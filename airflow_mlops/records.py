"""The result record: the one file by which a stage is believed.

It holds `SCHEMA_VERSION`, the stage's name, the digest of the spec that was asked for, and either a result or an error. Exit codes, pod
phases and XComs prove nothing; a record counts only after `read_record` has checked it and `result_of` every artefact it names, as `load` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from airflow_mlops import exceptions
from airflow_mlops.artifacts import artifacts, bytes_digest, canonical_json
from airflow_mlops.exceptions import MlopsError, ResultInvalid
from airflow_mlops.results import STRICT, from_data
from airflow_mlops.usage import Usage

SCHEMA_VERSION = 3
R = TypeVar("R")


@STRICT
@dataclass(frozen=True)
class StageFailure:
    """The error of a stage, so that the caller can raise the same class with the same message."""

    type: str
    message: str
    retryable: bool

    @classmethod
    def of(cls, error: BaseException) -> StageFailure:
        """Describe `error`; an exception that is not ours keeps its class name in the message and is not retried."""
        if isinstance(error, MlopsError):
            return cls(type(error).__name__, str(error), error.retryable)
        return cls("StageError", f"{type(error).__name__}: {error}", False)

    def exception(self) -> MlopsError:
        """Return the exception this failure describes."""
        named = getattr(exceptions, self.type, None)
        error_class = named if isinstance(named, type) and issubclass(named, MlopsError) else exceptions.StageError
        error = error_class(self.message)
        error.retryable = self.retryable
        return error


@STRICT
@dataclass(frozen=True)
class ResultRef:
    """Where a stage's record lies and what it must be; small enough for an XCom, and nothing in it but what `digest` covers."""

    stage: str
    uri: str
    digest: str


@STRICT
@dataclass(frozen=True)
class Record:
    """The file a stage leaves: exactly one of `result` and `error` is set; `inputs` are the records that its spec named, by field.

    `usage` is what the stage used, None in records of older releases; `image` what it ran in, as whoever started it said.
    """

    schema_version: int
    stage: str
    spec_digest: str
    result: dict[str, Any] | None = None
    error: StageFailure | None = None
    inputs: dict[str, ResultRef] = field(default_factory=dict)
    usage: Usage | None = None
    image: str | None = None


def read_record(path: Path, *, stage: str, spec_digest: str) -> Record:
    """Return the record of the request with `spec_digest`; raise `ResultInvalid` if it is missing, half-written or of another request."""
    record = _parse(path, _read(path))
    if record.stage != stage or record.spec_digest != spec_digest:
        raise ResultInvalid(
            f"{path} is the result of another request: expected stage {stage!r} with spec {spec_digest}, "
            f"found stage {record.stage!r} with spec {record.spec_digest}. It is left from an earlier try; remove it and run the stage again."
        )
    return record


def read_any(path: Path) -> Record:
    """Return the record at `path`, of whatever request; raise `ResultInvalid` if it is missing or half-written."""
    return _parse(path, _read(path))


def load(ref: ResultRef, result_type: type[R]) -> R:
    """Return the result that `ref` points to, its record and every artefact verified; raise `ResultInvalid` otherwise."""
    return result_of(_referred(ref), result_type)


def record_of(ref: ResultRef) -> Record:
    """Return the record that `ref` points to, for what it says beside its result; raise `ResultInvalid` if it changed."""
    return _referred(ref)


def lineage(*refs: ResultRef) -> dict[str, ResultRef]:
    """Return, by stage, every record that `refs` were made from, themselves included.

    :raises ResultInvalid: a record changed, or two of them come from different runs of the same stage.
    """
    found: dict[str, ResultRef] = {}
    waiting = list(refs)
    while waiting:
        ref = waiting.pop()
        known = found.setdefault(ref.stage, ref)
        if known.digest != ref.digest:
            raise ResultInvalid(
                f"The results come from two different runs of stage {ref.stage!r}: {known.uri} and {ref.uri}. Expected results about one model; "
                "clear the stages that come after it, so that they run again."
            )
        waiting += _referred(ref).inputs.values()
    return found


def evidence_digest(refs: Mapping[str, ResultRef]) -> str:
    """Return ``sha256:<64 hex digits>`` of the canonical JSON of stage -> digest of its record: what an approval is bound to."""
    return bytes_digest(canonical_json({stage: ref.digest for stage, ref in refs.items()}))


def refs_text(refs: Mapping[str, ResultRef]) -> str:
    """Return references by stage as the JSON text that `parse_refs` reads."""
    return json.dumps({stage: {"uri": ref.uri, "digest": ref.digest} for stage, ref in sorted(refs.items())})


def parse_refs(text: str) -> dict[str, ResultRef]:
    """Return the references that a text of `refs_text` names; raise `ResultInvalid` if it is none."""
    try:
        return {stage: ResultRef(stage, str(ref["uri"]), str(ref["digest"])) for stage, ref in json.loads(text).items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ResultInvalid(f"The version's tag 'evidence' was altered: {error!r}. Register the model again.") from error


def _referred(ref: ResultRef) -> Record:
    path = Path(ref.uri)
    data = _read(path)
    if (found := bytes_digest(data)) != ref.digest:
        raise ResultInvalid(f"{path} changed after its stage ended: expected {ref.digest}, found {found}. Run stage {ref.stage!r} again.")
    record = _parse(path, data)
    if record.stage != ref.stage:
        raise ResultInvalid(f"{path} is a result of stage {record.stage!r}; expected one of {ref.stage!r}. Name the record of that stage.")
    return record


def result_of(record: Record, result_type: type[R]) -> R:
    """Return the typed result of a successful record, every artefact verified."""
    if record.result is None:
        raise ResultInvalid(f"Stage {record.stage!r} left no result: {record.error.message if record.error else 'its record is empty'}.")
    result = from_data(result_type, record.result, what=f"result of stage {record.stage!r}")
    for artifact in artifacts(result):
        artifact.verify()
    return result


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ResultInvalid(f"{path} does not exist: the stage left no result record. Look at its log above and run it again.") from error
    except (OSError, ValueError) as error:  # a directory, or a name that none can have
        raise ResultInvalid(f"{path} cannot be read ({error}): expected a result record. Run its stage again.") from error


def _parse(path: Path, content: bytes) -> Record:
    try:
        data = json.loads(content)
    except ValueError as error:
        raise ResultInvalid(f"{path} is not a whole JSON document ({error}): the stage was cut off while writing. Run it again.") from error
    record = from_data(Record, data, what=f"result record {path}")
    if record.schema_version != SCHEMA_VERSION:
        raise ResultInvalid(f"{path} has schema version {record.schema_version}, this package reads {SCHEMA_VERSION}: use one version for both.")
    if (record.result is None) == (record.error is None):
        raise ResultInvalid(f"{path} must hold either a result or an error, and holds {'none' if record.error is None else 'both'}.")
    return record
