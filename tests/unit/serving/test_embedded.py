from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_mlops.artifacts import path_digest
from airflow_mlops.exceptions import ServingError, ServingUnavailable
from airflow_mlops.serving import config
from airflow_mlops.serving.client import ServingClient
from airflow_mlops.serving.config import ModelConfig
from airflow_mlops.serving.publish import publish_saved_model
from tests.conformance.serving_protocol import ROW, GrpcProtocol, RestProtocol, channel, rest  # noqa: F401
from tests.servers import EmbeddedServer, await_state, free_port

from .conftest import Models


@pytest.fixture(scope="module")
def serving(server: EmbeddedServer, models: Models, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("served")
    for name, version, source in (("linear", 1, models.good[0]), ("linear", 2, models.good[1]), ("two", 1, models.two_inputs)):
        publish_saved_model(source, home / name, version, path_digest(source)[0])
    with server.client() as client, config.exclusive(server.config_file) as served:
        plain = served.with_model(ModelConfig("linear", str(home / "linear"), (1, 2))).with_model(ModelConfig("two", str(home / "two"), (1,)))
        client.reload(plain)
        for name, version in (("linear", 1), ("linear", 2), ("two", 1)):
            await_state(client, name, version, "AVAILABLE")
        labelled = plain.with_model(ModelConfig("linear", str(home / "linear"), (1, 2), {"stable": 1, "canary": 2}))
        config.write(server.config_file, labelled)
        client.reload(labelled)


class TestRest(RestProtocol):
    pass


class TestGrpc(GrpcProtocol):
    pass


def test_the_client_speaks_to_it(client: ServingClient, serving: None) -> None:
    assert client.ready()
    assert client.predict("linear", [ROW], version=1) == [[4.0, 5.0]]
    assert client.predict("linear", [ROW], label="canary") == [[5.0, 6.0]]
    assert client.metadata("linear", label="stable")["model_spec"]["version"] == "1"
    assert client.status("nobody") == {}
    with pytest.raises(ServingError, match="Unrecognized servable version label: x") as refused:
        client.predict("linear", [ROW], label="x")
    assert not refused.value.retryable


def test_a_refused_reload_leaves_the_old_configuration_in_force(client: ServingClient, server: EmbeddedServer, serving: None) -> None:
    served = config.read(server.config_file)
    base_path = served.model("linear").base_path
    with pytest.raises(ServingError, match="not currently available for inference"):
        client.reload(served.with_model(ModelConfig("linear", base_path, (3,), {"stable": 3})))
    assert client.predict("linear", [ROW], label="stable") == [[4.0, 5.0]]
    client.reload(served)  # and later reloads are not poisoned


def test_a_reload_with_a_missing_base_path_returns_at_once_and_harms_nobody(
    client: ServingClient, server: EmbeddedServer, serving: None, tmp_path: Path
) -> None:
    served = config.read(server.config_file)
    client.reload(served.with_model(ModelConfig("missing", str(tmp_path / "missing"), (1,))))
    assert client.status("missing") == {}
    assert client.predict("linear", [ROW], label="stable") == [[4.0, 5.0]]
    client.reload(served)


def test_a_broken_version_ends_with_its_error_and_the_rest_serves_on(
    client: ServingClient, server: EmbeddedServer, serving: None, models: Models, tmp_path: Path
) -> None:
    shutil.copytree(models.broken, tmp_path / "1")
    served = config.read(server.config_file)
    client.reload(served.with_model(ModelConfig("broken", str(tmp_path), (1,))))
    await_state(client, "broken", 1, "END")
    assert client.status("broken")[1].error
    assert client.predict("linear", [ROW], label="stable") == [[4.0, 5.0]]
    client.reload(served)


def test_a_server_that_is_not_there_is_unavailable_and_worth_a_retry() -> None:
    with ServingClient(f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}", deadline_seconds=1) as client:
        assert not client.ready()
        for call in (lambda: client.status("m"), lambda: client.predict("m", [[1]]), lambda: client.metadata("m")):
            with pytest.raises(ServingUnavailable) as refused:
                call()
            assert refused.value.retryable


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [(["--nonsense"], 2, "unrecognized arguments"), ([], 1, "Nothing to serve"), (["--model_config_file=bad.config"], 1, "not a model_config_list")],
)
def test_a_server_that_can_not_start_says_why(tmp_path: Path, flags: list[str], code: int, words: str) -> None:
    (tmp_path / "bad.config").write_text("nonsense")
    command = [sys.executable, "-m", "airflow_mlops.serving.embedded", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
