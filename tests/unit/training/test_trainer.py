"""Real small Keras trainings, and every way in which a user's function may fail."""

from __future__ import annotations

import dataclasses
import json
import pickle
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from airflow_mlops.exceptions import NonFiniteModel, RegistryUnavailable, SpecError, TrainFunctionError
from airflow_mlops.training.context import TrainingContext
from airflow_mlops.training.reproducibility import package_versions, seed_everything
from airflow_mlops.training.trainer import fit

Logged = list[tuple[str, float, int]]


@pytest.fixture
def logged() -> Logged:
    return []


@pytest.fixture
def context(tmp_path: Path, logged: Logged) -> TrainingContext:
    rng = np.random.default_rng(5)
    return TrainingContext(
        inputs=rng.random((32, 4, 4, 1), dtype=np.float32),
        labels=rng.integers(0, 3, 32),
        params={},
        seed=5,
        num_classes=3,
        log_metric=lambda name, value, step: logged.append((name, value, step)),
        out_dir=tmp_path,
    )


def small_model() -> keras.Model:
    return keras.Sequential(
        [keras.Input((4, 4, 1), name="image"), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax", name="probabilities")]
    )


def train(context: TrainingContext) -> keras.Model:
    model = small_model()
    model.compile("adam", loss="sparse_categorical_crossentropy")
    history = model.fit(context.inputs, context.labels, epochs=2, verbose=0)
    for epoch, loss in enumerate(history.history["loss"]):
        context.log_metric("loss", loss, epoch)
    return model


def test_a_sound_model_is_returned_and_its_metrics_are_logged(context: TrainingContext, logged: Logged) -> None:
    model = fit(train, context)
    assert model.predict(context.inputs, verbose=0).shape == (32, 3)
    assert [(name, step) for name, _, step in logged] == [("loss", 0), ("loss", 1)]


def test_the_same_seed_gives_the_same_weights(context: TrainingContext) -> None:
    seed_everything(5)
    first = fit(train, context).get_weights()
    seed_everything(5)
    second = fit(train, context).get_weights()
    seed_everything(6)
    third = fit(train, context).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, third, strict=True))


def raises(context: TrainingContext) -> keras.Model:
    return json.loads("{")


def test_a_function_that_raises_names_the_error_and_the_users_last_line(context: TrainingContext) -> None:
    with pytest.raises(TrainFunctionError, match=r"JSONDecodeError: .*test_trainer\.py:\d+ in raises: return json\.loads") as caught:
        fit(raises, context)
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)
    assert not caught.value.retryable
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("leave", [SystemExit(0), SystemExit(3), KeyboardInterrupt()])
def test_a_function_that_leaves_the_process_only_ends_its_training(context: TrainingContext, leave: BaseException) -> None:
    def leaves(context: TrainingContext) -> keras.Model:
        raise leave

    with pytest.raises(TrainFunctionError, match=type(leave).__name__):
        fit(leaves, context)


def test_what_keras_prints_bold_is_plain_in_the_record(context: TrainingContext) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    with pytest.raises(TrainFunctionError, match="Invalid input shape") as caught:
        fit(lambda context: model(context.inputs), context)
    assert "\x1b" not in str(caught.value)


def test_a_function_that_takes_other_arguments_is_refused(context: TrainingContext) -> None:
    def two(context: TrainingContext, more: int) -> None: ...

    with pytest.raises(TrainFunctionError, match="missing 1 required positional argument: 'more'"):
        fit(two, context)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("returned", "described"),
    [(None, "None"), ("model.keras", "a builtins.str"), (keras.Sequential([keras.layers.Dense(3)]), "without weights")],
)
def test_a_function_that_returns_no_built_model_is_told_what_came_back(context: TrainingContext, returned: Any, described: str) -> None:
    with pytest.raises(TrainFunctionError, match=described):
        fit(lambda context: returned, context)


def test_nan_in_a_weight_names_the_layer(context: TrainingContext) -> None:
    def broken(context: TrainingContext) -> keras.Model:
        model = small_model()
        kernel, bias = model.get_weights()
        bias[1] = np.nan
        model.set_weights([kernel, bias])
        return model

    with pytest.raises(NonFiniteModel, match=r"'.*probabilities' has NaN or infinity in its bias"):
        fit(broken, context)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_a_metric_that_is_not_finite_ends_the_training(context: TrainingContext, logged: Logged, value: float) -> None:
    def diverges(context: TrainingContext) -> keras.Model:
        context.log_metric("loss", value, 3)
        return small_model()

    with pytest.raises(NonFiniteModel, match=r"'loss' is .* at step 3"):
        fit(diverges, context)
    assert logged == []


def test_a_registry_that_is_down_while_logging_stays_worth_a_retry(context: TrainingContext) -> None:
    def down(name: str, value: float, step: int) -> None:
        raise RegistryUnavailable("MLflow did not answer.")

    with pytest.raises(RegistryUnavailable):
        fit(train, dataclasses.replace(context, log_metric=down))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_an_impossible_seed_is_refused(seed: int) -> None:
    with pytest.raises(SpecError, match="seeds from 0"):
        seed_everything(seed)


def test_package_versions_name_what_made_the_model() -> None:
    versions = package_versions()
    assert (versions["keras"], versions["numpy"], versions["tensorflow"]) == (keras.__version__, np.__version__, tf.__version__)
    assert versions["python"] == platform.python_version()
    assert versions["typing-extensions"] == metadata.version("typing_extensions")


def test_package_versions_name_every_distribution_once_and_the_one_that_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, version in (("first", "1.0"), ("second", "2.0")):
        information = tmp_path / place / f"Some_Package-{version}.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Some_Package\nVersion: {version}\n")
    (tmp_path / "first" / "left-0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second")])
    assert package_versions() == {"python": platform.python_version(), "some-package": "1.0"}


def test_the_context_is_light_to_import() -> None:
    script = (
        "import sys, airflow_mlops.training.context, airflow_mlops.training.function, airflow_mlops.training.reproducibility;"
        "print(*sys.modules.keys() & {'keras', 'tensorflow', 'numpy', 'mlflow', 'airflow'})"
    )
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.strip() == ""
