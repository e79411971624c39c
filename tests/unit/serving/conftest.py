"""One embedded server and three small SavedModels for all serving tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from airflow_mlops.serving.client import ServingClient
from tests.servers import EmbeddedServer

INPUTS = [[1.0, 2.0, 3.0, 4.0], [0.5, 0.0, -1.0, 0.1]]


@dataclass(frozen=True)
class Models:
    """SavedModels of a Dense layer on 4 features: `good[i]` answers ``x @ W + i``; `nan` answers NaN; `counting` answers as the first and adds how
    often it was asked before; `broken` cannot be loaded.
    """

    good: tuple[Path, Path, Path]
    nan: Path
    counting: Path
    broken: Path
    two_inputs: Path

    def golden(self, index: int, directory: Path) -> Path:
        """Write the golden answers of `good[index]` and return the file."""
        outputs = [[sum(x * (2 * i + j) / 10 for i, x in enumerate(row)) + index for j in range(2)] for row in INPUTS]
        path = directory / f"golden-{index}.json"
        path.write_text(json.dumps({"inputs": INPUTS, "outputs": outputs}))
        return path


@pytest.fixture(scope="session")
def models(starting_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Models:
    import keras
    import numpy as np
    import tensorflow as tf

    home = tmp_path_factory.mktemp("models")
    weights = np.arange(8, dtype=np.float32).reshape(4, 2) / 10

    def dense(name: str, bias: float) -> Path:
        model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)])
        model.set_weights([weights, np.full(2, bias, np.float32)])
        model.export(home / name, verbose=False)
        return home / name

    good = (dense("0", 0.0), dense("1", 1.0), dense("2", 2.0))
    shutil.copytree(good[0], home / "broken")
    (home / "broken" / "saved_model.pb").write_bytes(b"not a graph")
    left, right = keras.Input((2,), name="left"), keras.Input((1,), name="right")
    keras.Model({"left": left, "right": right}, {"both": keras.layers.Concatenate()([left, right]), "right": right}).export(
        home / "two", verbose=False
    )
    module = tf.Module()
    module.weights, module.asked = tf.Variable(weights), tf.Variable(0.0)

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, "x")])
    def count(x: tf.Tensor) -> dict[str, tf.Tensor]:
        answer = x @ module.weights + module.asked
        module.asked.assign_add(1.0)
        return {"output_0": answer}

    tf.saved_model.save(module, str(home / "counting"), signatures={"serving_default": count})
    return Models(good, dense("nan", float("nan")), home / "counting", home / "broken", home / "two")


@pytest.fixture(scope="session")
def server(starting_server: EmbeddedServer, models: Models) -> EmbeddedServer:
    starting_server.wait_ready()
    return starting_server


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[ServingClient]:
    with server.client() as client:
        yield client
