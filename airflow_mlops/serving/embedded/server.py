"""The front: both interfaces, the loader and the model processes in one event loop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import logging
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from airflow_mlops.exceptions import MlopsError, ServingError
from airflow_mlops.serving.config import ServerConfig
from airflow_mlops.serving.embedded import flags, grpc_api, settings
from airflow_mlops.serving.embedded.gateway import Gateway
from airflow_mlops.serving.embedded.http_server import GRACE_SECONDS, HttpServer, http_server, listener
from airflow_mlops.serving.embedded.loader import Loader, LoaderOptions
from airflow_mlops.serving.embedded.metrics import Metrics
from airflow_mlops.serving.embedded.model_process import ModelProcess
from airflow_mlops.serving.embedded.orders import Order
from airflow_mlops.serving.embedded.processes import Zygote
from airflow_mlops.serving.embedded.refusal import Refusal
from airflow_mlops.serving.embedded.rest_api import RestApi, RestOptions
from airflow_mlops.serving.embedded.versions import RetryPolicy, Version, Versions

log = logging.getLogger(__name__)
# Two servers on one port would answer in turn; a second one must fail instead.
_GRPC_OPTIONS = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


async def run(options: argparse.Namespace, wanted: ServerConfig, order: Order, zygote: Zygote) -> None:
    """Serve until SIGTERM or SIGINT; raise `MlopsError` if the server cannot start."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    zygote.listen()
    policy = RetryPolicy(options.max_num_load_retries, options.load_retry_interval_micros / 1e6)
    versions: Versions[ModelProcess] = Versions(policy, labels_for_unavailable=options.allow_version_labels_for_unavailable_models)
    starter = Starter(zygote, order, options.load_timeout_in_ms / 1000)
    loader = Loader(versions, starter.start, LoaderOptions(options.file_system_poll_wait_seconds, options.num_load_threads))
    metrics = Metrics()
    gateway = Gateway(versions, metrics)
    await loader.configure(wanted, at_start=True)
    async with contextlib.AsyncExitStack() as stack:
        rest = listener(options.host, options.rest_api_port) if options.rest_api_port else None
        grpc_server = await stack.enter_async_context(_grpc(options, gateway, loader))
        rest_server = await stack.enter_async_context(_rest(options, gateway, metrics, rest)) if rest else None
        beside = [asyncio.create_task(loader.run()), asyncio.create_task(stop.wait())]
        if options.model_config_file and options.model_config_file_poll_wait_seconds > 0:
            beside.append(asyncio.create_task(_follow(options.model_config_file, options.model_config_file_poll_wait_seconds, loader)))
        log.info("serving: %s, %s models", _where(options), len(wanted.models))
        ended, _ = await asyncio.wait(beside, return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping: requests in flight have %g s", GRACE_SECONDS)
        loader.stop()
        for task in beside:
            task.cancel()
        if rest_server:
            rest_server.should_exit = True
        await grpc_server.stop(GRACE_SECONDS)  # both have the same seconds
    for task in ended:
        task.result()  # what none of them should raise must not look like a request to stop


def _where(options: argparse.Namespace) -> str:
    rest = f"REST {options.host}:{options.rest_api_port}" if options.rest_api_port else "no REST"
    grpc_places = [f"{options.host}:{options.port}"] if options.port else []
    grpc_places += [str(options.grpc_socket_path)] if options.grpc_socket_path else []
    return f"gRPC {' and '.join(grpc_places)}, {rest}"


class Starter:
    """Starts the process of one version and waits until it can answer."""

    def __init__(self, zygote: Zygote, order: Order, timeout_seconds: float) -> None:
        self._zygote = zygote
        self._order = order
        self._timeout_seconds = timeout_seconds

    async def start(self, entry: Version[Any]) -> ModelProcess:
        """Return the process once it is ready; raise `Refusal` if it does not load, or not in time."""
        process = await self._zygote.spawn(self._order._replace(name=entry.name, version=entry.number, path=str(entry.path)))
        try:
            await asyncio.wait_for(asyncio.shield(process.ready), self._timeout_seconds)
        except TimeoutError as error:
            self._zygote.kill(process)
            raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, f"It was not loaded within {self._timeout_seconds:g} s, and was ended") from error
        except BaseException:
            process.retire()
            raise
        return process


@contextlib.asynccontextmanager
async def _grpc(options: argparse.Namespace, gateway: Gateway, loader: Loader[Any]) -> AsyncIterator[grpc.aio.Server]:
    server = grpc.aio.server(options=_GRPC_OPTIONS)
    server.add_generic_rpc_handlers(grpc_api.handlers(gateway, loader))
    if options.enable_grpc_healthcheck_service:
        servicer = health.aio.HealthServicer()
        for name in ("", grpc_api.MODEL_SERVICE, grpc_api.PREDICTION_SERVICE, "ModelService", "PredictionService"):
            await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"[{options.host}]:{options.port}" if ":" in options.host else f"{options.host}:{options.port}"
    try:
        if options.port:
            _listen(server, address, settings.tls(options.ssl_config_file) if options.ssl_config_file else None)
        if options.grpc_socket_path:
            _check_unused(options.grpc_socket_path)
            address = f"unix:{options.grpc_socket_path.absolute()}"
            server.add_insecure_port(address)
    except RuntimeError as error:
        reason = str(error).rstrip(".")
        raise ServingError(f"Cannot listen for gRPC on {address}: {reason}. Choose a free --port or stop the other server.") from error
    await server.start()
    try:
        yield server
    finally:
        await server.stop(GRACE_SECONDS)


def _check_unused(path: Path) -> None:
    """Raise `ServingError` if somebody answers on a UNIX socket: it would be taken away from under him."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        raise ServingError(f"Another server listens on {path}. Choose another --grpc_socket_path or stop it.")


def _listen(server: grpc.aio.Server, address: str, tls: settings.Tls | None) -> None:
    if tls is None:
        server.add_insecure_port(address)
        return
    pair = [(tls.server_key.encode(), tls.server_cert.encode())]
    credentials = grpc.ssl_server_credentials(pair, tls.custom_ca.encode() or None, require_client_auth=tls.client_verify)
    server.add_secure_port(address, credentials)


@contextlib.asynccontextmanager
async def _rest(options: argparse.Namespace, gateway: Gateway, metrics: Metrics, sock: socket.socket) -> AsyncIterator[HttpServer]:
    seconds = options.rest_api_timeout_in_ms / 1000
    metrics_at = settings.metrics_path(options.monitoring_config_file)
    api = RestApi(gateway, metrics, RestOptions(seconds, options.rest_max_body_bytes, metrics_at, options.rest_api_enable_cors_support))
    server = http_server(api, head_seconds=seconds)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield server
    finally:
        server.should_exit = True
        await serving


async def _follow(path: Path, seconds: float, loader: Loader[Any]) -> None:
    """Serve what the configuration file says whenever it changes; an unchanged file undoes no reload that came by gRPC."""
    seen = _digest(path)
    while True:
        await asyncio.sleep(seconds)
        now = await asyncio.to_thread(_digest, path)
        if now == seen or now is None:
            continue
        seen = now
        try:
            await loader.configure(flags.config_file(path))
        except MlopsError as error:
            log.warning("%s is not served: %s", path, error)


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    except OSError:
        return None
