"""Keras' fit over interruptions: the same weights, the same patience, the same metrics as without one."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest

from airflow_mlops.exceptions import CheckpointMismatch, NonFiniteModel, SpecError
from airflow_mlops.training import callback
from airflow_mlops.training.callback import order
from airflow_mlops.training.checkpoints import CheckpointManager
from airflow_mlops.training.context import TrainingContext
from airflow_mlops.training.progress import parse
from airflow_mlops.training.reproducibility import seed_everything
from airflow_mlops.training.twin import traced

NUM_ROWS, BATCH_SIZE, EPOCHS = 50, 8, 4
PER_EPOCH = 7

Logged = list[tuple[str, float, int]]


def never() -> bool:
    return False


def after(batches: int) -> Callable[[], bool]:
    """Return a should_stop that is true from the given batch of this process on."""
    asked = itertools.count(1)
    return lambda: next(asked) >= batches


def context(place: Path, should_stop: Callable[[], bool] = never, logged: Logged | None = None, **changes: Any) -> TrainingContext:
    rng = np.random.default_rng(7)
    made = TrainingContext(
        inputs=rng.random((NUM_ROWS, 6), dtype=np.float32),
        labels=rng.integers(0, 3, NUM_ROWS),
        params={},
        seed=7,
        num_classes=3,
        log_metric=lambda *entry: (logged if logged is not None else []).append(entry),
        out_dir=place,
        checkpoints=CheckpointManager(place / "checkpoints", "request"),
        should_stop=should_stop,
    )
    return dataclasses.replace(made, **changes)


def model(learning_rate: float = 0.01) -> keras.Model:
    """A model with all that must go on: dropout's seed, momentum, a learning rate that a callback changes."""
    seed_everything(7)
    layers = [keras.Input((6,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dropout(0.5), keras.layers.Dense(3, activation="softmax")]
    made = keras.Sequential(layers)
    made.compile(keras.optimizers.Adam(learning_rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return made


def same(one: keras.Model, other: keras.Model) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


class Whole(NamedTuple):
    """A training of `EPOCHS` epochs that nothing interrupted, and what it logged."""

    model: keras.Model
    history: dict[str, list[float]]
    logged: Logged


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What the others are compared with."""
    trained, logged = model(), Logged()
    history = context(tmp_path_factory.mktemp("whole"), logged=logged).fit(trained, epochs=EPOCHS, batch_size=BATCH_SIZE)
    return Whole(trained, history, logged)


def in_proofs(*values: int) -> list[Any]:
    """Return parameters whose tests, several trainings each, only `make proofs` runs."""
    return [pytest.param(value, marks=pytest.mark.long) for value in values]


def test_every_pass_sees_every_row_once_in_an_order_of_its_own_and_goes_on_anywhere() -> None:
    batches = list(itertools.islice(order(1, 10, 4, 0), 6))
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    assert sorted(np.concatenate(batches[:3])) == sorted(np.concatenate(batches[3:])) == list(range(10))
    assert not np.array_equal(np.concatenate(batches[:3]), np.concatenate(batches[3:]))
    for first in range(6):
        assert all(map(np.array_equal, itertools.islice(order(1, 10, 4, first), 6 - first), batches[first:]))
    assert not np.array_equal(next(order(2, 10, 4, 0)), batches[0])


@pytest.mark.parametrize("stop_after", [PER_EPOCH + 1, PER_EPOCH, *in_proofs(1, 5, 2 * PER_EPOCH - 1, 3 * PER_EPOCH)])
def test_a_training_that_was_stopped_anywhere_ends_in_the_same_weights(whole: Whole, tmp_path: Path, stop_after: int) -> None:
    first = model()
    context(tmp_path, after(stop_after)).fit(first, epochs=EPOCHS, batch_size=BATCH_SIZE)
    assert not same(first, whole.model)
    second, again = model(), Logged()
    resumed = context(tmp_path, logged=again)
    assert resumed.fit(second, epochs=EPOCHS, batch_size=BATCH_SIZE).keys() == whole.history.keys()
    assert resumed.checkpoints is not None
    assert resumed.checkpoints.resumed_from is not None
    assert resumed.checkpoints.resumed_from.step == stop_after
    assert resumed.checkpoints.resumed_from.state["seconds"] > 0
    assert same(second, whole.model)
    before, after_all = ({(name, step): value for name, value, step in entries} for entries in (whole.logged, again))
    assert after_all.keys() == before.keys()
    cut = -1 if stop_after % PER_EPOCH == 0 else stop_after // PER_EPOCH  # its means are those of its rest
    assert [key for key in before if before[key] != after_all[key] and key[1] != cut] == []


@pytest.mark.long
def test_a_training_may_be_stopped_again_and_again(whole: Whole, tmp_path: Path) -> None:
    for _ in range(10):
        last = model()
        context(tmp_path, after(4)).fit(last, epochs=EPOCHS, batch_size=BATCH_SIZE)
    assert same(last, whole.model)


def test_a_killed_training_goes_on_from_the_last_epoch_that_was_kept(whole: Whole, tmp_path: Path) -> None:
    class Killed(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if int(self.model.optimizer.iterations.numpy()) == 2 * PER_EPOCH + 3:
                raise KeyboardInterrupt

    class Quiet(keras.callbacks.Callback):
        """In the place of Killed: callbacks must be as many."""

    with pytest.raises(KeyboardInterrupt):
        context(tmp_path).fit(model(), epochs=EPOCHS, batch_size=BATCH_SIZE, callbacks=[Killed()], checkpoint_epochs=1)
    resumed = context(tmp_path)
    second = model()
    resumed.fit(second, epochs=EPOCHS, batch_size=BATCH_SIZE, callbacks=[Quiet()])
    assert resumed.checkpoints.resumed_from.step == 2 * PER_EPOCH  # type: ignore[union-attr]
    assert same(second, whole.model)


@pytest.mark.parametrize("stop_after", [4 * PER_EPOCH + 2, *in_proofs(4, PER_EPOCH, 2 * PER_EPOCH + 2)])  # late: both remember something by then
def test_early_stopping_and_a_falling_learning_rate_go_on_over_an_interruption(tmp_path: Path, stop_after: int) -> None:
    def callbacks() -> list[keras.callbacks.Callback]:
        stopping = keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
        return [stopping, keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1)]

    def fit(made: TrainingContext, trained: keras.Model) -> dict[str, list[float]]:
        worse = (made.inputs[::-1], made.labels)  # labels of other rows: the loss on them rises soon
        return made.fit(trained, epochs=40, batch_size=BATCH_SIZE, callbacks=callbacks(), validation_data=worse)

    whole = model(0.1)
    history = fit(context(tmp_path / "whole"), whole)
    assert 2 < len(history["loss"]) < 40
    fit(context(tmp_path, after(stop_after)), model(0.1))
    second = model(0.1)
    assert fit(context(tmp_path), second)["val_loss"] == history["val_loss"]
    assert same(second, whole)


def test_a_training_that_was_done_trains_no_further_when_its_process_died_afterwards(tmp_path: Path) -> None:
    first = model(0.1)

    def fit(made: TrainingContext, trained: keras.Model) -> None:
        stopping = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=10.0, restore_best_weights=True)
        made.fit(trained, epochs=40, batch_size=BATCH_SIZE, callbacks=[stopping], checkpoint_epochs=1)

    fit(context(tmp_path), first)
    second = model(0.1)
    fit(context(tmp_path), second)
    assert same(first, second)


def two_phases(made: TrainingContext) -> keras.Model:
    """Train the head alone, then everything."""
    trained = model()
    trained.layers[0].trainable = False
    trained.compile("adam", loss="sparse_categorical_crossentropy")
    made.fit(trained, epochs=2, batch_size=BATCH_SIZE)
    trained.layers[0].trainable = True
    trained.compile("sgd", loss="sparse_categorical_crossentropy")
    made.fit(trained, epochs=2, batch_size=BATCH_SIZE)
    return trained


@pytest.mark.parametrize("stop_after", [3 * PER_EPOCH + 2, *in_proofs(PER_EPOCH + 2)])
def test_a_function_that_trains_in_two_phases_goes_on_in_the_one_that_was_cut(tmp_path: Path, stop_after: int) -> None:
    whole = two_phases(context(tmp_path / "whole"))
    two_phases(context(tmp_path, after(stop_after)))
    resumed = context(tmp_path)
    assert same(two_phases(resumed), whole)
    assert [len(history["loss"]) for history in resumed.histories] == [2, 2]


def test_a_checkpoint_is_kept_whenever_its_time_has_come(tmp_path: Path) -> None:
    made = context(tmp_path)
    assert made.checkpoints is not None
    made.checkpoints.every_seconds = 0.0
    made.fit(model(), epochs=1, batch_size=BATCH_SIZE)
    assert [path.name for path in sorted(made.checkpoints.place.glob("*.safetensors"))] == [f"step-{step:012d}.safetensors" for step in (6, 7)]


def test_steps_per_epoch_makes_epochs_shorter_and_loses_no_row(whole: Whole, tmp_path: Path) -> None:
    other = model()
    history = context(tmp_path).fit(other, epochs=EPOCHS * PER_EPOCH // 2, batch_size=BATCH_SIZE, steps_per_epoch=2)
    assert len(history["loss"]) == EPOCHS * PER_EPOCH // 2
    assert same(whole.model, other)


def test_a_trace_looks_at_every_so_many_steps(tmp_path: Path) -> None:
    with traced(tmp_path / "trace", every=3):
        context(tmp_path).fit(model(), epochs=1, batch_size=BATCH_SIZE)
    assert [json.loads(line)["step"] for line in (tmp_path / "trace").read_text().splitlines()] == [3, 6]


def test_a_loss_that_is_nan_ends_the_training_and_is_never_kept(tmp_path: Path) -> None:
    trained = model(learning_rate=float("inf"))
    with pytest.raises(NonFiniteModel, match=r"The loss is nan at step \d+: the training diverged"):
        context(tmp_path).fit(trained, epochs=EPOCHS, batch_size=BATCH_SIZE, checkpoint_epochs=1)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_progress_is_written_and_its_last_line_is_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback, "REPORT_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    context(tmp_path).fit(model(), epochs=2, batch_size=BATCH_SIZE)
    seen = [progress for progress in map(parse, caplog.messages) if progress]
    assert [(seen[0].epoch, seen[0].step), (seen[-1].epoch, seen[-1].step)] == [(0, 1), (2, 2 * PER_EPOCH)]
    assert seen[-1].num_epochs == 2
    assert seen[-1].seconds_left == 0
    assert all(progress.loss is not None and progress.loss > 0 for progress in seen)


def test_the_end_of_a_short_epoch_is_told_too_but_not_of_thousands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback, "NUM_SHARES", 4)
    caplog.set_level(logging.INFO)
    context(tmp_path).fit(model(), epochs=11, batch_size=100)
    epochs = [progress.epoch for progress in map(parse, caplog.messages) if progress]
    assert {2, 4, 6, 8, 10, 11} <= {*epochs}
    assert len(epochs) < 11


def test_rows_cannot_be_written_and_are_not_shared(tmp_path: Path) -> None:
    made = context(tmp_path)
    for rows in (made.inputs, made.labels):
        with pytest.raises(ValueError, match="read-only"):
            rows[0] = 0


@pytest.mark.parametrize("argument", ["shuffle", "x", "initial_epoch"])
def test_arguments_that_would_change_the_rows_are_refused(tmp_path: Path, argument: str) -> None:
    with pytest.raises(SpecError, match=f"takes no {argument}"):
        context(tmp_path).fit(model(), epochs=1, **{argument: 1})


@pytest.mark.parametrize("numbers", [{"epochs": 0}, {"epochs": -1}, {"epochs": 1, "batch_size": 0}, {"epochs": 1, "steps_per_epoch": -2}])
def test_a_training_of_nothing_is_refused(tmp_path: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(SpecError, match=r"context\.fit is given \w+=-?\d; give 1 or more"):
        context(tmp_path).fit(model(), **numbers)  # type: ignore[arg-type]


def test_an_attempt_with_other_callbacks_than_the_one_before_is_told_so(tmp_path: Path) -> None:
    patience = keras.callbacks.EarlyStopping("loss", patience=9)
    context(tmp_path, after(10)).fit(model(), epochs=EPOCHS, batch_size=BATCH_SIZE, callbacks=[patience])
    with pytest.raises(CheckpointMismatch, match=r"saved with more or fewer callbacks.*same order in every attempt, or remove the checkpoint"):
        context(tmp_path).fit(model(), epochs=EPOCHS, batch_size=BATCH_SIZE)
