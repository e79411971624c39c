"""TLS to a real server: who is believed, who is not, and what a certificate that does not hold looks like."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airflow_mlops.exceptions import ServingError, ServingUnavailable, SpecError
from airflow_mlops.serving.client import ServingClient
from airflow_mlops.serving.config import ServerConfig
from airflow_mlops.serving.tls import Tls
from tests.certificates import Authority, Certificate, encrypted
from tests.replicas import AVAILABLE, Replica, ServerTls, replica

HOUSE, STRANGER = Authority(), Authority("a stranger's authority")
ME = HOUSE.sign("the scheduler")
CALLS: list[Callable[[ServingClient], Any]] = [
    lambda client: client.status("m"),
    lambda client: client.reload(ServerConfig()),
    lambda client: client.predict_tensors("m", {"x": np.ones(1, np.float32)}),
    lambda client: client.predict("m", [[1]]),
    lambda client: client.signatures("m"),
]


def serving(directory: Path, certificate: Certificate, client_ca: str | None = None) -> Any:
    return replica(ServerTls(certificate.cert, certificate.key, client_ca), directory, versions={1: AVAILABLE})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """A server that proves who it is."""
    with serving(tmp_path_factory.mktemp("plain"), HOUSE.sign("127.0.0.1", "localhost")) as served:
        yield served


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """A server that wants to know who asks, and has a certificate for another name than its address."""
    with serving(tmp_path_factory.mktemp("mutual"), HOUSE.sign("serving.internal"), client_ca=HOUSE.cert) as served:
        yield served


def test_a_server_is_believed_that_the_authority_has_signed(plain: Replica) -> None:
    with plain.client(tls=Tls(HOUSE.cert)) as client:
        assert client.ready()
        assert client.status("m") == {1: AVAILABLE}
        assert client.predict("m", [[1]]) == [[1.0]]
        assert client.predict_tensors("m", {"x": np.ones(1, np.float32)}, version=1)[0] == 1


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("tls", [Tls(STRANGER.cert), Tls(), Tls(HOUSE.cert, server_name="another.host")], ids=["stranger", "public", "name"])
def test_a_server_is_not_believed_that_someone_else_has_signed_or_for_another_name(
    plain: Replica, tls: Tls, call: Callable[[ServingClient], Any]
) -> None:
    with plain.client(tls=tls) as client, pytest.raises(ServingError, match=r"is not to be trusted.*ca_cert.*tls_server_name") as caught:
        call(client)
    assert not caught.value.retryable


def test_without_tls_such_a_server_does_not_answer(plain: Replica) -> None:
    with ServingClient(plain.grpc_address, plain.rest_url.replace("https", "http"), 0.4) as client:
        for call in (CALLS[0], CALLS[3]):
            with pytest.raises(ServingUnavailable, match="did not answer"):
                call(client)


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
def test_an_encrypted_rest_url_is_verified_whatever_grpc_does(plain: Replica, scheme: str) -> None:
    with ServingClient("127.0.0.1:1", plain.rest_url.replace("https", scheme)) as client, pytest.raises(ServingError, match="not to be trusted"):
        client.predict("m", [[1]])


def test_a_server_that_asks_who_we_are_is_told(mutual: Replica) -> None:
    with mutual.client(tls=Tls(HOUSE.cert, ME.cert, ME.key, server_name="serving.internal")) as client:
        for call in CALLS:
            call(client)


@pytest.mark.parametrize("us", [None, STRANGER.sign("the scheduler")], ids=["nobody", "stranger"])
def test_a_server_that_asks_who_we_are_talks_to_nobody_else(mutual: Replica, us: Certificate | None) -> None:
    identity = {"client_cert": us.cert, "client_key": us.key} if us else {}
    mutual.calls.clear()
    with mutual.client(0.4, Tls(HOUSE.cert, **identity, server_name="serving.internal")) as client:
        for call in (CALLS[0], CALLS[3]):
            with pytest.raises(ServingUnavailable, match="did not answer"):
                call(client)
    assert not mutual.calls


def test_a_certificate_for_another_name_needs_that_name(mutual: Replica) -> None:
    with mutual.client(tls=Tls(HOUSE.cert, ME.cert, ME.key)) as client, pytest.raises(ServingError, match="is not to be trusted"):
        client.status("m")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ca_cert": "nonsense"}, "ca_cert is no certificate"),
        ({"ca_cert": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, "ca_cert is no certificate"),
        ({"client_cert": ME.cert}, "client_cert is set without client_key"),
        ({"client_key": ME.key}, "client_key is set without client_cert"),
        ({"client_cert": ME.cert, "client_key": HOUSE.sign("other").key}, "do not go together"),
        ({"client_cert": ME.cert, "client_key": encrypted(ME.key)}, "the key unencrypted"),
        ({"client_cert": "nonsense", "client_key": ME.key}, "do not go together"),
    ],
)
def test_certificates_that_are_none_are_refused_before_anyone_is_asked(fields: dict[str, str], words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        Tls(**fields)
    assert "PRIVATE KEY" not in str(caught.value)


def test_the_key_is_not_shown() -> None:
    assert ME.key not in repr(Tls(HOUSE.cert, ME.cert, ME.key))


def test_answers_do_not_travel_in_the_clear_when_tls_is_on() -> None:
    with pytest.raises(SpecError, match=r"'http://h:8501', but TLS is on.*Write https://"):
        ServingClient("h:8500", "http://h:8501", tls=Tls(HOUSE.cert))
