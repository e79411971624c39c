"""Trainings with features of their own, and with code from a repository: what is recorded, measured, attacked and served."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from airflow_mlops.exceptions import RegistryError, SpecError
from airflow_mlops.records import ResultRef
from airflow_mlops.registry.mlflow import MlflowRegistry
from airflow_mlops.stages import evaluate, robustness, train
from airflow_mlops.stages.code import code_of
from airflow_mlops.stages.inputs import read_split
from airflow_mlops.stages.models import load_challenger
from tests.git import AUTHOR, commit_all
from tests.servers import await_state, embedded_server
from tests.serving_models import publish

from .conftest import Workshop

CODE = """
import keras
import tensorflow as tf

def features(pixels):
    flat = tf.reshape(pixels, (-1, 64))
    return tf.concat([tf.math.log(flat + 0.1), tf.reduce_mean(flat, 1, keepdims=True)], 1)

def train(context):
    dense = keras.layers.Dense(context.num_classes, activation="softmax")
    model = context.initial_model or keras.Sequential([keras.Input(context.inputs.shape[1:]), dense])
    model.compile(keras.optimizers.Adam(0.05), loss="sparse_categorical_crossentropy")
    model.fit(context.inputs, context.labels, epochs=8, verbose=0)
    context.log_metric("from", FROM, 0)
    return model

def retrain(context):
    context.log_metric("continued", 1.0, 0)
    return train(context)
"""


@dataclass(frozen=True)
class Story:
    """A champion with features, trained by a first commit, and its successor, continued by a second; then the repository was lost."""

    commits: tuple[str, str]
    first: Any
    second_ref: ResultRef
    second: Any
    registry: MlflowRegistry


def write(place: Path, number: int) -> str:
    (place / "featured_model.py").write_text(CODE.replace("FROM", f"{number}.0"))
    return commit_all(place)


def run_elsewhere(workshop: Workshop, spec: train.Spec, name: str) -> tuple[ResultRef, Any]:
    """Run a training as if in a process of its own: modules of another commit are not there."""
    sys.modules.pop("featured_model", None)
    before = list(sys.path)
    try:
        return workshop.run("train", spec, name)
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def story(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    place = tmp_path_factory.mktemp("team")
    commits = (write(place, 1), write(place, 2))
    registry = MlflowRegistry(workshop.tracking_uri)
    validation, _ = workshop.validate(dataclasses.replace(workshop.v2, name="featured"))
    spec = workshop.training_spec(validation, start="champion")._replace(
        function="featured_model:train",
        features="featured_model:features",
        retrain="featured_model:retrain",
        code_path="/nowhere",
        repository=str(place),
        code_authors=("Bo <bo@example.org>", AUTHOR),
        model_name="featured",
    )
    _, first = run_elsewhere(workshop, spec._replace(commit=commits[0]), "featured-1")
    tags = {"model_digest": first.model.digest, "features_digest": first.features.digest}
    version = registry.register("featured", first.mlflow_run_id, first.mlflow_source, tags=tags)
    registry.set_alias("featured", "champion", version.version)
    second_ref, second = run_elsewhere(workshop, spec._replace(commit=commits[1]), "featured-2")
    place.rename(place.with_name("lost"))
    yield Story(commits, first, second_ref, second, registry)
    sys.modules.pop("featured_model", None)


def test_each_training_ran_the_code_of_its_commit_and_says_so(story: Story) -> None:
    assert (story.first.code_version, story.second.code_version) == story.commits
    assert (story.first.metrics["from"], story.second.metrics["from"]) == (1.0, 2.0)
    assert story.first.code_authors == (AUTHOR, "Bo <bo@example.org>"), "Git's, and those that the pipeline names"


def test_only_a_training_that_starts_from_a_champion_runs_retrain(story: Story) -> None:
    assert (story.first.warm_started_from, story.second.warm_started_from) == (None, "1")
    assert "continued" not in story.first.metrics
    assert story.second.metrics["continued"] == 1.0


def test_both_models_are_measured_on_raw_rows_behind_the_features_of_their_own_training(story: Story, workshop: Workshop) -> None:
    """The code is gone: the features came with the models."""
    _, compared = workshop.run("evaluate", evaluate.Spec(story.second_ref, "featured", workshop.tracking_uri), "featured-2")
    assert (compared.champion_version, compared.champion_problem) == ("1", None)
    assert compared.metrics["accuracy"] > 0.8 and compared.champion_metrics["accuracy"] > 0.8


def test_the_campaign_mutates_raw_rows(story: Story, workshop: Workshop) -> None:
    _, attacked = workshop.run("robustness", robustness.Spec(story.second_ref, max_mutants=60, seed=1), "featured-2")
    assert attacked.num_mutants >= 60


def test_features_that_somebody_replaced_are_not_used(story: Story, workshop: Workshop) -> None:
    story.registry.set_tags("featured", 1, {"features_digest": "sha256:another"})
    with pytest.raises(RegistryError, match="The artefact features of featured version 1 has the digest"):
        workshop.run("evaluate", evaluate.Spec(story.second_ref, "featured", workshop.tracking_uri), "replaced")
    story.registry.set_tags("featured", 1, {"features_digest": story.first.features.digest})


def test_the_model_server_answers_raw_rows_as_the_model_answers_the_features_of_the_training(
    story: Story, workshop: Workshop, tmp_path: Path
) -> None:
    rows = read_split(workshop.v2, story.second.split).held_out.inputs[:32]
    assert keras.saving.load_model(story.second.model.path).input_shape == (None, 65)
    expected = np.asarray(load_challenger(story.second)(rows, training=False))
    publish(story.second.saved_model.path, tmp_path / "base", 1)
    config = tmp_path / "models.config"
    config.write_text(f"model_config_list {{ config {{ name: 'featured' base_path: '{tmp_path / 'base'}' model_platform: 'tensorflow' }} }}")
    with embedded_server(config) as server, server.client() as client:
        await_state(client, "featured", 1, "AVAILABLE")
        _, outputs = client.predict_tensors("featured", {"pixels": rows})
    assert np.array_equal(outputs["output_0"], expected)


@pytest.mark.parametrize("changes", [{"repository": "/team", "commit": ""}, {"repository": "", "commit": "a" * 40}])
def test_half_of_repository_and_commit_is_refused(workshop: Workshop, changes: dict[str, str]) -> None:
    spec = workshop.training_spec(ResultRef("validate", "", ""))._replace(**changes)
    with pytest.raises(SpecError, match="expected both, or neither"):
        code_of(spec, Path("/nowhere"))
