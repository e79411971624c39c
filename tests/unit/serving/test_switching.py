from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from airflow_mlops.serving import protos, tensors
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from tests.servers import await_state
from tests.serving_models import ROW, publish
from tests.switching import Served, held_bytes, serving, switch_under_load


@contextlib.contextmanager
def linear(serving_models: Path, home: Path) -> Iterator[Served]:
    for version in (1, 2):
        publish(serving_models / f"linear{version}", home / "linear", version)
    request = protos.predict_pb2.PredictRequest()
    request.model_spec.name = "linear"
    request.inputs["x"].CopyFrom(tensors.to_proto(np.array([ROW], np.float32)))
    with serving("linear", home / "linear", request, json.dumps({"instances": [ROW]}).encode()) as served:
        yield served


def held_after(served: Served, serving_models: Path, home: Path, *marks: int) -> dict[int, float]:
    """Return what the server's processes hold after so many versions of a model were loaded and let go."""
    held = {}
    with served.server.client() as client:
        for version in range(1, max(marks) + 1):
            publish(serving_models / "linear1", home / "again", version)
            client.reload(ServerConfig((ModelConfig("again", str(home / "again"), (version,)),)))
            await_state(client, "again", version, "AVAILABLE")
            if version in marks:
                time.sleep(0.5)  # the version before it ends its process
                held[version] = held_bytes(served.server.process.pid)
    return held


def test_no_request_fails_while_a_label_moves_and_versions_come_and_go_without_a_trace(serving_models: Path, tmp_path: Path) -> None:
    with linear(serving_models, tmp_path) as served:
        seen = switch_under_load(served, 100.0, 20, 6.0)
        assert seen.num_requests == 1200
        assert seen.failures == [] and seen.num_wrong == 0
        assert max(seen.moves) < float("inf")
        held = held_after(served, serving_models, tmp_path, 2, 12)
        assert held[12] <= 1.2 * held[2]
