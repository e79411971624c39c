"""Real servers for tests: the embedded model server as its own process on free ports, ended with the test."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from airflow_mlops.local.services import free_port
from airflow_mlops.serving.client import ServingClient

START_SECONDS = 120.0  # importing TensorFlow takes 5-15 s on two busy cores


@dataclass
class EmbeddedServer:
    """A running embedded server; `restart` kills it without warning and starts it again from its configuration file."""

    config_file: Path
    flags: tuple[str, ...] = ()
    grpc_port: int = field(default_factory=free_port)
    rest_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self.rest_port}"

    @property
    def log(self) -> Path:
        return self.config_file.with_suffix(".log")

    def client(self, deadline_seconds: float = 20.0) -> ServingClient:
        return ServingClient(self.grpc_address, self.rest_url, deadline_seconds)

    def start(self, *, wait: bool = True) -> None:
        command = [sys.executable, "-m", "airflow_mlops.serving.embedded", f"--model_config_file={self.config_file}"]
        command += [f"--port={self.grpc_port}", f"--rest_api_port={self.rest_port}", "--load_retry_interval_micros=200000", *self.flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        with self.client(1.0) as client:
            while not client.ready():
                assert self.process.poll() is None, f"the server ended: {self.log.read_text()}"
                assert time.monotonic() < end, f"the server did not start: {self.log.read_text()}"
                time.sleep(0.1)

    def restart(self, *, wait: bool = True) -> None:
        self.kill()
        self.start(wait=wait)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it as an orchestrator does and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@contextlib.contextmanager
def embedded_server(config_file: Path, *flags: str) -> Iterator[EmbeddedServer]:
    """Yield a running embedded model server that serves the models of `config_file`."""
    server = EmbeddedServer(config_file, flags)
    server.start()
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def await_state(client: ServingClient, model: str, version: int, state: str, timeout: float = 30.0) -> None:
    """Return when a version is in a state; fail with what was seen instead."""
    end = time.monotonic() + timeout
    while (seen := client.status(model).get(version)) is None or seen.state != state:
        assert time.monotonic() < end, f"version {version} of {model} is {seen}, expected {state}"
        time.sleep(0.05)
