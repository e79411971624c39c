"""The same training twice in fresh processes, and a registered version trained again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.cli import main
from airflow_mlops.exceptions import RegistryError, SpecError
from airflow_mlops.records import ResultRef
from airflow_mlops.registry.base import ModelVersion
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.stages import train
from airflow_mlops.stages.process import StageProcess
from airflow_mlops.stages.twins import Changes, Comparison, _check_code, rebuild, twin_run
from airflow_mlops.training.function import code_version
from airflow_mlops.training.reproducibility import ENVIRONMENT
from tests.fakes import training
from tests.git import commit_all
from tests.unit.stages.conftest import LAYOUT, Workshop


@pytest.fixture(scope="module")
def spec(workshop: Workshop) -> train.Spec:
    """A training by code that lies where Git knows nothing."""
    ref, _ = workshop.validate(workshop.v1)
    code = workshop.home / "code"
    code.mkdir()
    shutil.copy(Path(__file__).with_name("hidden_code.py"), code)
    return workshop.training_spec(ref)._replace(function="hidden_code:train", code_path=str(code), model_name="rebuilt")


def twins(spec: train.Spec, out_dir: Path, function: str, **changes: Any) -> Comparison:
    return twin_run(spec._replace(function=f"hidden_code:{function}", **changes), out_dir, lambda line: None, env=os.environ)


@pytest.mark.long
def test_a_reproducible_training_is_the_same_twice(spec: train.Spec, tmp_path: Path) -> None:
    found = twins(spec, tmp_path / "out", "train")
    assert (found.same, found.notes, found.sentence()) == (True, (), "The same: every weight is equal to the bit.")
    steps = [json.loads(line)["step"] for line in (tmp_path / "out" / "first" / "trace.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 8


@pytest.mark.long
def test_what_no_seed_decides_is_caught_with_its_step_and_tensor(spec: train.Spec, tmp_path: Path) -> None:
    found = twins(spec, tmp_path / "out", "secretly_random")
    assert found.divergence is not None
    assert (found.divergence.step, found.divergence.tensor.rpartition("/")[0].rpartition("/")[2]) == (3, "answer")
    assert found.weights is not None and found.weights.largest > 0
    report = json.loads((tmp_path / "out" / "twin.json").read_bytes())
    assert (report["same"], report["divergence"]["step"], report["sentence"]) == (False, 3, found.sentence())


@pytest.mark.long
@pytest.mark.parametrize("reproducible", [True, False])
def test_the_order_of_a_set_is_pinned_only_where_that_is_asked_for(spec: train.Spec, tmp_path: Path, reproducible: bool) -> None:
    found = twins(spec, tmp_path / "out", "orders_by_a_set", reproducible=reproducible)
    assert found.same == reproducible
    if found.divergence is not None:
        assert (found.divergence.step, found.divergence.last_same) == (1, 0)


@pytest.fixture(scope="module")
def registered(workshop: Workshop, spec: train.Spec) -> ModelVersion:
    """A version of the model, trained in a process of its own as the operator does."""
    out_dir = workshop.home / "registered"
    out_dir.mkdir()
    record = StageProcess("train", spec, out_dir, env={**os.environ, **ENVIRONMENT}).run(lambda line: None)
    assert record.result is not None, record.error
    tags = {"model_digest": record.result["model"]["digest"]}
    return MlflowRegistry(workshop.tracking_uri).register("rebuilt", record.result["mlflow_run_id"], record.result["mlflow_source"], tags=tags)


def test_a_registered_version_is_rebuilt_to_the_bit_by_the_registry_the_code_and_the_data(
    workshop: Workshop, registered: ModelVersion, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(workshop.home / "registered")  # nothing of the run's own files is needed
    arguments = ["rebuild", f"rebuilt@{registered.version}", "--tracking-uri", workshop.tracking_uri, "--out", str(tmp_path / "out")]
    before = MlflowRegistry(workshop.tracking_uri).versions()
    assert main(arguments) == 0
    assert "The same: every weight is equal to the bit." in capfd.readouterr().out
    assert json.loads((tmp_path / "out" / "rebuild.json").read_bytes())["same"] is True
    assert MlflowRegistry(workshop.tracking_uri).versions() == before


@pytest.mark.long
def test_on_another_dataset_it_is_another_model_and_says_so(
    workshop: Workshop, registered: ModelVersion, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rebuild", f"rebuilt@{registered.version}", "--tracking-uri", workshop.tracking_uri, "--out", str(tmp_path / "out")]
    assert main([*arguments, "--dataset", workshop.v2.uri]) == 1
    said = capfd.readouterr().out
    assert f"Another dataset: v1 was {workshop.v1.digest}, v2." in said
    assert "Not the same: " in said


def test_code_that_changed_rebuilds_nothing(workshop: Workshop, spec: train.Spec, registered: ModelVersion, tmp_path: Path) -> None:
    other = shutil.copytree(spec.code_path, tmp_path / "code")
    (other / "hidden_code.py").write_text("def train(context): ...")
    registry = MlflowRegistry(workshop.tracking_uri)
    for code, words in (
        (other, r"The model was trained by code sha256:.* is at sha256:.*--code"),
        (tmp_path / "none", r"not in .*none: there is no such directory\. Say with --code"),
    ):
        with pytest.raises(SpecError, match=words):
            rebuild(registry, registered, tmp_path / "out", print, env=os.environ, changes=Changes(code_path=code))


def test_sources_that_git_knows_only_here_are_the_same_code(tmp_path: Path) -> None:
    """As when an image without Git trained from the volume that the worker has the repository on."""
    code = tmp_path / "code"
    code.mkdir()
    shutil.copy(Path(__file__).with_name("hidden_code.py"), code)
    spec = train.Spec(ResultRef("validate", "", ""), LAYOUT, "hidden_code:train", str(code), "digits", "http://mlflow", {})
    then = training(tmp_path, code_version=code_version(code))
    assert commit_all(code) == code_version(code) != then.code_version
    _check_code(spec, then)
    (code / "hidden_code.py").write_text("")
    with pytest.raises(SpecError, match="find the same sources"):
        _check_code(spec, then)


def test_a_version_that_is_not_registered_is_named(workshop: Workshop, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    MlflowRegistry(workshop.tracking_uri).versions()
    assert main(["rebuild", "nobody@7", "--tracking-uri", workshop.tracking_uri, "--out", str(tmp_path / "out")]) == 1
    said = capfd.readouterr().err
    assert "There is no nobody@7 to train again: " in said
    assert "Correct MODEL@VERSION or --tracking-uri." in said
    assert not (tmp_path / "out").exists()


def test_a_version_whose_run_does_not_say_how_it_was_trained_cannot_be_rebuilt(workshop: Workshop, tmp_path: Path) -> None:
    registry = MlflowRegistry(workshop.tracking_uri)
    with registry.start_run("digits", name="old", tags={}) as run:
        run.log_dict({}, "packages.json")
    version = registry.register("of-old", run.run_id, run.artifact_uri)
    with pytest.raises(RegistryError, match=r"of-old version 1 cannot be trained again: its run .* does not hold training\.json"):
        rebuild(registry, version, tmp_path / "out", print, env=os.environ, changes=Changes())
