"""Two traces and where they part; two files of weights and how they differ; what a training runs in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from airflow_mlops.exceptions import SpecError, TrainingError
from airflow_mlops.training.reproducibility import environment_of, pin
from airflow_mlops.training.twin import Divergence, first_divergence
from airflow_mlops.training.weights import Difference, difference, read_weights

Steps = dict[int, dict[str, str]]
SAME: Steps = {1: {"a": "0", "b": "0"}, 2: {"a": "1", "b": "1"}, 3: {"a": "2", "b": "2"}}


def trace(path: Path, steps: Steps) -> Path:
    path.write_text("".join(json.dumps({"step": step, "digests": digests}) + "\n" for step, digests in steps.items()))
    return path


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (SAME, None),
        ({**SAME, 2: {"a": "1", "b": "x"}, 3: {"a": "y", "b": "y"}}, Divergence(2, "b", 1)),
        ({1: {"a": "x", "b": "0"}}, Divergence(1, "a", 0)),
        ({1: SAME[1], 2: SAME[2]}, Divergence(3, "(the number of steps)", 2)),
        ({1: SAME[1], 2: {"a": "1"}}, Divergence(2, "b", 1)),
        ({}, Divergence(1, "(the number of steps)", 0)),
    ],
    ids=["the same", "a tensor", "at once", "shorter", "a tensor less", "nothing"],
)
def test_two_traces_part_at_the_first_step_and_tensor_that_differ(tmp_path: Path, other: Steps, expected: Divergence | None) -> None:
    one, two = trace(tmp_path / "one", SAME), trace(tmp_path / "two", other)
    assert first_divergence(one, two) == expected
    assert first_divergence(two, one) == expected


def test_of_coarse_traces_the_steps_between_two_looks_are_named() -> None:
    assert Divergence(20, "a", 10).sentence() == "They part in one of the steps 11 to 20: the first tensor that differs is 'a'."
    assert Divergence(1, "a", 0).sentence() == "They part in step 1: the first tensor that differs is 'a'."


def keras_file(path: Path, **weights: object) -> Path:
    with h5py.File(path.with_suffix(".h5"), "w") as stored:
        for name, values in weights.items():
            stored.create_dataset(name.replace("__", "/"), data=np.asarray(values, np.float32))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_suffix(".h5"), "model.weights.h5")
    return path


def test_weights_are_compared_by_their_bits_and_the_optimizers_are_not(tmp_path: Path) -> None:
    one = keras_file(tmp_path / "one", layers__a=[1.0, 2.0], layers__b=[0.0], optimizer__vars=[1.0])
    same = keras_file(tmp_path / "same", layers__a=[1.0, 2.0], layers__b=[0.0], optimizer__vars=[2.0])
    other = keras_file(tmp_path / "other", layers__a=[1.0, 2.5], layers__b=[0.25])
    assert list(read_weights(one)) == ["layers/a", "layers/b"]
    assert difference(one, same) is None
    assert difference(one, other) == Difference("layers/a", 0.5)
    assert difference(one, keras_file(tmp_path / "minus", layers__a=[1.0, 2.0], layers__b=[-0.0])) == Difference("layers/b", 0.0)
    assert difference(one, keras_file(tmp_path / "less", layers__a=[1.0, 2.0])) == Difference("layers/b", float("inf"))
    assert difference(one, keras_file(tmp_path / "shape", layers__a=[[1.0, 2.0]], layers__b=[0.0])) == Difference("layers/a", float("inf"))


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(b"no archive")
    with pytest.raises(TrainingError, match=re.escape("holds no weights of a Keras model")):
        read_weights(tmp_path / "model.keras")


def test_a_negative_number_of_threads_is_refused() -> None:
    with pytest.raises(SpecError, match="num_threads is -1"):
        pin(reproducible=True, num_threads=-1)


PINNING = """
import dataclasses, json
from airflow_mlops.training.reproducibility import pin
print(json.dumps([dataclasses.asdict(pin(reproducible=reproducible, num_threads=3)) for reproducible in (False, True)]))
"""


def test_what_a_training_runs_in_is_recorded() -> None:
    """Both in one process that is started with the variables: TensorFlow takes seconds to import."""
    env = {**os.environ, **environment_of(SimpleNamespace(reproducible=True))}
    done = subprocess.run([sys.executable, "-c", PINNING], env=env, capture_output=True, text=True, check=True)
    free, pinned = json.loads(done.stdout)
    assert [(one["reproducible"], one["num_threads"]) for one in (free, pinned)] == [(False, 0), (True, 3)]
    assert pinned["hash_seed_fixed"]
    assert pinned["num_cpus"] == len(os.sched_getaffinity(0))
    assert pinned["cpu"]


def test_without_the_flag_a_process_is_started_as_it_comes() -> None:
    assert environment_of(SimpleNamespace(reproducible=False)) == environment_of(SimpleNamespace()) == {}
