"""What a hostile or clumsy client or owner did to the server once, and what it does now."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest

from airflow_mlops.serving import config, protos
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from airflow_mlops.serving.tensors import to_array, to_proto
from tests.processes import wait_until
from tests.servers import EmbeddedServer, await_state
from tests.serving_models import ROW, publish

INSTANCES = {"instances": [ROW]}
SEEN_SECONDS = 1.0  # in which a busy server has seen that a client is gone


@contextlib.contextmanager
def serving(home: Path, name: str, model: Path, *flags: str) -> Iterator[EmbeddedServer]:
    """Yield a server of one model."""
    publish(model, home / name, 1)
    server = EmbeddedServer(home / "models.config", flags)
    config.write(server.config_file, ServerConfig((ModelConfig(name, str(home / name), (1,)),)))
    server.start()
    try:
        with server.client() as client:
            await_state(client, name, 1, "AVAILABLE")
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server(building_models: object, serving_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    home = tmp_path_factory.mktemp("hostile")
    (home / "batching.config").write_text("pad_variable_length_inputs: true max_batch_size { value: 16 } batch_timeout_micros { value: 200000 }")
    flags = ("--rest_max_body_bytes=100000000", "--rest_api_timeout_in_ms=10000")
    with serving(home, "linear", serving_models / "linear1", *flags) as server:
        yield server


@pytest.fixture(scope="module")
def counting(building_models: object, serving_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server of the model ``many``, which counts the runs of its signature ``count``."""
    with serving(tmp_path_factory.mktemp("counting"), "many", serving_models / "many") as server:
        yield server


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


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        (b"nonsense\r\n\r\n", 400, "Invalid HTTP request received."),
        (b"GET /v1/models/linear HTTP/1.1\r\nno colon\r\n\r\n", 400, "Invalid HTTP request received."),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400, "Invalid HTTP request received."),
        (b"POST /v1/models/linear:predict HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400, "Invalid HTTP request received."),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000, 431, "The request's head has more than 65536 bytes"),
    ],
    ids=["nonsense", "header", "path", "chunk", "head"],
)
def test_what_is_no_http_is_refused_in_json(server: EmbeddedServer, rest: httpx.Client, sent: bytes, status: int, words: str) -> None:
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=5) as sock:
        sock.sendall(sent)
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert (answer.status, answer.headers["content-type"], json.loads(answer.read())) == (status, "application/json", {"error": words})
        assert sock.recv(1) == b""


def count_request() -> Any:
    request = protos.predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "many", "count"
    request.inputs["x"].CopyFrom(to_proto(np.zeros(1, np.float32)))
    return request


def count(server: EmbeddedServer) -> int:
    """Return how often the model was run, this time included."""
    with grpc.insecure_channel(server.grpc_address) as channel:
        response = protos.prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(count_request(), timeout=60)
    return int(to_array(response.outputs["calls"])[0])


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    tasks = Path(f"/proc/{process.pid}/task")
    wait_until(lambda: all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks.iterdir()))  # threads run on a little
    try:
        yield
    finally:
        process.resume()


@pytest.mark.parametrize("timeout", [None, 0.5], ids=["cancelled", "too late"])
def test_no_run_is_made_for_grpc_clients_that_went_away(counting: EmbeddedServer, timeout: float | None) -> None:
    before = count(counting)
    with grpc.insecure_channel(counting.grpc_address) as channel, stopped(model_process(counting)):
        predict = protos.prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
        asking = [predict.future(count_request(), timeout=timeout) for _ in range(20)]
        time.sleep(0.3)  # all of them wait in the process's socket
        for one in asking if timeout is None else ():
            one.cancel()
        codes = {one.code() for one in asking}
        time.sleep(SEEN_SECONDS)
    assert codes == {grpc.StatusCode.CANCELLED if timeout is None else grpc.StatusCode.DEADLINE_EXCEEDED}
    assert count(counting) == before + 1


def test_no_run_is_made_for_rest_clients_that_went_away_and_the_log_does_not_speak_of_them(counting: EmbeddedServer) -> None:
    before = count(counting)
    body = b'{"signature_name": "count", "instances": [1.0]}'
    head = b"POST /v1/models/many:predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with stopped(model_process(counting)), contextlib.ExitStack() as closing:
        for _ in range(20):
            sock = closing.enter_context(socket.create_connection(("127.0.0.1", counting.rest_port)))
            sock.sendall(head + body)
        time.sleep(0.3)
        closing.close()
        time.sleep(SEEN_SECONDS)
    assert count(counting) == before + 1
    assert "Traceback" not in counting.log.read_text()


def test_a_client_that_leaves_in_the_middle_of_its_answer_is_no_news(counting: EmbeddedServer) -> None:
    body = b'{"instances": [' + b",".join([b"1.5"] * 3_000_000) + b"]}"
    with socket.create_connection(("127.0.0.1", counting.rest_port), timeout=20) as sock:
        sock.sendall(b"POST /v1/models/many:predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        assert sock.recv(15) == b"HTTP/1.1 200 OK"
    count(counting)
    assert "Traceback" not in counting.log.read_text()


@pytest.mark.long  # 20 s; in test_processes.py it is 3 s
def test_a_model_process_that_stands_still_is_started_again(counting: EmbeddedServer) -> None:
    process = model_process(counting)
    process.suspend()
    with pytest.raises(grpc.RpcError) as refused:
        count(counting)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "gave no sign of life for 20 s and was killed" in refused.value.details()
    with counting.client() as client:
        await_state(client, "many", 1, "AVAILABLE")
    assert count(counting) == 1  # of the new process
    assert not process.is_running()


def test_a_zygote_that_is_killed_under_load_is_started_again_beside_grpcs_threads(
    building_models: object, serving_models: Path, tmp_path: Path
) -> None:
    """A fork that ran gRPC's handlers beside its busy threads could hang the front or the new zygote, so that no version is ever loaded again."""
    server = EmbeddedServer(tmp_path / "models.config")
    entry = ModelConfig("linear", str(tmp_path / "linear"), (1,))
    publish(serving_models / "linear1", tmp_path / "linear", 1)
    config.write(server.config_file, ServerConfig((entry,)))
    server.start()
    done, failed, over = 0, [], threading.Event()

    def load() -> None:
        nonlocal done
        with server.client() as client:
            while not over.is_set():
                try:
                    client.predict("linear", [ROW])
                    done += 1
                except Exception as error:
                    failed.append(error)

    clients = [threading.Thread(target=load) for _ in range(4)]
    try:
        with server.client() as client:
            await_state(client, "linear", 1, "AVAILABLE")
            for one in clients:
                one.start()
            for version in range(2, 5):
                publish(serving_models / "linear1", tmp_path / "linear", version)
                (zygote,) = (child for child in psutil.Process(server.process.pid).children() if child.status() != psutil.STATUS_ZOMBIE)
                zygote.kill()
                client.reload(ServerConfig((replace(entry, versions=(version - 1, version)),)))
                await_state(client, "linear", version, "AVAILABLE")
    finally:
        over.set()
        for one in clients:
            one.join(20)
        server.stop()
    assert failed == [] and done > 100


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


def test_pages_of_any_origin_may_read_answers_if_that_is_allowed(building_models: object, serving_models: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "linear", serving_models / "linear1", "--rest_api_enable_cors_support") as server:
        with httpx.Client(base_url=f"{server.rest_url}/v1/models", trust_env=False) as client:
            for answer in (client.post("/linear:predict", json=INSTANCES), client.post("/linear:predict", json={}), client.get("/linear")):
                assert (answer.headers["access-control-allow-origin"], answer.headers["access-control-allow-methods"]) == ("*", "POST, GET")
            preflight = client.options("/linear:predict", headers={"origin": "https://example.com"})
            assert (preflight.status_code, preflight.headers["access-control-allow-headers"]) == (200, "Content-Type")


def test_without_that_no_answer_speaks_of_origins(rest: httpx.Client) -> None:
    answer = rest.post("/linear:predict", json=INSTANCES, headers={"origin": "https://example.com"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
