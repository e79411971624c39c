"""The stages one after the other, with a real registry: a first model from scratch, promoted, and its successor, continued from it."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from airflow_mlops.artifacts import file_digest
from airflow_mlops.data.readers import read_frame
from airflow_mlops.exceptions import (
    DatasetRejected,
    EvaluationError,
    MlopsError,
    NonFiniteModel,
    RegistryError,
    RegistryUnavailable,
    ResultInvalid,
    SpecError,
    TrainFunctionError,
    TrainingError,
    UnsafeModel,
)
from airflow_mlops.gates import ReleasePolicy, decide
from airflow_mlops.records import ResultRef, read_record
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.results import Finding
from airflow_mlops.robustness.kinds import Images
from airflow_mlops.stages import evaluate, robustness, robustness_shard, start, train
from airflow_mlops.stages.inputs import read_split
from airflow_mlops.stages.runner import run_stage, spec_data, spec_digest
from airflow_mlops.training.served import ServedModel
from tests.fakes import leave_record

from .conftest import Workshop


@dataclass(frozen=True)
class Chain:
    """What every stage answered; `first` became champion before `second` was trained."""

    validation: Any
    validation_ref: ResultRef
    first: Any
    first_alone: Any
    second: Any
    second_ref: ResultRef
    compared: Any
    attacked: Any
    registry: MlflowRegistry


@pytest.fixture(scope="module")
def chain(workshop: Workshop) -> Chain:
    registry = MlflowRegistry(workshop.tracking_uri)

    def measured(training: ResultRef, out_dir: str) -> Any:
        return workshop.run("evaluate", evaluate.Spec(training, "digits", workshop.tracking_uri), out_dir)[1]

    validation_ref, validation = workshop.validate(workshop.v1)
    first_ref, first = workshop.run("train", workshop.training_spec(validation_ref), "first")
    first_alone = measured(first_ref, "first")
    version = registry.register("digits", first.mlflow_run_id, first.mlflow_source, tags={"model_digest": first.model.digest})
    registry.set_alias("digits", "champion", version.version)
    second_validation, _ = workshop.validate(workshop.v2)
    second_ref, second = workshop.run("train", workshop.training_spec(second_validation, start="champion"), "second")
    compared = measured(second_ref, "second")
    _, attacked = workshop.run("robustness", robustness.Spec(second_ref, max_mutants=60, seed=1), "second")
    return Chain(validation, validation_ref, first, first_alone, second, second_ref, compared, attacked, registry)


OWN = """
from airflow_mlops.robustness.kinds import Images
from airflow_mlops.robustness.mutators.base import Mutator

def fade(images, severity, key, kind):
    return images * (1.0 - 0.1 * severity[:, None, None, None])

Images.mutators["fade"] = Mutator(fade, 0.1, "paler", "a paler stroke is the same stroke")
"""


def test_each_trained_model_has_its_card_in_the_registry(chain: Chain, tmp_path: Path) -> None:
    version = chain.registry.register("carded", chain.second.mlflow_run_id, chain.second.mlflow_source, tags={})
    card = chain.registry.download(version, train.CARD, tmp_path / train.CARD).read_text()
    assert chain.second.model.digest in card and "warm from champion v1" in card
    assert f"* digits v2, digest of its file list `{chain.second.dataset.digest}`" in card
    assert f"{chain.second.num_train_rows} rows to learn from, {chain.second.num_held_out_rows} held out, by the values of 64 columns" in card


def test_a_campaign_shared_out_over_tasks_is_the_same_campaign(chain: Chain, workshop: Workshop) -> None:
    whole = robustness.Spec(chain.second_ref, max_mutants=60, seed=1)
    shards = tuple(workshop.run("robustness_shard", robustness_shard.Spec(whole, number, 2), f"shard-{number}")[0] for number in (0, 1))
    _, merged = workshop.run("robustness", whole._replace(shards=shards), "merged")
    assert merged.ledger_hash == chain.attacked.ledger_hash
    assert (merged.num_defects, merged.defect_rates) == (chain.attacked.num_defects, chain.attacked.defect_rates)


def test_a_team_attacks_with_its_own_mutator_and_options(chain: Chain, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_attacks.py").write_text(OWN)
    monkeypatch.setattr(Images, "mutators", dict(Images.mutators))
    options = {"mutators": ["fade", "rotation"], "sample_mutants": 40, "coverage": {"kmnc_sections": 10}, "kind": {"name": "images"}}
    spec = robustness.Spec(chain.second_ref, 40, 1, options=options, code_path=str(tmp_path), extensions=("own_attacks",))
    _, found = workshop.run("robustness", spec, "own")
    assert found.defect_rates.keys() == {"fade", "rotation"}
    with pytest.raises(SpecError, match="Did you mean 'schedule'"):
        workshop.run("robustness", spec._replace(options={"shedule": "bandit"}), "refused")


def test_what_a_killed_try_had_done_is_gone_on_with(chain: Chain, workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    spec = robustness.Spec(chain.second_ref, max_mutants=60, seed=1)
    tries = [workshop.home / "runs" / "killed" / "robustness" / f"try-{number}" for number in (1, 2)]
    for directory in (*tries, tries[0].parent / "other"):
        directory.mkdir(parents=True)
    shutil.copy(workshop.home / "runs" / "second" / "robustness" / "islands.npz", tries[0])
    caplog.set_level("INFO")
    assert robustness.run(spec, tries[1]).ledger_hash == chain.attacked.ledger_hash
    assert "Going on with 120 of 120 mutants" in caplog.text
    assert robustness.run(spec._replace(seed=2), tries[0].parent / "other").ledger_hash != chain.attacked.ledger_hash


def run_status(workshop: Workshop) -> list[str]:
    """Return the status of every MLflow run, from the oldest to the newest."""
    with sqlite3.connect(workshop.home / "mlflow" / "mlflow.db") as connection:
        return [status for (status,) in connection.execute("SELECT status FROM runs ORDER BY start_time")]


def learned_from(workshop: Workshop, name: str) -> set[bytes]:
    with np.load(workshop.home / "runs" / name / "train" / "learned_from.npz") as archive:
        return {row.tobytes() for row in archive["inputs"]}


def test_validation_warns_without_stopping_the_run(chain: Chain, workshop: Workshop) -> None:
    assert chain.validation.refusal() is None
    assert (chain.validation.num_rows, len(chain.validation.warnings)) == (300, 1)
    assert "pixel_3" in chain.validation.warnings[0].message
    assert chain.validation.report().is_file()


def test_what_is_judged_is_what_is_served_and_agrees_with_what_is_attacked(chain: Chain, workshop: Workshop, tmp_path: Path) -> None:
    assert chain.compared.served_difference is not None and chain.compared.served_difference < 1e-5
    served = ServedModel(chain.second.saved_model.path)
    held_out = read_split(chain.second.dataset, chain.second.split).held_out
    assert chain.compared.metrics["accuracy"] == np.mean(served.predict(held_out.inputs).argmax(axis=1) == held_out.labels)
    other = leave_record(tmp_path, "train", replace(chain.second, saved_model=chain.first.saved_model))
    with pytest.raises(EvaluationError, match=r"SavedModel that would be served answers held-out row \d+ as .*train it again"):
        evaluate.run(evaluate.Spec(other, "digits", workshop.tracking_uri), tmp_path)


def test_the_first_model_has_no_champion_to_be_compared_with(chain: Chain) -> None:
    assert chain.first.warm_started_from is None
    assert (chain.first_alone.champion_version, chain.first_alone.champion_metrics) == (None, None)


def test_the_second_model_goes_on_from_the_champion_and_is_better_on_the_same_rows(chain: Chain) -> None:
    assert chain.second.warm_started_from == chain.compared.champion_version == "1"
    assert chain.compared.champion_metrics["accuracy"] < chain.compared.metrics["accuracy"]
    assert chain.compared.metrics["accuracy"] > 0.8
    assert chain.compared.num_rows == chain.second.num_held_out_rows
    assert decide(ReleasePolicy({"accuracy": 0.8}), chain.compared, chain.attacked).released


def test_neither_model_learned_from_the_rows_both_are_judged_by(chain: Chain, workshop: Workshop) -> None:
    held_out = {row.tobytes() for row in read_split(workshop.v2, chain.second.split).held_out.inputs}
    assert len(held_out) == chain.compared.num_rows
    assert not held_out & learned_from(workshop, "first")
    assert not held_out & learned_from(workshop, "second")
    every_row = {row.tobytes() for side in read_split(workshop.v2, chain.second.split) for row in side.inputs}
    assert learned_from(workshop, "first") & every_row, "the versions share no row: this test proves nothing"


def test_the_golden_answers_come_from_the_recorded_rows(chain: Chain) -> None:
    golden = json.loads(chain.second.golden.path.read_bytes())
    assert len(golden["inputs"]) == len(golden["outputs"]) == 16
    assert all(sum(row) == pytest.approx(1, abs=1e-4) for row in golden["outputs"])


def test_a_training_says_where_its_model_comes_from(chain: Chain, workshop: Workshop) -> None:
    assert chain.second.dataset == workshop.v2
    assert chain.second.params == {"epochs": 4}
    assert chain.second.code_version
    assert {"keras", "tensorflow"} <= set(chain.second.packages)
    version = chain.registry.get("digits", 1)
    assert (version.run_id, version.aliases) == (chain.first.mlflow_run_id, ("champion",))


def test_the_campaign_attacked_the_second_model(chain: Chain) -> None:
    assert chain.attacked.num_mutants >= 60
    assert 0 <= chain.attacked.sample_rate <= 1
    assert chain.attacked.report().read_text().lstrip().startswith("<")


def fail(workshop: Workshop, out_dir: Path, spec: Any) -> MlopsError:
    """Run the train stage as its process does and return the error its record holds."""
    out_dir.mkdir(exist_ok=True)
    path, result = out_dir / "spec.json", out_dir / "result.json"
    path.write_text(json.dumps(spec_data(spec)))
    assert run_stage("train", path, result) == 1
    record = read_record(result, stage="train", spec_digest=spec_digest(spec))
    assert record.inputs == {"validation": spec.validation}
    assert record.error is not None
    return record.error.exception()


@pytest.mark.parametrize(
    ("function", "error_class", "message"),
    [
        ("raises", TrainFunctionError, r"ZeroDivisionError: batch size is 0 at .*user_code\.py:\d+ in raises"),
        ("returns_none", TrainFunctionError, r"returned None \(is a return missing\?\)"),
        ("diverges", NonFiniteModel, "has NaN or infinity in its kernel"),
        ("logs_nan", NonFiniteModel, "Metric 'loss' is nan at step 3"),
    ],
)
def test_a_bad_train_function_ends_as_a_failed_run_and_registers_nothing(
    chain: Chain, workshop: Workshop, tmp_path: Path, function: str, error_class: type[MlopsError], message: str
) -> None:
    error = fail(workshop, tmp_path, workshop.training_spec(chain.validation_ref, function=function))
    assert type(error) is error_class
    assert not error.retryable
    with pytest.raises(error_class, match=message):
        raise error
    assert run_status(workshop)[-1] == "FAILED"
    assert "RUNNING" not in run_status(workshop)
    with pytest.raises(RegistryError):
        chain.registry.get("digits", 2)


def test_a_train_function_that_is_not_there_is_an_impossible_request_and_no_run(chain: Chain, workshop: Workshop, tmp_path: Path) -> None:
    before = run_status(workshop)
    error = fail(workshop, tmp_path, workshop.training_spec(chain.validation_ref, function="trian"))
    assert isinstance(error, SpecError)
    assert "Did you mean 'train'" in str(error)
    assert run_status(workshop) == before


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/nowhere/mlflow.db"])
def test_a_registry_that_is_down_is_worth_a_retry(chain: Chain, workshop: Workshop, tmp_path: Path, uri: str) -> None:
    error = fail(workshop, tmp_path, workshop.training_spec(chain.validation_ref, tracking_uri=uri))
    assert isinstance(error, RegistryUnavailable)
    assert error.retryable


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "champoin"}, "Did you mean 'champion'"),
        ({"retrain": "user_code:trian"}, "Did you mean 'train'"),
        ({"formats": {"onxx": "required"}}, "Did you mean 'onnx'"),
        ({"max_seconds": -1.0}, r"max_seconds is -1\.0; give 0 or more"),
        ({"checkpoint_seconds": float("nan")}, "checkpoint_seconds is nan; give 0 or more"),
    ],
    ids=str,
)
def test_what_no_training_can_come_to_is_refused_before_it_begins(
    chain: Chain, workshop: Workshop, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    before = run_status(workshop)
    with pytest.raises(SpecError, match=message):
        train.run(workshop.training_spec(chain.validation_ref, **changes), tmp_path)
    assert run_status(workshop) == before


def test_rejected_data_is_never_trained_on(chain: Chain, workshop: Workshop, tmp_path: Path) -> None:
    rejected = leave_record(tmp_path, "validate", replace(chain.validation, critical=(Finding("e", "label", "label holds 12."),)))
    with pytest.raises(DatasetRejected, match="label holds 12"):
        raise fail(workshop, tmp_path, workshop.training_spec(rejected))


def test_a_validation_that_was_changed_afterwards_is_not_believed(chain: Chain, workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(ResultInvalid, match="changed after its stage ended"):
        raise fail(workshop, tmp_path, workshop.training_spec(replace(chain.validation_ref, digest="sha256:0")))


def test_a_champion_whose_file_was_replaced_is_neither_continued_from_nor_compared_with(chain: Chain, workshop: Workshop, tmp_path: Path) -> None:
    tags = chain.registry.get("digits", 1).tags
    chain.registry.set_tags("digits", 1, {"model_digest": "sha256:somebody else's"})
    try:
        with pytest.raises(RegistryError, match="It was changed in the registry"):
            raise fail(workshop, tmp_path, workshop.training_spec(chain.validation_ref, start="champion"))
        with pytest.raises(RegistryError, match="It was changed in the registry"):
            evaluate.run(evaluate.Spec(chain.second_ref, "digits", workshop.tracking_uri), tmp_path / "evaluate")
    finally:
        chain.registry.set_tags("digits", 1, {"model_digest": tags["model_digest"]})


def test_a_champion_that_keras_cannot_load_blocks_no_challenger(
    chain: Chain, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unloadable(*_: object, **__: object) -> None:
        raise EvaluationError("model.keras cannot be loaded")

    monkeypatch.setattr(evaluate, "load_champion", unloadable)
    monkeypatch.setattr(start, "load_registered", unloadable)
    result = evaluate.run(evaluate.Spec(chain.second_ref, "digits", workshop.tracking_uri), tmp_path)
    assert (result.champion_version, result.champion_metrics, result.champion_problem) == ("1", None, "model.keras cannot be loaded")
    assert result.headline().endswith("; not compared with champion v1: model.keras cannot be loaded")
    spec, frame = workshop.training_spec(chain.validation_ref, start="champion"), read_frame(workshop.v1)
    begun = start.start_of(chain.registry, spec, frame, tmp_path / "again")
    assert (begun.champion, begun.model, begun.definition) == (None, None, chain.first.split)
    assert begun.problem == (
        "The training was asked to start from champion v1, and began from scratch instead: it could not be loaded: model.keras cannot be loaded"
    )


def test_a_lambda_layer_is_refused_by_the_training_that_made_it_and_a_team_may_allow_it(chain: Chain, workshop: Workshop, tmp_path: Path) -> None:
    spec = workshop.training_spec(chain.validation_ref, function="with_lambda", model_name="with_lambda")
    with pytest.raises(UnsafeModel, match=r"Lambda 'doubled' holds a Python function|Lambda 'doubled' is a Lambda layer"):
        raise fail(workshop, tmp_path, spec)
    assert run_status(workshop)[-1] == "FAILED"
    allowed = spec._replace(unsafe_models_allowed=True)
    ref, result = workshop.run("train", allowed, "with_lambda")
    version = chain.registry.register("with_lambda", result.mlflow_run_id, result.mlflow_source, tags={"model_digest": result.model.digest})
    chain.registry.set_alias("with_lambda", "champion", version.version)
    judged = evaluate.Spec(ref, "with_lambda", workshop.tracking_uri, unsafe_models_allowed=True)
    assert workshop.run("evaluate", judged, "allowed")[1].champion_problem is None
    assert workshop.run("train", allowed._replace(start="champion"), "warm")[1].warm_started_from == "1"
    refused = workshop.run("train", workshop.training_spec(chain.validation_ref, start="champion", model_name="with_lambda"), "cold")[1]
    assert refused.warm_started_from is None
    assert refused.start_problem.startswith(
        "The training was asked to start from champion v1, and began from scratch instead: it could not be loaded"
    )
    assert refused.start_problem in refused.headline()
    with pytest.raises(UnsafeModel, match="Lambda 'doubled'"):
        evaluate.run(judged._replace(unsafe_models_allowed=False), tmp_path)


def test_layers_of_a_team_are_loaded_when_their_module_is_named(chain: Chain, workshop: Workshop, tmp_path: Path) -> None:
    spec = workshop.training_spec(chain.validation_ref, function="with_own_layer", model_name="own_layer", unsafe_models_allowed=True)
    with pytest.raises(TrainingError, match=r"Doubled.*register_keras_serializable.*extensions"):
        raise fail(workshop, tmp_path, spec)
    ref, _ = workshop.run("train", spec._replace(extensions=("user_code",)), "own_layer")
    own = {"code_path": spec.code_path, "extensions": ("user_code",), "unsafe_models_allowed": True}
    path, result = tmp_path / "spec.json", tmp_path / "result.json"
    path.write_text(json.dumps(spec_data(evaluate.Spec(ref, "own_layer", workshop.tracking_uri, **own))))
    # In a process of its own, which has not trained the model and knows nothing of the layer.
    command = [sys.executable, "-m", "airflow_mlops", "stage", "evaluate", "--spec", str(path), "--result", str(result)]
    subprocess.run(command, check=True)
    assert "accuracy" in json.loads(result.read_text())["result"]["metrics"]


def repacked(path: Path, target: Path, changed: str, change: Callable[[bytes], bytes]) -> None:
    """Write the archive `path` once more, one of its files changed."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, change(source.read(name)) if name == changed else source.read(name))


def linked(weights: bytes) -> bytes:
    """Return the HDF5 file with one array that lies in another file of the machine."""
    stream = io.BytesIO(weights)
    with h5py.File(stream, "r+") as file:
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = h5py.ExternalLink("/etc/passwd", "/x")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("damage", "error_class", "message"),
    [
        ("no archive", UnsafeModel, r"model\.keras is no Keras archive"),
        ("altered", UnsafeModel, r"model\.keras is no Keras archive \(Bad CRC-32 for file 'config\.json'\)"),
        ("class that Keras does not know", EvaluationError, r"model\.keras cannot be loaded as a Keras model"),
        ("no configuration", UnsafeModel, r"model\.keras is no Keras archive: expected config\.json"),
        ("weights from elsewhere", EvaluationError, r"Not allowed: H5 file with ExternalLink"),
    ],
)
def test_a_damaged_model_is_not_evaluated(
    chain: Chain, workshop: Workshop, tmp_path: Path, damage: str, error_class: type[MlopsError], message: str
) -> None:
    damaged = tmp_path / "model.keras"
    if damage == "no archive":
        damaged.write_bytes(b"no model")
    elif damage == "altered":
        damaged.write_bytes(chain.second.model.path.read_bytes().replace(b"Dense", b"dense"))
    elif damage == "class that Keras does not know":
        repacked(chain.second.model.path, damaged, "config.json", lambda content: content.replace(b"Dense", b"dense"))
    elif damage == "weights from elsewhere":
        repacked(chain.second.model.path, damaged, "model.weights.h5", linked)
    else:
        with zipfile.ZipFile(damaged, "w") as archive:
            archive.writestr("metadata.json", "{}")
    model = replace(chain.second.model, uri=str(damaged), digest=file_digest(damaged))
    ref = leave_record(tmp_path, "train", replace(chain.second, model=model))
    with pytest.raises(error_class, match=message):
        evaluate.run(evaluate.Spec(ref, "digits", workshop.tracking_uri), tmp_path)
