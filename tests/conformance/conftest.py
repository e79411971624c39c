"""Which server the suite of TensorFlow Serving's protocol asks: the embedded one, or any that already runs.

    pytest tests/conformance/test_serving_protocol.py --tf-serving-grpc localhost:8500 --tf-serving-rest http://localhost:8501 --tf-serving-models DIR

DIR is a directory that this process writes and the server under test reads, under the same path. The suite decides what is served, by
HandleReloadConfigRequest: use a server that nobody else does. The original is started for it like this, in an empty DIR:

    echo 'model_config_list {}' > DIR/models.config
    echo 'prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }' > DIR/monitoring.config
    docker run --rm --network host --user "$(id -u)" --volume DIR:DIR tensorflow/serving --model_config_file=DIR/models.config \
        --monitoring_config_file=DIR/monitoring.config --enable_grpc_healthcheck_service --grpc_socket_path=DIR/grpc.sock \
        --file_system_poll_wait_seconds=1 --num_load_threads=2 --max_num_load_retries=1 --load_retry_interval_micros=100000
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import EmbeddedServer

pytest.register_assert_rewrite(
    "tests.conformance.serving_target", "tests.conformance.serving_protocol", "tests.conformance.serving_lifecycle", "tests.conformance.serving_words"
)

from .serving_target import Target  # noqa: E402

SPECIFIC = "specific { versions: 1 versions: 2 }"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tf-serving", "a running server for the suite of TensorFlow Serving's protocol; without these, the embedded one")
    group.addoption("--tf-serving-grpc", metavar="HOST:PORT", help="its gRPC address")
    group.addoption("--tf-serving-rest", metavar="URL", help="its REST address, http://HOST:PORT")
    group.addoption("--tf-serving-models", metavar="DIR", type=Path, help="a directory that this process writes and the server reads")


@pytest.fixture(scope="session")
def embedded(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer | None]:
    """The embedded server, starting, with everything turned on that can be; None if the suite asks another one."""
    if pytestconfig.getoption("--tf-serving-grpc", None):
        yield None
        return
    home = tmp_path_factory.mktemp("protocol")
    (home / "models.config").write_text("model_config_list {}")
    (home / "monitoring.config").write_text('prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }')
    flags = (
        f"--monitoring_config_file={home / 'monitoring.config'}",
        "--enable_grpc_healthcheck_service",
        f"--grpc_socket_path={home / 'grpc.sock'}",
    )
    server = EmbeddedServer(home / "models.config", (*flags, "--file_system_poll_wait_seconds=0.2"))
    server.start(wait=False)
    yield server
    if server.process.poll() is None:
        server.stop()


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config, building_models: object, embedded: EmbeddedServer | None, serving_models: Path) -> Iterator[Target]:
    """The server under test; it serves nothing yet."""
    if embedded is None:
        home: Path = pytestconfig.getoption("--tf-serving-models")
        target = Target(pytestconfig.getoption("--tf-serving-grpc"), pytestconfig.getoption("--tf-serving-rest"), home, serving_models)
        target.reload()
    else:
        embedded.wait_ready()
        target = Target(embedded.grpc_address, embedded.rest_url, embedded.config_file.parent, serving_models)
    yield target
    target.close()


@pytest.fixture(scope="session")
def served(target: Target) -> Iterator[Target]:
    """The server under test with ``linear`` (versions 1 and 2, labels stable and canary), ``two``, ``many``, ``examples1`` and ``examples2``."""
    single = {name: target.config(name) for name in ("two", "many", "examples1", "examples2")}
    for name in single:
        target.publish(name, {1: name})
    target.publish("linear", {1: "linear1", 2: "linear2"})
    target.reload(target.config("linear", policy=SPECIFIC), *single.values())
    target.await_states("linear", {1: "AVAILABLE", 2: "AVAILABLE"})
    for name in single:
        target.await_states(name, {1: "AVAILABLE"})
    target.reload(target.config("linear", policy=SPECIFIC, labels={"stable": 1, "canary": 2}))
    yield target
    target.forget(*target.configs)


@pytest.fixture
def ours(served: Target, embedded: EmbeddedServer | None) -> Target:
    """The embedded server, for what it does otherwise than the original on purpose."""
    if embedded is None:
        pytest.skip("the embedded server differs from the original here")
    return served


@pytest.fixture
def name(target: Target, counter: Iterator[int]) -> Iterator[str]:
    """The name of a model of this test alone, which is no longer served afterwards."""
    name = f"m{os.getpid()}n{next(counter)}"  # a server that runs on still lists the models of the last session
    yield name
    target.forget(name)


@pytest.fixture(scope="session")
def counter() -> Iterator[int]:
    return itertools.count(1)
