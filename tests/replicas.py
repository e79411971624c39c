"""A replica of a model server that does what a test tells it: a real gRPC and a real HTTP server, without TensorFlow, on free ports."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc

from airflow_mlops.local.services import free_port
from airflow_mlops.serving import protos
from airflow_mlops.serving.availability import VersionStatus
from airflow_mlops.serving.client import ServingClient
from airflow_mlops.serving.config import ServerConfig
from airflow_mlops.serving.tls import Tls
from tests.bare_saved_models import signature, tensor

UNAVAILABLE, REFUSED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION
LOADING, AVAILABLE = VersionStatus("LOADING"), VersionStatus("AVAILABLE")
NOT_LOADED = "Request to assign label to version 2 of model m, which is not currently available for inference"


@dataclass(frozen=True)
class ServerTls:
    """What a server needs to speak TLS: its chain and key as PEM, and the authority whose clients alone it talks to."""

    cert: str
    key: str
    client_ca: str | None = None

    def credentials(self) -> grpc.ServerCredentials:
        ca = self.client_ca.encode() if self.client_ca else None
        return grpc.ssl_server_credentials([(self.key.encode(), self.cert.encode())], ca, require_client_auth=ca is not None)

    def context(self, directory: Path) -> ssl.SSLContext:
        (directory / "server.pem").write_text(self.cert + self.key)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=self.client_ca)
        context.load_cert_chain(directory / "server.pem")
        context.verify_mode = ssl.CERT_REQUIRED if self.client_ca else ssl.CERT_NONE
        return context


@dataclass
class Replica:
    """Serves whatever stands in its fields: `versions` of the model ``m``, by REST `outputs` for each instance, by gRPC its inputs and `tensors`.

    Its default signature takes rows of one number, ``x``; `signature` takes its place.

    `calls` counts what reached it by method, `configs` keeps the configurations it took. `failures` are gRPC codes or HTTP statuses for the next
    calls of a method, used up one by one; `delay_seconds` holds every call back, `deadline_seconds` is what its clients wait.
    """

    versions: dict[int, VersionStatus] = field(default_factory=dict)
    outputs: list[Any] = field(default_factory=lambda: [[1.0]])
    tensors: dict[str, Any] = field(default_factory=dict)
    signature: Any = field(default_factory=lambda: signature({"x": tensor(shape=(-1, 1))}))
    failures: dict[str, list[Any]] = field(default_factory=dict)
    delay_seconds: float = 0.0
    deadline_seconds: float = 5.0
    calls: Counter[str] = field(default_factory=Counter)
    configs: list[ServerConfig] = field(default_factory=list)
    grpc_port: int = 0
    rest_port: int = 0
    scheme: str = "http"
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def rest_url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.rest_port}"

    @property
    def addresses(self) -> dict[str, str]:
        """Its entry in the extra ``replicas`` of a connection."""
        return {"grpc": self.grpc_address, "rest": self.rest_url}

    def client(self, deadline_seconds: float | None = None, tls: Tls | None = None) -> ServingClient:
        return ServingClient(self.grpc_address, self.rest_url, deadline_seconds or self.deadline_seconds, tls=tls)

    def next_failure(self, method: str) -> Any:
        self.calls[method] += 1
        self.stopping.wait(self.delay_seconds)
        failures = self.failures.get(method)
        return failures.pop(0) if failures else None

    # The methods of the two gRPC services.

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._fail(context, "GetModelStatus")
        if request.model_spec.name != "m" or not self.versions:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {request.model_spec.name}")
        answer = protos.get_model_status_pb2.GetModelStatusResponse()
        for version, status in self.versions.items():
            entry = answer.model_version_status.add(version=version, state=status.state)
            entry.status.error_message = status.error
        return answer

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._fail(context, "HandleReloadConfigRequest")
        self.configs.append(ServerConfig.from_proto(request.config))
        return protos.model_management_pb2.ReloadConfigResponse()

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Answer with the inputs and, as the version, the one asked for, 7 for a label, 9 for the latest."""
        self._fail(context, "Predict")
        asked = request.model_spec
        answer = protos.predict_pb2.PredictResponse()
        answer.model_spec.name, answer.model_spec.signature_name = asked.name, asked.signature_name or "serving_default"
        answer.model_spec.version.value = {"version": asked.version.value, "version_label": 7}.get(asked.WhichOneof("version_choice"), 9)
        for name, value in {**request.inputs, **self.tensors}.items():
            if not request.output_filter or name in request.output_filter:
                answer.outputs[name].CopyFrom(value)
        return answer

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._fail(context, "GetModelMetadata")
        found = protos.get_model_metadata_pb2.SignatureDefMap()
        found.signature_def["serving_default"].CopyFrom(self.signature)
        answer = protos.get_model_metadata_pb2.GetModelMetadataResponse()
        answer.metadata["signature_def"].Pack(found)
        return answer

    def _fail(self, context: grpc.ServicerContext, method: str) -> None:
        code = self.next_failure(method)
        if code is not None:
            if isinstance(code, tuple):
                context.abort(*code)
            if isinstance(code, tuple):
                context.abort(*code)
            context.abort(code, NOT_LOADED if code is REFUSED else "as the test wishes")


def _handler(replica: Replica) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer("predict", {"predictions": replica.outputs * len(asked["instances"])})

        def do_GET(self) -> None:
            self._answer("rest status", {"model_version_status": []})

        def _answer(self, method: str, data: Any) -> None:
            failure = replica.next_failure(method)
            if failure == "drop":
                self.close_connection = True
                return
            body = json.dumps({"error": "as the test wishes"} if failure else data).encode()
            self.send_response(failure or 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # who asked may have gone
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that breaks off is what some tests are about."""


@contextlib.contextmanager
def replica(tls: ServerTls | None = None, directory: Path | None = None, **fields: Any) -> Iterator[Replica]:
    """Yield a running replica; with `tls`, both its interfaces speak nothing else."""
    served = Replica(**fields)
    server = grpc.server(ThreadPoolExecutor(8))
    protos.model_service_pb2_grpc.add_ModelServiceServicer_to_server(served, server)
    predictions = protos.prediction_service_pb2_grpc
    for method in ("Classify", "Regress", "MultiInference"):
        setattr(served, method, None)
    predictions.add_PredictionServiceServicer_to_server(served, server)
    http = _HTTPServer(("127.0.0.1", 0), _handler(served))
    if tls:
        assert directory is not None
        served.grpc_port = server.add_secure_port("127.0.0.1:0", tls.credentials())
        http.socket = tls.context(directory).wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
        served.scheme = "https"
    else:
        served.grpc_port = server.add_insecure_port("127.0.0.1:0")
    served.rest_port = http.server_port
    server.start()
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        served.stopping.set()
        http.shutdown()
        http.server_close()
        thread.join()
        server.stop(0).wait()


def nobody() -> Replica:
    """Return a replica at whose addresses nothing listens; nobody waits long for it."""
    return Replica(grpc_port=free_port(), rest_port=free_port(), deadline_seconds=0.2)


@contextlib.contextmanager
def seconds() -> Iterator[list[float]]:
    """Measure what is inside; the list holds its seconds afterwards."""
    taken: list[float] = []
    start = time.monotonic()
    yield taken
    taken.append(time.monotonic() - start)
