"""Requests that once ended the model's process: of a wrong shape, and those that only the run can tell."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest

from airflow_mlops.serving import config, protos
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.tensors import Array, to_proto
from tests.processes import wait_until
from tests.servers import EmbeddedServer, await_state
from tests.serving_models import publish

SHAPES = [(), (1,), (0,), (1, 3), (1, 1, 1), (1, 8, 8), (1, 8, 8, 2), (1, 8, 8, 0), (1, 2, 2, 1), (2, 1, 8, 1), (1, 8, 8, 1, 1)]
GOOD = np.ones((1, 8, 8, 1), np.float32)
SCORES = pytest.approx([68.04, 69.336, 70.632], rel=1e-4)


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "batched"])
def server(
    request: pytest.FixtureRequest, building_models: object, serving_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedServer]:
    """A server of ``conv``, versions 1 and 2, whose requests are joined or not; version 3 has a warm-up request of a wrong shape."""
    home = tmp_path_factory.mktemp("shapes")
    for version, model in ((1, "conv"), (2, "conv"), (3, "conv_cold")):
        publish(serving_models / model, home / "conv", version)
    (home / "batching.config").write_text("pad_variable_length_inputs: true")
    flags = ["--enable_batching", f"--batching_parameters_file={home / 'batching.config'}"] if request.param else []
    server = EmbeddedServer(home / "models.config", ("--max_num_load_retries=0", *flags))
    config.write(server.config_file, ServerConfig((ModelConfig("conv", str(home / "conv"), (1, 2, 3)),)))
    server.start()
    try:
        with server.client() as client:
            for version, state in ((1, "AVAILABLE"), (2, "AVAILABLE"), (3, "END")):
                await_state(client, "conv", version, state)
        wait_until(lambda: len(models(server)) == 2)  # that of version 3 ends
        yield server
    finally:
        server.stop()


@pytest.fixture
def rest(server: EmbeddedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.rest_url}/v1/models", trust_env=False, timeout=20) as client:
        yield client


@pytest.fixture
def stub(server: EmbeddedServer) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield protos.prediction_service_pb2_grpc.PredictionServiceStub(channel)


def models(server: EmbeddedServer) -> set[int]:
    """Return the model processes: the children of the zygote, which is the front's child."""
    (zygote,) = psutil.Process(server.process.pid).children()
    return {process.pid for process in zygote.children()}


@contextlib.contextmanager
def unharmed(server: EmbeddedServer) -> Iterator[None]:
    before = models(server)
    yield
    assert models(server) == before and len(before) == 2


def predict(tensor: Any, signature: str = "", version: int | None = None) -> Any:
    request = protos.predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "conv", signature
    if version is not None:
        request.model_spec.version.value = version
    request.inputs["x"].CopyFrom(tensor)
    return request


def refused(stub: Any, request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request, timeout=20)
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_wrong_shape_is_the_client_s_error_and_ends_nothing(server: EmbeddedServer, rest: httpx.Client, stub: Any, shape: tuple[int, ...]) -> None:
    array: Array = np.ones(shape, np.float32)
    with unharmed(server):
        for content in (True, False):
            code, words = refused(stub, predict(to_proto(array, as_content=content)))
            assert (code, words) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Input 'x' has shape {list(shape)}; the signature expects [-1, 8, 8, 1] (-1 is any size).",
            )
        bodies: list[Any] = [{"inputs": array.tolist()}, {"inputs": {"x": array.tolist()}}]
        bodies += [{"instances": array.tolist()}, {"instances": [{"x": row} for row in array.tolist()]}] if shape and shape[0] else []
        for path in ("/conv:predict", "/conv/versions/1:predict"):
            for body in bodies:
                answer = rest.post(path, json=body)
                assert answer.status_code == 400 and "the signature expects [-1, 8, 8, 1]" in answer.text, (body, answer.text)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.tensor_shape.dim.add(size=2**40),
        lambda tensor: setattr(tensor.tensor_shape.dim[0], "size", -1),
        lambda tensor: setattr(tensor.tensor_shape.dim[0], "size", 2**62),
        lambda tensor: setattr(tensor, "tensor_content", tensor.tensor_content[:-1]),
        lambda tensor: setattr(tensor, "tensor_content", tensor.tensor_content * 2),
        lambda tensor: setattr(tensor.tensor_shape, "unknown_rank", True),
        lambda tensor: setattr(tensor, "dtype", protos.types_pb2.DT_DOUBLE),
        lambda tensor: setattr(tensor, "dtype", protos.types_pb2.DT_STRING),
        lambda tensor: setattr(tensor, "dtype", protos.types_pb2.DT_INT32),
        lambda tensor: setattr(tensor, "dtype", protos.types_pb2.DT_RESOURCE),
        lambda tensor: setattr(tensor, "dtype", 12345),
        lambda tensor: tensor.Clear(),
    ],
)
def test_a_tensor_that_is_none_of_its_signature_is_the_client_s_error_and_ends_nothing(server: EmbeddedServer, stub: Any, change: Any) -> None:
    tensor = to_proto(GOOD)
    change(tensor)
    with unharmed(server):
        assert refused(stub, predict(tensor))[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_any_number_of_rows_is_answered_also_none(server: EmbeddedServer, stub: Any, rows: int) -> None:
    with unharmed(server):
        answer = stub.Predict(predict(to_proto(np.ones((rows, 8, 8, 1), np.float32))), timeout=20)
        assert [dim.size for dim in answer.outputs["scores"].tensor_shape.dim] == [rows, 3]


def test_a_warm_up_request_of_a_wrong_shape_ends_the_load_with_its_reason(server: EmbeddedServer) -> None:
    with server.client() as client:
        assert "Warm-up request 0 failed: Input 'x' has shape [1]; the signature expects [-1, 8, 8, 1]" in client.status("conv")[3].error


def test_only_a_request_that_ends_its_process_twice_is_refused_for_a_while(server: EmbeddedServer, rest: httpx.Client) -> None:
    """The signature leaves the shape open, so that only TensorFlow knows. The request names no version, and version 1 is left alone."""
    bad = {"signature_name": "open", "instances": [1]}
    first = rest.post("/conv/versions/1:predict", json={"instances": GOOD.tolist()}).json()
    before = models(server)
    with server.client() as client:
        for _ in range(2):
            answer = rest.post("/conv:predict", json=bad)
            assert (answer.status_code, "conv version 2 was killed by SIGABRT" in answer.text) == (503, True), answer.text
            meanwhile = rest.post("/conv:predict", json={"signature_name": "open", "instances": [2]})
            assert "version 1" not in meanwhile.text, "passed on to the version before"
            await_state(client, "conv", 2, "AVAILABLE")
        assert len(models(server) & before) == 1  # version 1
        with_version_2 = models(server)
        for path in ("/conv:predict", "/conv/versions/2:predict"):
            answer = rest.post(path, json=bad)
            assert answer.status_code == 400 and "ended the process of model conv version 2 2 times" in answer.json()["error"]
        assert models(server) == with_version_2
        for body in ({"instances": GOOD.tolist()}, {"signature_name": "open", "instances": GOOD.tolist()}):
            assert rest.post("/conv:predict", json=body).json()["predictions"] == [SCORES]
    assert rest.post("/conv/versions/1:predict", json={"instances": GOOD.tolist()}).json() == first


def test_a_version_comes_back_at_once_however_many_requests_end_it(server: EmbeddedServer, rest: httpx.Client) -> None:
    """Twelve in a row: with pauses that grow, that would take minutes."""
    with server.client() as client:
        for number in range(12):
            body = json.dumps({"signature_name": "open", "instances": [number + 10.5]}).encode()
            assert rest.post("/conv/versions/2:predict", content=body).status_code == 503
            await_state(client, "conv", 2, "AVAILABLE", timeout=10.0)
            assert rest.post("/conv/versions/2:predict", json={"instances": GOOD.tolist()}).json()["predictions"] == [SCORES]
