"""No row that a model, or a model it started from, has learned from ever judges it, whatever the fractions and the order of the columns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from airflow_mlops.data.arrays import to_arrays
from airflow_mlops.data.readers import read_frame
from airflow_mlops.data.snapshot import publish_version
from airflow_mlops.evaluation import comparison
from airflow_mlops.exceptions import DatasetError, EvaluationError, RegistryError
from airflow_mlops.gates import ReleasePolicy, decide
from airflow_mlops.records import ResultRef
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.results import DatasetVersion, TrainingResult, to_data
from airflow_mlops.robustness.lab import Lab
from airflow_mlops.splits import SPLIT_TAG
from airflow_mlops.stages import evaluate, robustness, train
from airflow_mlops.stages.inputs import layout_of
from airflow_mlops.stages.runner import spec_data
from tests import fakes

from .conftest import LAYOUT, Workshop

Change = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass
class Team:
    """A model that is trained again and again; the newest training that is `crowned` is its champion."""

    workshop: Workshop
    name: str
    results: list[TrainingResult] = field(default_factory=list)

    @property
    def registry(self) -> MlflowRegistry:
        return MlflowRegistry(self.workshop.tracking_uri)

    def deliver(self, version: DatasetVersion, change: Change) -> DatasetVersion:
        """Publish the rows of `version` in another form."""
        home, name = self.workshop.home, f"{version.name}-{self.name}-{len(self.results)}"
        data = change(read_frame(version)).to_csv(index=False).encode()
        return publish_version({"digits.csv": data}, home / "others", name=name, dataset="digits")

    def validated(self, version: DatasetVersion) -> ResultRef:
        """Leave the record of a validation that found nothing."""
        place = self.workshop.home / f"{self.name}-{len(self.results)}"
        return fakes.leave_record(place, "validate", fakes.validation(place, dataset=version, critical=()))

    def train(self, version: DatasetVersion, **changes: Any) -> ResultRef:
        place = f"{self.name}-{len(self.results)}"
        spec = self.workshop.training_spec(
            self.validated(version), **{"start": "champion", "model_name": self.name, "params": {"epochs": 1}, **changes}
        )
        ref, result = self.workshop.run("train", spec, place)
        self.results.append(result)
        return ref

    def crown(self, **tags: str) -> None:
        """Make the newest training the champion, registered as the operator does."""
        newest = self.results[-1]
        known = {"model_digest": newest.model.digest, SPLIT_TAG: newest.split.digest}
        version = self.registry.register(self.name, newest.mlflow_run_id, newest.mlflow_source, tags=known | tags)
        self.registry.set_alias(self.name, "champion", version.version)

    def evaluate(self, training: ResultRef) -> Any:
        return self.workshop.run(
            "evaluate", evaluate.Spec(training, self.name, self.workshop.tracking_uri), f"{self.name}-{len(self.results)}-judged"
        )[1]

    def learned_from(self) -> set[tuple[float, ...]]:
        """Return every row that any training so far was handed, by the values of the columns in the order of their names."""
        found: set[tuple[float, ...]] = set()
        for result in self.results:
            with np.load(result.model.path.with_name("learned_from.npz")) as archive:
                found |= by_name(archive["inputs"], result.split.columns)
        return found


def by_name(inputs: np.ndarray, columns: Sequence[str]) -> set[tuple[float, ...]]:
    return {tuple(row) for row in inputs.reshape(len(inputs), -1)[:, np.argsort(np.array(columns))].tolist()}


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Every array of rows that a model is measured on, or attacked with, in this test."""
    seen: list[np.ndarray] = []
    measure, prepare = comparison.evaluate, Lab.of.__func__

    def evaluated(model: Any, inputs: np.ndarray, labels: np.ndarray) -> Any:
        seen.append(inputs)
        return measure(model, inputs, labels)

    def prepared(cls: type[Lab], model: Any, inputs: np.ndarray, *arguments: Any, **named: Any) -> Lab:
        seen.append(inputs)
        return prepare(cls, model, inputs, *arguments, **named)

    monkeypatch.setattr(comparison, "evaluate", evaluated)
    monkeypatch.setattr(Lab, "of", classmethod(prepared))
    return seen


def mirrored(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[list(frame.columns[::-1])]


def as_floats_in_any_order(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[list(np.random.default_rng(5).permutation(frame.columns))].astype(float)


@pytest.mark.parametrize(
    ("fractions", "changes"),
    [
        ((0.1, 0.2), (None, None)),
        pytest.param((0.3, 0.1, 0.5), (None, mirrored, None), marks=pytest.mark.long),
        ((0.05, 0.5, 0.2), (mirrored, None, as_floats_in_any_order)),
    ],
    ids=["larger", "smaller and mirrored", "mirrored and in any order"],
)
def test_whatever_was_learned_from_along_a_chain_of_trainings_judges_no_model_of_it(
    workshop: Workshop, judged: list[np.ndarray], fractions: tuple[float, ...], changes: tuple[Change | None, ...], request: pytest.FixtureRequest
) -> None:
    team = Team(workshop, f"chain_{abs(hash(request.node.name))}")
    for number, (fraction, change) in enumerate(zip(fractions, changes, strict=True)):
        version = (workshop.v1, workshop.v2, workshop.v2)[number]
        ref = team.train(team.deliver(version, change) if change else version, held_out_fraction=fraction)
        result = team.results[-1]
        found = team.evaluate(ref)
        workshop.run("robustness", robustness.Spec(ref, max_mutants=20, seed=1), f"{team.name}-{number}-attacked")
        assert result.warm_started_from == (str(number) if number else None), result.start_problem
        assert result.split.unseen_fraction == min(fractions[: number + 1])
        assert len(judged) == (3 if number else 2)
        for rows in judged:
            assert not by_name(rows, result.split.columns) & team.learned_from()
            assert len(rows) <= found.judged.num_held_out
        assert found.judged.split == "recorded" and found.num_rows == len(judged[0])
        judged.clear()
        team.crown()


def test_a_champion_is_compared_on_the_rows_that_both_held_out(workshop: Workshop, judged: list[np.ndarray]) -> None:
    team = Team(workshop, "both")
    team.train(workshop.v2, held_out_fraction=0.1)
    team.crown()
    found = team.evaluate(team.train(workshop.v2, held_out_fraction=0.4, start="scratch"))
    assert found.num_rows == found.judged.champion_num_held_out < found.judged.num_held_out == team.results[-1].num_held_out_rows
    assert found.champion_metrics is not None
    assert all(not by_name(rows, team.results[0].split.columns) & team.learned_from() for rows in judged)


def test_the_same_columns_in_another_order_are_the_same_inputs(workshop: Workshop) -> None:
    team = Team(workshop, "ordered")
    team.train(workshop.v1)
    team.crown()
    plain = team.evaluate(team.train(workshop.v2, start="scratch"))
    turned = team.evaluate(team.train(team.deliver(workshop.v2, mirrored), start="scratch"))
    assert turned.rows_digest == plain.rows_digest
    assert turned.champion_metrics == plain.champion_metrics is not None
    assert turned.metrics == plain.metrics
    assert team.results[0].split == team.results[1].split == team.results[2].split


def test_models_that_were_trained_before_there_was_a_champion_are_compared_each_by_its_own_order(workshop: Workshop) -> None:
    team = Team(workshop, "own_order")
    team.train(workshop.v1)
    later = team.train(team.deliver(workshop.v1, mirrored), start="scratch")
    assert team.results[0].split.columns == team.results[1].split.columns[::-1]
    team.results.reverse()
    team.crown()
    found = team.evaluate(later)
    rows = to_arrays(read_frame(workshop.v1), layout_of(team.results[-1].split))
    assert found.champion_problem is None
    assert found.champion_metrics is not None and found.judged.champion_num_held_out == found.num_rows < len(rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda frame: frame.drop(columns="pixel_7"), "lacks 'pixel_7'"),
        (lambda frame: frame.assign(weight=1), "has 'weight', which the model does not know"),
        (lambda frame: frame.rename(columns={"pixel_7": "pixel_x"}), "lacks 'pixel_7' and has 'pixel_x', which the model does not know"),
    ],
    ids=["one is missing", "one is new", "one has another name"],
)
def test_columns_that_are_not_those_of_the_champion_are_refused_by_name(workshop: Workshop, change: Change, said: str) -> None:
    team = Team(workshop, f"columns_{abs(hash(said))}")
    team.train(workshop.v1)
    team.crown()
    with pytest.raises(DatasetError, match=said):
        team.train(team.deliver(workshop.v2, change))


def test_columns_that_the_layout_does_not_name_are_left_out_and_the_record_says_so(workshop: Workshop) -> None:
    team = Team(workshop, "named")
    names = tuple(f"pixel_{index}" for index in range(64))
    version = team.deliver(workshop.v1, lambda frame: mirrored(frame.assign(weight=1)))
    team.train(version, layout=LAYOUT._replace(columns=names))
    assert team.results[0].split.columns == names
    assert "The columns 'weight' of the dataset are no inputs: the layout does not name them." in team.results[0].headline()


def test_a_layout_that_differs_is_neither_gone_on_from_nor_compared_and_a_person_decides(workshop: Workshop) -> None:
    team = Team(workshop, "rescaled")
    team.train(workshop.v1)
    team.crown()
    ref = team.train(workshop.v2, layout=LAYOUT._replace(scale=1.0))
    found = team.evaluate(ref)
    assert team.results[-1].warm_started_from is None
    assert "its inputs are others (scale 0.0625 and 1.0)" in (team.results[-1].start_problem or "")
    assert (found.champion_metrics, found.judged.champion_num_held_out) == (None, None)
    assert found.champion_problem == "The inputs of champion v1 and of the challenger differ: scale 0.0625 and 1.0."
    decision = decide(ReleasePolicy(), found, fakes.robustness(workshop.home / "rescaled"))
    assert [question[:36] for question in decision.questions] == ["The model was not compared with cham", "The training was asked to start from"]


def test_without_a_row_that_both_held_out_there_is_no_comparison(workshop: Workshop) -> None:
    team = Team(workshop, "nothing_in_common")
    rows = to_arrays(read_frame(workshop.v1), LAYOUT)
    positions = np.array([int(digest[:13], 16) for digest in rows.row_digests]) / 16.0**13
    first = int(positions.argmin())
    team.train(workshop.v1, held_out_fraction=float(positions[first]) * (1 + 1e-9))
    team.crown()
    others = team.deliver(workshop.v1, lambda frame: frame[rows.row_digests != rows.row_digests[first]])
    found = team.evaluate(team.train(others, start="scratch"))
    assert "and none of them are the same: there is no row to compare them by" in (found.champion_problem or "")
    assert (found.champion_metrics, found.judged.champion_num_held_out) == (None, 0)
    assert found.num_rows == found.judged.num_held_out > 0
    with pytest.raises(EvaluationError, match="There is no row to judge the model by"):
        team.evaluate(team.train(others))


def test_a_champion_of_a_foreign_registry_is_compared_on_the_rows_it_is_handed_and_the_record_says_unknown(workshop: Workshop) -> None:
    team = Team(workshop, "foreign")
    ref = team.train(workshop.v1)
    with team.registry.start_run("foreign", name="elsewhere", tags={}) as run:
        run.log_artifact(team.results[0].model.path)
    version = team.registry.register("foreign", run.run_id, run.artifact_uri)
    team.registry.set_alias("foreign", "champion", version.version)
    found = team.evaluate(ref)
    assert found.judged.split == "unknown" and found.champion_metrics == found.metrics
    assert "split: unknown, of champion v1: it has no record of the rows it learned from" in found.headline()
    after = team.evaluate(team.train(workshop.v2))
    assert team.results[-1].warm_started_from == "1"
    assert "of the challenger: it started from champion v1, which has no record of the rows it learned from" in after.headline()
    decision = decide(ReleasePolicy(), after, fakes.robustness(workshop.home / "foreign"))
    assert "split: unknown" in decision.headline()


def test_a_replaced_split_is_not_believed(workshop: Workshop) -> None:
    team = Team(workshop, "replaced_split")
    ref = team.train(workshop.v1)
    team.crown(**{SPLIT_TAG: "sha256:another"})
    with pytest.raises(RegistryError, match="does not hold the split that was registered"):
        team.evaluate(ref)
    with pytest.raises(RegistryError, match="does not hold the split that was registered"):
        team.train(workshop.v2)


@pytest.mark.long  # test_chain.py loads such a layer in the later stages
def test_a_champion_with_a_layer_of_the_team_is_gone_on_from_in_a_process_that_knows_nothing_of_it(workshop: Workshop, tmp_path: Path) -> None:
    team = Team(workshop, "own_champion")
    changes = {"function": "with_own_layer", "extensions": ("user_code",), "unsafe_models_allowed": True}
    team.train(workshop.v1, **changes)
    team.crown()
    spec = workshop.training_spec(team.validated(workshop.v1), start="champion", model_name=team.name, **changes)
    request, result = tmp_path / "spec.json", tmp_path / "result.json"
    request.write_text(json.dumps(spec_data(spec)))
    subprocess.run([sys.executable, "-m", "airflow_mlops", "stage", "train", "--spec", str(request), "--result", str(result)], check=True)
    assert json.loads(result.read_text())["result"]["warm_started_from"] == "1"


def test_a_module_that_registers_layers_is_imported_before_the_champion_is_loaded(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "team_layers.py").write_text("SEEN = True\n")
    team = Team(workshop, "extended")
    spec = workshop.training_spec(team.validated(workshop.v1), model_name=team.name, function="raises")._replace(extensions=("team_layers",))
    with pytest.raises(Exception, match="Module 'team_layers' cannot be imported"):
        train.run(spec, tmp_path / "out")


def test_the_record_of_a_split_survives_json(workshop: Workshop, tmp_path: Path) -> None:
    data = to_data(fakes.training(tmp_path))["split"]
    assert data == {
        "columns": ["a", "b"],
        "input_shape": [2],
        "num_classes": 10,
        "label_column": "label",
        "scale": 1.0,
        "held_out_fraction": 0.2,
        "unseen_fraction": 0.2,
        "unknown": None,
    }
