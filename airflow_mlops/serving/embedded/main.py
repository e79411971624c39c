"""Starting and ending the model server's process."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import uvicorn

from airflow_mlops.exceptions import MlopsError, ServingError, SpecError
from airflow_mlops.serving import config, protos
from airflow_mlops.serving.config import ModelConfig, ServerConfig

log = logging.getLogger(__name__)
_GRPC_THREADS = 8
_GRACE_SECONDS = 5.0
# Two servers on one port would answer in turn; a second one must fail instead.
_GRPC_OPTIONS = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


def serve(argv: list[str]) -> int:
    """Serve models until SIGTERM or SIGINT; return 0, 1 if the server could not start, 2 on flags it does not understand."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as exit_:  # argparse has printed help (0) or usage (2)
        return int(exit_.code or 0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        _run(options, _server_config(options), stop)
    except MlopsError as error:
        log.error("%s", error)
        return 1
    return 0


def _run(options: argparse.Namespace, wanted: ServerConfig, stop: threading.Event) -> None:
    # TensorFlow takes seconds to import, so flags and files are checked before.
    from airflow_mlops.serving.embedded.engine import Servable
    from airflow_mlops.serving.embedded.manager import LoadPolicy, VersionManager

    retry_seconds = options.load_retry_interval_micros / 1e6
    labels_anywhere = options.allow_version_labels_for_unavailable_models
    policy = LoadPolicy(options.file_system_poll_wait_seconds, options.max_num_load_retries, retry_seconds, labels_anywhere)
    manager = VersionManager(Servable, policy)
    manager.configure(wanted, at_start=True)
    grpc_server = _start_grpc(manager, options.host, options.port)
    rest_server, rest_thread = _start_rest(manager, options.host, options.rest_api_port)
    manager.start()
    log.info("serving: gRPC %s:%s, REST %s:%s, %s models", options.host, options.port, options.host, options.rest_api_port, len(wanted.models))
    stop.wait()
    log.info("stopping: requests in flight have %g s", _GRACE_SECONDS)
    rest_server.should_exit = True
    grpc_server.stop(_GRACE_SECONDS).wait()
    rest_thread.join(2 * _GRACE_SECONDS)
    manager.stop()


def _start_grpc(manager: Any, host: str, port: int) -> Any:
    from airflow_mlops.serving.embedded.grpc_api import ModelService, PredictionService

    server = grpc.server(ThreadPoolExecutor(_GRPC_THREADS, thread_name_prefix="grpc"), options=_GRPC_OPTIONS)
    protos.prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(manager), server)
    protos.model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(manager), server)
    try:
        server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise ServingError(
            f"Can not listen for gRPC on {host}:{port}: {str(error).rstrip('.')}. Choose a free --port or stop the other server."
        ) from error
    server.start()
    return server


def _start_rest(manager: Any, host: str, port: int) -> tuple[uvicorn.Server, threading.Thread]:
    from airflow_mlops.serving.embedded.rest_api import application

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise ServingError(f"Can not listen for REST on {host}:{port}: {error}. Choose a free --rest_api_port or stop the other server.") from error
    settings = uvicorn.Config(
        application(manager), ws="none", log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=int(_GRACE_SECONDS)
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="rest", daemon=True)
    thread.start()
    return server, thread


def _server_config(options: argparse.Namespace) -> ServerConfig:
    """Return what to serve at first: the file's models, or the one of --model_name; a file that is not written yet means none."""
    if options.model_config_file is None:
        if options.model_base_path is None:
            raise SpecError("Nothing to serve: give --model_config_file, or --model_name and --model_base_path.")
        return ServerConfig((ModelConfig(options.model_name, str(options.model_base_path.absolute())),))
    if not options.model_config_file.exists():
        log.warning("%s does not exist yet: serving no model until a reload names one", options.model_config_file)
    return config.read(options.model_config_file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="airflow-mlops serve",
        description="Serve SavedModels over TensorFlow Serving's protocol on one machine.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; the original listens on all, but has no login either, so opening it is a decision")
    add("--port", type=int, default=8500, help="gRPC port")
    add("--rest_api_port", type=int, default=8501, help="REST port")
    add("--model_config_file", type=Path, help="model_config_list in protobuf text format")
    add("--model_name", default="default", help="the one model to serve without a configuration file")
    add("--model_base_path", type=Path, help="its directory of version directories; the latest is served")
    add("--file_system_poll_wait_seconds", type=float, default=1.0, help="seconds between looks for new versions; 0 or less: only on a reload")
    add("--max_num_load_retries", type=int, default=1, help="tries after the first; published versions are whole, so more rarely help")
    add("--load_retry_interval_micros", type=int, default=1_000_000, help="microseconds between tries")
    add(
        "--allow_version_labels_for_unavailable_models",
        type=lambda text: text.lower() in ("1", "true"),
        nargs="?",
        const=True,
        default=False,
        help="whether a new label may point at a version that is not loaded yet",
    )
    return parser
