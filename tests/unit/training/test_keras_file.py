"""A saved model is what the next stages can load: without what only its training needed, and refused at once where they could not."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from airflow_mlops.exceptions import TrainingError, UnsafeModel
from airflow_mlops.inspection import inspect_keras
from airflow_mlops.training.export import save
from airflow_mlops.training.keras_file import Extensions
from tests.unit.training.own_layers import AlwaysDrops, Forgetful, OwnLoss, OwnMetric, OwnOptimizer, OwnSchedule, Unregistered, unregistered

ROWS, LABELS = np.random.default_rng(5).random((32, 8), dtype=np.float32), np.arange(32) % 3
HERE = str(Path(__file__).parent)
EXTENDED = Extensions(HERE, ("own_layers",))


def classifier(*middle: Any) -> keras.Model:
    return keras.Sequential([keras.Input((8,)), *middle, layers.Dense(3, activation="softmax")])


COMPILED: dict[str, dict[str, Any]] = {
    "a loss": {"optimizer": "adam", "loss": OwnLoss()},
    "a function": {"optimizer": "adam", "loss": lambda y_true, y_pred: keras.losses.sparse_categorical_crossentropy(y_true, y_pred)},
    "a metric": {"optimizer": "adam", "loss": "sparse_categorical_crossentropy", "metrics": [OwnMetric()]},
    "a schedule": {"optimizer": keras.optimizers.Adam(OwnSchedule()), "loss": "sparse_categorical_crossentropy"},
    "an optimizer": {"optimizer": OwnOptimizer(), "loss": "sparse_categorical_crossentropy"},
}


@pytest.mark.parametrize("name", COMPILED)
def test_what_a_model_was_compiled_with_is_not_in_its_file_and_still_in_the_model(tmp_path: Path, name: str) -> None:
    model = classifier()
    model.compile(**COMPILED[name])
    model.fit(ROWS, LABELS, verbose=0)
    exported = save(model, ROWS, tmp_path)
    inspect_keras(exported.model)
    with zipfile.ZipFile(exported.model) as archive:
        assert "compile_config" not in json.loads(archive.read("config.json"))
        with archive.open("model.weights.h5") as stream, h5py.File(stream) as weights:
            assert "optimizer" not in weights
    step = int(model.optimizer.iterations)
    model.fit(ROWS, LABELS, verbose=0)
    assert int(model.optimizer.iterations) == 2 * step


def test_an_inner_model_leaves_out_what_it_was_compiled_with_too(tmp_path: Path) -> None:
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
    inner.compile(OwnOptimizer(), OwnLoss())
    inspect_keras(save(classifier(inner), ROWS, tmp_path).model)
    assert isinstance(inner.optimizer, OwnOptimizer)


UNKNOWN: dict[str, tuple[Callable[[], Any], Extensions | None, str]] = {
    "a function": (lambda: layers.Dense(4, activation=unregistered), Extensions(HERE), "unregistered"),
    "a layer": (Unregistered, None, "Unregistered"),
    "a layer, and extensions that do not register it": (Unregistered, EXTENDED, "Unregistered"),
    "a registered layer whose module is not named": (AlwaysDrops, Extensions(HERE), "AlwaysDrops"),
    "a module that is not there": (Unregistered, Extensions(HERE, ("own_leyers",)), "own_leyers"),
}


@pytest.mark.parametrize(("make", "extensions", "named"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_the_next_stages_could_not_load_ends_the_training_and_it_says_how_to_register(
    tmp_path: Path, make: Callable[[], Any], extensions: Extensions | None, named: str
) -> None:
    layer = make()
    if isinstance(layer, AlwaysDrops):
        layer.call = lambda x: x
    with pytest.raises(TrainingError, match=rf"(?s){named}.*register_keras_serializable.*extensions"):
        save(classifier(layer), ROWS, tmp_path, code_allowed=True, extensions=extensions)
    assert not (tmp_path / "golden.json").exists()


def test_a_registered_layer_is_loaded_in_a_process_that_imports_its_module(tmp_path: Path) -> None:
    save(classifier(Forgetful()), ROWS, tmp_path, code_allowed=True, extensions=EXTENDED)


def test_a_layer_of_a_team_is_still_code_that_must_be_allowed(tmp_path: Path) -> None:
    with pytest.raises(UnsafeModel, match="Unregistered"):
        save(classifier(Unregistered()), ROWS, tmp_path)


def test_a_lambda_that_uses_what_its_file_does_not_hold_is_refused(tmp_path: Path) -> None:
    layer = layers.Lambda(lambda x: ROWS[0] + x, output_shape=(8,))
    with pytest.raises(TrainingError, match=r"cannot answer the golden rows: .*'ROWS' is not defined.*registered layer"):
        save(classifier(layer), ROWS, tmp_path, code_allowed=True, extensions=Extensions())


def test_a_model_that_loses_what_it_has_learned_when_it_is_saved_is_refused(tmp_path: Path) -> None:
    layer = Forgetful()
    layer.factor = 3.0
    with pytest.raises(TrainingError, match=r"answers golden row \d+ differently than the trained one.*add_weight"):
        save(classifier(layer), ROWS, tmp_path, code_allowed=True, extensions=EXTENDED)


def test_what_the_train_function_registered_is_known_again_afterwards(tmp_path: Path) -> None:
    before = dict(keras.saving.get_custom_objects())
    assert "purity>AlwaysDrops" in before
    save(classifier(), ROWS, tmp_path, extensions=Extensions())
    assert keras.saving.get_custom_objects() == before
