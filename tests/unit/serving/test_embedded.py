"""`ServingClient` and the embedded server; what that server answers to others, `tests/conformance/serving_protocol.py` asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_mlops.artifacts import path_digest
from airflow_mlops.exceptions import ServingError, ServingUnavailable
from airflow_mlops.serving import config
from airflow_mlops.serving.client import ServingClient
from airflow_mlops.serving.config import ModelConfig
from airflow_mlops.serving.publish import publish_saved_model
from tests.servers import EmbeddedServer, await_state, free_port
from tests.serving_models import ROW

from .conftest import Models


@pytest.fixture(scope="module")
def serving(server: EmbeddedServer, models: Models, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The server serves ``embedded``, versions 1 and 2, the first one as ``stable``."""
    home = tmp_path_factory.mktemp("served") / "embedded"
    for version in (1, 2):
        publish_saved_model(models.good[version - 1], home, version, path_digest(models.good[version - 1])[0])
    with server.client() as client, config.exclusive(server.config_file) as served:
        client.reload(served.with_model(ModelConfig("embedded", str(home), (1, 2))))
        for version in (1, 2):
            await_state(client, "embedded", version, "AVAILABLE")
        labelled = served.with_model(ModelConfig("embedded", str(home), (1, 2), {"stable": 1}))
        config.write(server.config_file, labelled)
        client.reload(labelled)


def test_the_client_speaks_to_it(client: ServingClient, serving: None) -> None:
    assert client.ready()
    assert client.predict("embedded", [ROW], version=1) == [[4.0, 5.0]]
    assert client.predict("embedded", [ROW]) == [[5.0, 6.0]]
    assert "serving_default" in client.signatures("embedded", label="stable")
    assert client.status("nobody") == {}
    with pytest.raises(ServingError, match="Unrecognized servable version label: x") as refused:
        client.predict("embedded", [ROW], label="x")
    assert not refused.value.retryable


def test_a_published_version_whose_files_were_altered_is_not_loaded(
    server: EmbeddedServer, client: ServingClient, models: Models, tmp_path: Path
) -> None:
    home = tmp_path / "altered"
    for version in (1, 2):
        publish_saved_model(models.good[version - 1], home, version, path_digest(models.good[version - 1])[0])
    (home / "2" / "assets").mkdir(exist_ok=True)
    (home / "2" / "assets" / "extra.txt").write_text("TensorFlow would load the version all the same")
    with config.exclusive(server.config_file) as served:
        client.reload(served.with_model(ModelConfig("altered", str(home), (1, 2))))
        await_state(client, "altered", 1, "AVAILABLE")
        await_state(client, "altered", 2, "END")
        assert "is no longer what was published" in client.status("altered")[2].error
        client.reload(served)


def test_a_server_that_is_not_there_is_unavailable_and_worth_a_retry() -> None:
    with ServingClient(f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}", deadline_seconds=1) as client:
        assert not client.ready()
        for call in (lambda: client.status("m"), lambda: client.predict("m", [[1]]), lambda: client.signatures("m")):
            with pytest.raises(ServingUnavailable) as refused:
                call()
            assert refused.value.retryable
