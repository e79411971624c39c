"""Checkpoints: whole or not there, the one before when one is torn, and never another model's or request's."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from airflow_mlops.exceptions import CheckpointError, CheckpointMismatch
from airflow_mlops.training import checkpoints
from airflow_mlops.training.checkpoints import CheckpointManager


def small_model(units: int = 3, dtype: str = "float32") -> keras.Model:
    layers = [keras.Input((4,)), keras.layers.Dense(units, dtype=dtype), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse")
    return model


def train(model: keras.Model) -> None:
    model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)


def values(model: keras.Model) -> list[np.ndarray]:
    return [np.asarray(variable) for variable in (*model.variables, *model.optimizer.variables)]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    return CheckpointManager(tmp_path / "checkpoints", "request 1")


def newest(manager: CheckpointManager) -> Path:
    return max(manager.place.glob("step-*.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_another_process_restores_weights_optimizer_and_seeds_whatever_numbers_keras_gave_its_layers(manager: CheckpointManager, dtype: str) -> None:
    model = small_model(dtype=dtype)
    train(model)
    manager.save(model, 1, {"best": np.arange(3.0)}, epoch=1, best=float("inf"))
    again = small_model(dtype=dtype)
    assert not same(values(model)[:1], values(again)[:1])
    restored = manager.restore(again)
    assert restored is not None
    assert (restored.step, restored.state) == (1, {"epoch": 1, "best": float("inf")})
    assert np.array_equal(restored.arrays["best"], np.arange(3.0))
    assert same(values(model), values(again))
    assert manager.resumed_from == restored


def test_a_checkpoint_is_a_safetensors_file_that_others_can_read(manager: CheckpointManager) -> None:
    model = small_model()
    stored = load_file(manager.save(model, 1))
    assert same([stored[name] for name in sorted(stored)], values(model))


def test_without_a_checkpoint_there_is_nothing_to_restore(manager: CheckpointManager) -> None:
    model = small_model()
    before = values(model)
    assert manager.restore(model) is None
    assert same(before, values(model)[: len(before)])


def test_the_newest_two_are_kept_and_none_after_clear(manager: CheckpointManager) -> None:
    for step in (9, 10, 11):
        manager.save(small_model(), step)
    assert len(list(manager.place.iterdir())) == 4
    latest = manager.latest()
    assert latest is not None
    assert latest.step == 11
    manager.clear()
    assert list(manager.place.iterdir()) == []
    assert manager.latest() is None


@pytest.mark.parametrize("spoil", ["truncate", "flip", "remove", "marker"])
def test_a_torn_checkpoint_is_put_aside_and_the_one_before_is_used(manager: CheckpointManager, spoil: str, caplog: pytest.LogCaptureFixture) -> None:
    model = small_model()
    manager.save(model, 1)
    good = values(model)
    train(model)
    path = manager.save(model, 2)
    if spoil == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    elif spoil == "flip":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif spoil == "remove":
        path.unlink()
    else:
        path.with_name(f"{path.name}.json").write_text('{"digest":')
    restored = manager.restore(model)
    assert restored is not None
    assert restored.step == 1
    assert same(values(model), good)
    assert "put aside, and the one before it is used" in caplog.text
    assert list(manager.place.glob("step-000000000002*.quarantined"))
    manager.save(model, 2)
    assert manager.latest().step == 2  # type: ignore[union-attr]


def test_a_file_without_its_marker_does_not_exist(manager: CheckpointManager) -> None:
    path = manager.save(small_model(), 1)
    path.with_name(f"{path.name}.json").unlink()
    assert manager.latest() is None


@pytest.mark.parametrize(
    ("other", "said"), [(lambda: small_model(units=5), r"dense/kernel \(4, 3\) there, \(4, 5\) here.*and 6 more"),
                        (lambda: small_model(dtype="float16"), "dense/kernel float32 there, float16 here"),
                        (lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), "absent here")],
)  # fmt: skip
def test_a_checkpoint_of_another_model_is_refused_and_what_differs_is_said(manager: CheckpointManager, other, said: str) -> None:  # type: ignore[no-untyped-def]
    manager.save(small_model(), 1)
    model = other()
    before = [np.asarray(weight) for weight in model.weights]
    with pytest.raises(CheckpointMismatch, match=said):
        manager.restore(model)
    assert same(before, [np.asarray(weight) for weight in model.weights])


def test_a_checkpoint_of_another_request_is_refused(manager: CheckpointManager) -> None:
    manager.save(small_model(), 1)
    with pytest.raises(CheckpointMismatch, match="is of another request: request 1, this one is request 2"):
        CheckpointManager(manager.place, "request 2").restore(small_model())


def test_a_full_disk_is_said_and_the_last_good_checkpoint_stays(manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    manager.save(model, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints, "_write_all", full)
    with pytest.raises(CheckpointError, match=r"No space left on device\. What was saved before it stays"):
        manager.save(model, 2)
    assert manager.latest().step == 1  # type: ignore[union-attr]
    assert len(list(manager.place.iterdir())) == 2


def test_a_place_that_is_no_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Make room or give a writable directory"):
        CheckpointManager(tmp_path / "file" / "checkpoints", "request").save(small_model(), 1)


def test_what_a_killed_writer_left_is_removed_by_the_next(manager: CheckpointManager) -> None:
    manager.save(small_model(), 1)
    child = os.fork()
    if child == 0:
        (manager.place / f".step-000000000002.safetensors.{checkpoints.writer()}.tmp").write_bytes(b"half")
        os._exit(0)
    os.waitpid(child, 0)
    assert list(manager.place.glob(".step-*"))
    manager.save(small_model(), 2)
    assert not list(manager.place.glob(".step-*"))
