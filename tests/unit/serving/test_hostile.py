"""What a hostile or clumsy client or owner did to the server once, and what it does now."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from airflow_mlops.serving import config, protos
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from tests.servers import EmbeddedServer, await_state
from tests.serving_models import ROW, publish

INSTANCES = {"instances": [ROW]}


@pytest.fixture(scope="module")
def server(building_models: object, serving_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    home = tmp_path_factory.mktemp("hostile")
    publish(serving_models / "linear1", home / "linear", 1)
    (home / "batching.config").write_text("pad_variable_length_inputs: true max_batch_size { value: 16 } batch_timeout_micros { value: 200000 }")
    server = EmbeddedServer(home / "models.config", ("--rest_max_body_bytes=100000000", "--rest_api_timeout_in_ms=10000"))
    config.write(server.config_file, ServerConfig((ModelConfig("linear", str(home / "linear"), (1,)),)))
    server.start()
    try:
        with server.client() as client:
            await_state(client, "linear", 1, "AVAILABLE")
        yield server
    finally:
        server.stop()


@pytest.fixture
def rest(server: EmbeddedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.rest_url}/v1/models", trust_env=False, timeout=20) as client:
        yield client
        assert client.post("/linear:predict", json=INSTANCES).json() == {"predictions": [[4.0, 5.0]]}


def model_process(server: EmbeddedServer) -> psutil.Process:
    """Return the one model process: the child of the zygote, which is the front's child."""
    (zygote,) = psutil.Process(server.process.pid).children()
    (model,) = zygote.children()
    return model


def peak_megabytes(process: psutil.Process) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1e3


def test_a_few_bytes_that_stand_for_large_tensors_are_refused_before_there_are_any(server: EmbeddedServer, rest: httpx.Client) -> None:
    before = peak_megabytes(model_process(server))
    request = protos.predict_pb2.PredictRequest()
    request.model_spec.name = "linear"
    for number in range(20):
        tensor = request.inputs[f"input{number}"]
        tensor.dtype = protos.types_pb2.DT_COMPLEX128
        tensor.tensor_shape.dim.add(size=1 << 20)
    with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError, match="input size does not match"):
        protos.prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=20)
    assert peak_megabytes(model_process(server)) - before < 100


def test_one_long_string_among_numbers_makes_no_room_for_as_many_long_strings(server: EmbeddedServer, rest: httpx.Client) -> None:
    before = peak_megabytes(model_process(server))
    answer = rest.post("/linear:predict", content=('{"instances":[' + "1," * 2000 + '"' + "a" * 100_000 + '"]}').encode())
    assert (answer.status_code, "expected type" in answer.text) == (400, True)
    assert peak_megabytes(model_process(server)) - before < 100


def test_a_request_of_millions_of_fields_is_refused_at_once(server: EmbeddedServer, rest: httpx.Client) -> None:
    request = protos.predict_pb2.PredictRequest()
    request.model_spec.name = "linear"
    with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError, match="more than 10000 fields"):
        channel.unary_unary("/tensorflow.serving.PredictionService/Predict")(request.SerializeToString() + b"\x1a\x00" * (5 << 20), timeout=20)


@pytest.mark.parametrize(
    ("body", "encoding", "status", "words"),
    [
        (gzip.compress(json.dumps(INSTANCES).encode()), "gzip", 200, "predictions"),
        (gzip.compress(json.dumps(INSTANCES).encode())[:-8], "gzip", 400, "not one whole gzip stream"),
        (gzip.compress(b" " * 150_000_000), "gzip", 413, "more than 100000000 bytes"),
        (b"nonsense", "gzip", 400, "not gzip"),
        (b"nonsense", "br", 400, "'br' is not supported"),
    ],
    ids=["whole", "cut", "bomb", "nonsense", "other"],  # two runs of gzip differ by their time
)
def test_a_packed_body_is_unpacked_whole_or_refused(rest: httpx.Client, body: bytes, encoding: str, status: int, words: str) -> None:
    answer = rest.post("/linear:predict", content=body, headers={"content-encoding": encoding})
    assert (answer.status_code, words in answer.text) == (status, True), answer.text


def test_a_body_that_is_announced_as_too_large_is_not_waited_for(server: EmbeddedServer, rest: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=5) as sock:
        sock.sendall(b"POST /v1/models/linear:predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000000\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 413")


def test_a_head_without_end_is_cut_off(server: EmbeddedServer, rest: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=5) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(OSError):
            for _ in range(1000):
                sock.sendall(b"x: " + b"a" * 10_000 + b"\r\n")
                time.sleep(0.001)


def test_a_client_that_offers_http2_with_its_request_is_answered(rest: httpx.Client) -> None:
    headers = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAAQAoAAAAAIAAAAA"}
    assert rest.post("/linear:predict", json=INSTANCES, headers=headers).json() == {"predictions": [[4.0, 5.0]]}


def test_half_a_surrogate_pair_and_a_bottomless_list_are_the_clients_errors(rest: httpx.Client) -> None:
    for body in (b'{"instances": ["\\ud800"]}', b'{"examples": [{"\\ud800": "\\ud800"}]}', b"[" * 900 + b"]" * 900):
        for method in ("predict", "classify"):
            assert rest.post(f"/linear:{method}", content=body).status_code == 400


def test_an_error_with_many_names_still_arrives(server: EmbeddedServer, rest: httpx.Client) -> None:
    request: Any = protos.predict_pb2.PredictRequest()
    request.model_spec.name = "m" * 20_000
    with grpc.insecure_channel(server.grpc_address) as channel, pytest.raises(grpc.RpcError, match="Servable not found for request"):
        protos.prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=20)


def test_a_configuration_file_that_is_emptied_or_a_pipe_changes_nothing_and_hinders_no_end(
    building_models: object, serving_models: Path, tmp_path: Path
) -> None:
    publish(serving_models / "linear1", tmp_path / "linear", 1)
    server = EmbeddedServer(tmp_path / "models.config", ("--model_config_file_poll_wait_seconds=0.1",))
    config.write(server.config_file, ServerConfig((ModelConfig("linear", str(tmp_path / "linear"), (1,)),)))
    server.start()
    with server.client() as client:
        await_state(client, "linear", 1, "AVAILABLE")
        server.config_file.write_text("")
        time.sleep(0.5)
        assert client.predict("linear", [ROW]) == [[4.0, 5.0]]
        server.config_file.unlink()
        os.mkfifo(server.config_file)
        time.sleep(0.5)
        assert client.predict("linear", [ROW]) == [[4.0, 5.0]]
    assert server.stop() == 0


def test_a_refused_fork_is_waited_out_and_the_other_models_serve_on(building_models: object, serving_models: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        publish(serving_models / "linear1", tmp_path / name, 1)
    server = EmbeddedServer(tmp_path / "models.config")
    config.write(server.config_file, ServerConfig(tuple(ModelConfig(name, str(tmp_path / name), (1,)) for name in ("one", "other"))))
    server.start()
    try:
        with server.client() as client:
            for name in ("one", "other"):
                await_state(client, name, 1, "AVAILABLE")
            (zygote,) = psutil.Process(server.process.pid).children()
            # No room for another process: less address space than it has already.
            resource.prlimit(zygote.pid, resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
            victim, _ = zygote.children()
            victim.kill()
            time.sleep(1.0)
            answered = [name for name in ("one", "other") if client.status(name)[1].state == "AVAILABLE"]
            assert len(answered) == 1
            assert client.predict(answered[0], [ROW]) == [[4.0, 5.0]]
            resource.prlimit(zygote.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            for name in ("one", "other"):
                await_state(client, name, 1, "AVAILABLE")
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port=70000"], "70000 is no port"),
        (["--port=9000", "--rest_api_port=9000"], "need a port each"),
        (["--num_run_threads=0"], "not positive"),
    ],
)
def test_flags_that_make_no_sense_are_refused(tmp_path: Path, flags: list[str], words: str) -> None:
    command = [sys.executable, "-m", "airflow_mlops.serving.embedded", "--model_base_path", str(tmp_path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and words in done.stderr


def test_it_starts_and_ends_with_its_standard_streams_closed(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "models.config")
    command = f"exec {sys.executable} -m airflow_mlops.serving.embedded --model_base_path {tmp_path} --port={server.grpc_port}"
    server.process = subprocess.Popen(["sh", "-c", f"{command} --rest_api_port={server.rest_port} <&- >&- 2>&-"])
    server.log.touch()
    server.wait_ready()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
