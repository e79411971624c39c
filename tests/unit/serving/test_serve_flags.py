"""What the flags of ``airflow-mlops serve`` do that the suite of its protocol does not turn on."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import numpy as np
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_mlops.local.services import free_port
from airflow_mlops.serving import protos
from tests.conformance.serving_target import SECONDS, Code, Target, predict, refusal, row, tensor, until
from tests.servers import EmbeddedServer
from tests.serving_models import ROW, publish

TEXT = protos.text_format


@dataclass(frozen=True)
class Pair:
    """A private key and its certificate, in PEM."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> tuple[bytes, bytes]:
        form = serialization.PrivateFormat.PKCS8
        key = self.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        return key, self.certificate.public_bytes(serialization.Encoding.PEM)


def pair(common_name: str, authority: Pair | None = None) -> Pair:
    """Return a new key and its certificate, signed by an authority or, as one, by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    issuer = authority.certificate.subject if authority else name
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Pair(key, builder.sign(authority.key if authority else key, hashes.SHA256()))


def quoted(text: bytes) -> str:
    """Return a string of protobuf's text format."""
    return '"' + text.decode().replace("\n", "\\n") + '"'


def await_rest(server: EmbeddedServer) -> None:
    """Return when the server answers by REST, whichever models it has."""

    def answers() -> bool:
        assert server.process.poll() is None, server.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{server.rest_url}/v1/models/nobody", trust_env=False, timeout=SECONDS).status_code == 404
        return False

    until(answers, f"an answer of the server: {server.log}")


@pytest.fixture(scope="module")
def authority() -> Pair:
    return pair("an authority")


@pytest.fixture(scope="module")
def secured(serving_models: Path, authority: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server of TLS, tags, labels, batches and a polled file, whose client shows the certificate that it asks for."""
    home = tmp_path_factory.mktemp("secured")
    publish(serving_models / "train_cold", home / "tagged", 1)
    (home / "models.config").write_text(
        f"model_config_list {{ config {{ name: 'tagged' base_path: '{home}/tagged' model_platform: 'tensorflow'"
        " version_labels { key: 'stable' value: 1 } } }"
    )
    key, certificate = pair("the server", authority).pem
    (home / "ssl.config").write_text(
        f"server_key: {quoted(key)} server_cert: {quoted(certificate)} custom_ca: {quoted(authority.pem[1])} client_verify: true"
    )
    (home / "batching.config").write_text("max_batch_size { value: 4 } batch_timeout_micros { value: 300000 } num_batch_threads { value: 2 }")
    flags = (
        f"--ssl_config_file={home}/ssl.config",
        "--saved_model_tags=train",
        "--enable_model_warmup=false",
        "--allow_version_labels_for_unavailable_models",
        "--model_config_file_poll_wait_seconds=1",
        "--enable_batching",
        f"--batching_parameters_file={home}/batching.config",
    )
    server = EmbeddedServer(home / "models.config", flags)
    server.start(wait=False)
    client_key, client_certificate = pair("a client", authority).pem
    credentials = grpc.ssl_channel_credentials(authority.pem[1], client_key, client_certificate)
    target = Target(f"localhost:{server.grpc_port}", server.rest_url, home, serving_models, credentials)
    try:
        await_rest(server)
        target.await_states("tagged", {1: "AVAILABLE"})
        yield target
    finally:
        target.close()
        server.stop()


def tagged(target: Target, **asked: str) -> list[float]:
    """Return what the model answers to two numbers; its input has no second dimension."""
    (output,) = target.prediction.Predict(predict("tagged", {"x": tensor([1.0, 2.0], [2])}, **asked), timeout=SECONDS).outputs.values()
    return list(output.float_val)


def test_a_client_with_a_certificate_of_the_authority_is_answered(secured: Target) -> None:
    assert tagged(secured) == [1.0, 2.0]


@pytest.mark.parametrize("shows", ["nothing", "a certificate of somebody else", "no encryption"])
def test_any_other_client_is_turned_away(secured: Target, authority: Pair, shows: str) -> None:
    other_key, other_certificate = pair("somebody", pair("another authority")).pem
    channel = {
        "nothing": lambda: grpc.secure_channel(secured.grpc_address, grpc.ssl_channel_credentials(authority.pem[1])),
        "a certificate of somebody else": lambda: grpc.secure_channel(
            secured.grpc_address, grpc.ssl_channel_credentials(authority.pem[1], other_key, other_certificate)
        ),
        "no encryption": lambda: grpc.insecure_channel(secured.grpc_address),
    }[shows]()
    with channel, pytest.raises(grpc.RpcError) as refused:
        protos.prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(row("tagged"), timeout=SECONDS)
    assert refused.value.code() is Code.UNAVAILABLE


def test_rest_has_no_tls_as_in_the_original(secured: Target) -> None:
    assert secured.post("tagged:predict", {"instances": [1]}).json() == {"predictions": [1.0]}


def test_what_is_not_turned_on_is_not_there(secured: Target) -> None:
    assert secured.rest.get("/monitoring/prometheus/metrics").status_code == 404
    health = secured.channel.unary_unary("/grpc.health.v1.Health/Check", request_serializer=lambda request: b"", response_deserializer=None)
    assert refusal(health, None)[0] is Code.UNIMPLEMENTED


def test_other_tags_name_the_graph_and_the_warm_up_can_be_left_out(secured: Target) -> None:
    assert secured.states("tagged") == {1: "AVAILABLE"}  # `train_cold` has no graph tagged ``serve``, and a warm-up that fails


def test_labels_in_the_file_are_accepted_at_the_start(secured: Target) -> None:
    """T9: the original does not start with them unless it is told to."""
    assert secured.post("tagged/labels/stable:predict", {"instances": [1]}).json() == {"predictions": [1.0]}


def test_with_its_flag_a_new_label_may_point_anywhere_but_a_used_one_only_at_what_is_available(secured: Target) -> None:
    secured.reload(secured.config("tagged", labels={"stable": 1, "next": 2}))
    with pytest.raises(grpc.RpcError) as refused:
        secured.answer("tagged", label="next")
    assert (refused.value.code(), refused.value.details()) == (Code.NOT_FOUND, "Servable not found for request: Specific(tagged, 2)")
    secured.reload(secured.config("tagged", labels={"stable": 1, "next": 2}))  # a label that keeps its version
    for labels in ({"stable": 2, "next": 2}, {"stable": 1, "next": 3}):
        with pytest.raises(grpc.RpcError) as refused:
            secured.reload(secured.config("tagged", labels=labels))
        assert refused.value.code() is Code.FAILED_PRECONDITION
    assert tagged(secured, label="stable") == [1.0, 2.0]
    secured.reload(secured.config("tagged", labels={"stable": 1}))


def test_requests_that_come_together_are_run_together(secured: Target) -> None:
    request = predict("tagged", {"x": tensor([1.0], [1])}, "count")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: secured.prediction.Predict(request, timeout=SECONDS).outputs["calls"], range(4)))
    assert [list(answer.int64_val) for answer in answers] == [[1]] * 4
    alone = secured.prediction.Predict(request, timeout=SECONDS).outputs["calls"]  # runs when the time for others to come is over
    assert list(alone.int64_val) == [2]


def test_a_changed_file_is_a_reload(secured: Target) -> None:
    """T8: what was reloaded by gRPC, the next change of the file undoes."""
    publish(secured.built / "train_only", secured.home / "second", 1)
    first, second = secured.config("tagged"), secured.config("second")
    (secured.home / "models.config").write_text(TEXT.MessageToString(secured.request(first, second).config))
    secured.await_states("second", {1: "AVAILABLE"})
    (secured.home / "models.config").write_text("this is no configuration")
    (secured.home / "models.config").write_text(TEXT.MessageToString(secured.request(first).config))
    secured.await_states("second", {1: "END"})
    assert secured.states("tagged") == {1: "AVAILABLE"}


def test_one_model_is_served_without_a_file_and_a_full_disk_under_its_log_stops_nothing(serving_models: Path, tmp_path: Path) -> None:
    """Every line that the server logs fails with "no space left on device"."""
    publish(serving_models / "linear1", tmp_path / "solo", 1)
    server = EmbeddedServer(tmp_path / "unused.config")
    command = [sys.executable, "-m", "airflow_mlops.serving.embedded", "--model_name=solo", f"--model_base_path={tmp_path}/solo"]
    with Path("/dev/full").open("wb", buffering=0) as full:
        server.process = subprocess.Popen(
            [
                *command,
                f"--port={server.grpc_port}",
                f"--rest_api_port={server.rest_port}",
                "--file_system_poll_wait_seconds=0.2",
                "--enable_serialization_as_tensor_content",
            ],
            stdout=full,
            stderr=full,
        )
    target = Target(server.grpc_address, server.rest_url, tmp_path, serving_models)
    ask = {"instances": [ROW]}
    try:
        until(lambda: server.process.poll() is None and server_answers(target), "the server answers")
        target.await_states("solo", {1: "AVAILABLE"})
        (output,) = target.prediction.Predict(row("solo"), timeout=SECONDS).outputs.values()
        assert np.frombuffer(output.tensor_content, np.float32).tolist() == [4.0, 5.0] and not output.float_val
        publish(serving_models / "broken_pb", tmp_path / "solo", 2)  # the reason is logged, which fails too
        target.await_states("solo", {1: "AVAILABLE", 2: "END"})
        publish(serving_models / "linear2", tmp_path / "solo", 3)
        target.await_states("solo", {1: "END", 3: "AVAILABLE"})
        assert target.post("solo:predict", ask).json() == {"predictions": [[5.0, 6.0]]}
    finally:
        target.close()
        server.stop()


def server_answers(target: Target) -> bool:
    with contextlib.suppress(grpc.RpcError, httpx.TransportError):
        target.states("nobody")
        return target.rest.get("/v1/models/nobody").status_code == 404
    return False


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--nonsense"], 2, "unrecognized arguments"),
        ([], 1, "Nothing to serve"),
        (["--model_config_file=bad.config"], 1, "not a model_config_list"),
        (["--model_base_path=/m", "--port=0"], 1, "--port=0 turns gRPC off"),
        (["--model_base_path=/m", "--op_library=missing.so"], 1, "--op_library=missing.so cannot be read"),
        (["--model_base_path=/m", "--batching_parameters_file=bad.config"], 1, "but --enable_batching is not"),
    ],
)
def test_a_server_that_cannot_start_says_why(tmp_path: Path, flags: list[str], code: int, words: str) -> None:
    (tmp_path / "bad.config").write_text("nonsense")
    command = [sys.executable, "-m", "airflow_mlops.serving.embedded", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr


def test_rest_is_off_with_port_0(tmp_path: Path) -> None:
    (tmp_path / "models.config").write_text("model_config_list {}")
    server = EmbeddedServer(tmp_path / "models.config", ("--rest_api_port=0",))
    server.start(wait=False)
    try:
        with grpc.insecure_channel(server.grpc_address) as channel:
            grpc.channel_ready_future(channel).result(SECONDS)
        assert "no REST, 0 models" in until(lambda: "serving" in server.log.read_text() and server.log.read_text(), "its word that it serves")
        assert _listening(server) == {server.grpc_port}
    finally:
        assert server.stop() == 0


def test_grpc_is_on_its_socket_alone_with_port_0_and_files_without_a_name_are_none(tmp_path: Path) -> None:
    (tmp_path / "models.config").write_text("model_config_list {}")
    none = [f"--{name}=" for name in ("ssl_config_file", "monitoring_config_file", "batching_parameters_file")]
    server = EmbeddedServer(tmp_path / "models.config", ("--port=0", f"--grpc_socket_path={tmp_path}/s", *none))
    server.start(wait=False)
    try:
        await_rest(server)
        with grpc.insecure_channel(f"unix:{tmp_path}/s") as channel:
            grpc.channel_ready_future(channel).result(SECONDS)
        assert _listening(server) == {server.rest_port}
    finally:
        assert server.stop() == 0


def _listening(server: EmbeddedServer) -> set[int]:
    """Return the TCP ports on which the front listens."""
    connections = psutil.Process(server.process.pid).net_connections("tcp")
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}


def test_the_version_is_told_without_importing_tensorflow() -> None:
    code = "import sys; from airflow_mlops.cli import main; code = main(['serve', '--version']); sys.exit(code or 'tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout.count("airflow-mlops model server")) == (0, "", 1)


def test_the_signals_are_taken_over_before_anything_that_takes_long_is_imported() -> None:
    code = "import sys, airflow_mlops.serving.embedded.main; print([name for name in ('uvloop', 'grpc', 'google.protobuf') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("end", [os.kill, os.killpg])  # an orchestrator means the front alone, a terminal its children too
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [0.0, pytest.param(0.15, marks=pytest.mark.long), 0.4, pytest.param(0.8, marks=pytest.mark.long), 1.2])
def test_a_signal_while_it_starts_ends_it_quietly_and_all_it_has_started(
    tmp_path: Path, number: signal.Signals, after: float, end: Callable[[int, int], None]
) -> None:
    (tmp_path / "models.config").write_text("model_config_list {}")
    command = [sys.executable, "-m", "airflow_mlops", "serve", f"--model_config_file={tmp_path}/models.config"]
    command += [f"--port={free_port()}", f"--rest_api_port={free_port()}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    until(lambda: _catches(process.pid, signal.SIGTERM) or process.poll() is not None, "it minds its signals")
    time.sleep(after)
    end(process.pid, number)
    output, _ = process.communicate(timeout=SECONDS)  # ends when nobody has its output open any more
    assert process.returncode in (0, 128 + number), output
    assert "Traceback" not in output
    assert [other.pid for other in psutil.process_iter() if _session(other.pid) == process.pid] == []


def _session(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return None


@pytest.mark.parametrize("after", [0.05, 0.1, 0.2, 0.4])
def test_sigterm_at_any_time_ends_it_quietly(tmp_path: Path, after: float) -> None:
    """Also before it has its handlers; what Ctrl-C makes of Python itself, while that starts, is not ours."""
    command = [sys.executable, "-m", "airflow_mlops", "serve", f"--model_base_path={tmp_path}", f"--port={free_port()}", "--rest_api_port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    time.sleep(after)
    process.terminate()
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode in (0, 128 + signal.SIGTERM, -signal.SIGTERM) and "Traceback" not in output, output


def _catches(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler for a signal; Python has none for SIGTERM by itself."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (number - 1) & 1)
