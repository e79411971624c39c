"""A stage is believed by its record, and by nothing less."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops import exceptions
from airflow_mlops.artifacts import bytes_digest
from airflow_mlops.exceptions import MlopsError, ResultInvalid, unknown_name
from airflow_mlops.records import Record, ResultRef, StageFailure, evidence_digest, lineage, load, read_record
from airflow_mlops.results import TrainingResult, to_data
from tests import fakes

ERRORS = sorted({value for value in vars(exceptions).values() if isinstance(value, type) and issubclass(value, MlopsError)}, key=lambda e: e.__name__)


@pytest.fixture
def ref(tmp_path: Path) -> ResultRef:
    return fakes.leave_record(tmp_path, "train", fakes.training(tmp_path))


def rewrite(ref: ResultRef, **changes: Any) -> Path:
    path = Path(ref.uri)
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))
    return path


def read(path: Path, **expected: str) -> Record:
    return read_record(path, **{"stage": "train", "spec_digest": "sha256:spec", **expected})


@pytest.mark.parametrize("error_class", ERRORS)
def test_an_error_survives_pickling_and_the_way_through_a_record(error_class: type[MlopsError]) -> None:
    error = error_class("what happened")
    for copy in (pickle.loads(pickle.dumps(error)), StageFailure.of(error).exception()):
        assert (type(copy), str(copy), copy.retryable) == (error_class, "what happened", error_class.retryable)


def test_a_retry_bit_set_on_one_error_alone_survives_too() -> None:
    error = MlopsError("x")
    error.retryable = True
    assert pickle.loads(pickle.dumps(error)).retryable
    assert StageFailure.of(error).exception().retryable


def test_an_error_of_somebody_else_is_a_stage_error_that_names_it_and_is_not_retried() -> None:
    error = StageFailure.of(KeyError("pixel_0")).exception()
    assert (type(error), str(error), error.retryable) == (exceptions.StageError, "KeyError: 'pixel_0'", False)


@pytest.mark.parametrize("name", ["NoSuchError", "unknown_name", "difflib", "Iterable"])
def test_a_name_that_is_no_error_of_ours_becomes_a_stage_error(name: str) -> None:
    assert type(StageFailure(name, "odd", True).exception()) is exceptions.StageError


def test_an_unknown_name_suggests_the_nearest() -> None:
    assert "Did you mean 'train'?" in str(unknown_name("stage", "trian", ["train", "validate"]))


def test_a_record_gives_back_the_result(ref: ResultRef, tmp_path: Path) -> None:
    assert load(ref, TrainingResult) == fakes.training(tmp_path)
    assert read(Path(ref.uri)).result == to_data(fakes.training(tmp_path))


def test_a_missing_record_is_refused(ref: ResultRef) -> None:
    Path(ref.uri).unlink()
    for attempt in (lambda: load(ref, TrainingResult), lambda: read(Path(ref.uri))):
        with pytest.raises(ResultInvalid, match="does not exist: the stage left no result record"):
            attempt()


@pytest.mark.parametrize("keep", [0, 1, 50, -1])
def test_a_half_written_record_is_refused(ref: ResultRef, keep: int) -> None:
    path = Path(ref.uri)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ResultInvalid, match="not a whole JSON document"):
        read(path)


def test_binary_garbage_is_no_record(ref: ResultRef) -> None:
    Path(ref.uri).write_bytes(b"\x80\xff\x00" * 100)
    with pytest.raises(ResultInvalid, match="not a whole JSON document"):
        read(Path(ref.uri))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 1}, "has schema version 1, this package reads 3"),
        ({"result": None}, "must hold either a result or an error, and holds none"),
        ({"error": {"type": "MlopsError", "message": "m", "retryable": False}}, "and holds both"),
        ({"mood": "good"}, "mood: "),
        ({"spec_digest": "sha256:other"}, "result of another request"),
        ({"stage": "evaluate"}, "result of another request"),
    ],
)
def test_a_record_that_is_not_the_one_asked_for_is_refused(ref: ResultRef, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ResultInvalid, match=message):
        read(rewrite(ref, **changes))


def test_a_record_changed_after_its_stage_ended_is_refused(ref: ResultRef) -> None:
    rewrite(ref, spec_digest="sha256:other")
    with pytest.raises(ResultInvalid, match=r"changed after its stage ended.*Run stage 'train' again"):
        load(ref, TrainingResult)


@pytest.mark.parametrize(("change", "message"), [(lambda p: p.write_bytes(b"other"), "changed after it was recorded"), (Path.unlink, "is missing")])
def test_a_changed_or_missing_artefact_is_refused(ref: ResultRef, tmp_path: Path, change: Any, message: str) -> None:
    change(tmp_path / "model.keras")
    with pytest.raises(ResultInvalid, match=message):
        load(ref, TrainingResult)


def test_a_number_that_is_none_does_not_hide_in_a_record(tmp_path: Path) -> None:
    training = fakes.training(tmp_path)
    ref = fakes.leave_record(tmp_path, "train", training)
    path = rewrite(ref, result={**to_data(training), "metrics": {"loss": float("nan")}})
    with pytest.raises(ResultInvalid, match=r"metrics\.loss"):
        load(dataclasses.replace(ref, digest=fakes.file_digest(path)), TrainingResult)


def test_the_record_of_a_failure_holds_no_result(ref: ResultRef) -> None:
    path = rewrite(ref, result=None, error={"type": "NonFiniteModel", "message": "NaN in dense", "retryable": False})
    with pytest.raises(ResultInvalid, match="left no result: NaN in dense"):
        load(dataclasses.replace(ref, digest=fakes.file_digest(path)), TrainingResult)


def test_the_records_a_result_was_made_from_can_be_followed_to_the_first(tmp_path: Path) -> None:
    validated = fakes.leave_record(tmp_path, "validate", fakes.validation(tmp_path))
    trained = fakes.leave_record(tmp_path / "2", "train", fakes.training(tmp_path), validation=validated)
    measured = fakes.leave_record(tmp_path, "evaluate", fakes.evaluation(), training=trained)
    attacked = fakes.leave_record(tmp_path, "robustness", fakes.robustness(tmp_path), training=trained)
    assert lineage(measured, attacked) == {"evaluate": measured, "robustness": attacked, "train": trained, "validate": validated}


def test_results_about_two_trainings_have_no_common_lineage(ref: ResultRef, tmp_path: Path) -> None:
    other = fakes.leave_record(tmp_path / "2", "train", fakes.training(tmp_path, seed=2))
    measured = fakes.leave_record(tmp_path, "evaluate", fakes.evaluation(), training=ref)
    attacked = fakes.leave_record(tmp_path, "robustness", fakes.robustness(tmp_path), training=other)
    with pytest.raises(ResultInvalid, match="two different runs of stage 'train'"):
        lineage(measured, attacked)


def test_a_record_further_up_that_changed_breaks_the_lineage(ref: ResultRef, tmp_path: Path) -> None:
    measured = fakes.leave_record(tmp_path, "evaluate", fakes.evaluation(), training=ref)
    rewrite(ref, stage="other")
    with pytest.raises(ResultInvalid, match="changed after its stage ended"):
        lineage(measured)


def test_the_digest_of_the_evidence_says_which_records_they_are_and_not_where_they_lie() -> None:
    refs = {"train": ResultRef("train", "/a", "sha256:1"), "evaluate": ResultRef("evaluate", "/b", "sha256:2")}
    moved = {"evaluate": ResultRef("evaluate", "/c", "sha256:2"), "train": ResultRef("train", "/d", "sha256:1")}
    assert evidence_digest(refs) == evidence_digest(moved) == bytes_digest(b'{"evaluate":"sha256:2","train":"sha256:1"}')
    assert evidence_digest({**refs, "train": ResultRef("train", "/a", "sha256:3")}) != evidence_digest(refs)
    assert evidence_digest({"train": refs["train"]}) != evidence_digest(refs)
