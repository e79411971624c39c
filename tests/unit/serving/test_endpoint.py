"""The fields of a connection: every way to write them down right, and what is said about each wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_mlops.exceptions import SpecError
from airflow_mlops.serving.endpoint import ConnectionFields, Endpoint, Replica
from airflow_mlops.serving.tls import Tls
from tests.certificates import Authority
from tests.replicas import AVAILABLE, ServerTls, replica

HOUSE = Authority()
ME = HOUSE.sign("the scheduler")
TWO = [{"grpc": "a:8500", "rest": "http://a:8501"}, {"grpc": "[::1]:8500", "rest": "http://[::1]:8501/proxy"}]
SECURE = {"tls": True, "rest_url": "https://h:8501"}


def endpoint(host: str | None = "h", port: int | None = 8500, **extra: Any) -> Endpoint:
    return ConnectionFields("The connection", host, port, extra).endpoint()


def listed(replicas: Any, **extra: Any) -> Endpoint:
    return endpoint(None, None, replicas=replicas, **extra)


def test_a_single_replica_stands_in_host_and_port() -> None:
    assert endpoint(rest_url="http://h:8501") == Endpoint((Replica("h:8500", "http://h:8501"),), 10.0, None)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_gets_its_brackets(host: str) -> None:
    assert endpoint(host, rest_url="http://h:8501").replicas[0].grpc == "[::1]:8500"


@pytest.mark.parametrize("replicas", [TWO, json.dumps(TWO)], ids=["list", "text"])
def test_several_replicas_are_a_list_or_its_text(replicas: Any) -> None:
    found = listed(replicas, deadline_seconds="2.5", rest_url="", tls=False)
    assert found == Endpoint((Replica("a:8500", "http://a:8501"), Replica("[::1]:8500", "http://[::1]:8501/proxy")), 2.5)
    with found.open() as fleet:
        assert [(replica.grpc_address, replica.rest_url, replica.deadline_seconds) for replica in fleet.replicas] == [
            ("a:8500", "http://a:8501", 2.5),
            ("[::1]:8500", "http://[::1]:8501/proxy", 2.5),
        ]


@pytest.mark.parametrize("empty", [None, "", "  ", []])
def test_an_empty_field_is_none(empty: Any) -> None:
    fields = ("replicas", "tls", "ca_cert", "client_cert", "client_key", "tls_server_name", "deadline_seconds")
    found = endpoint(rest_url="http://h:8501", **dict.fromkeys(fields, empty))
    assert found == endpoint(rest_url="http://h:8501")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"host": None}, r"The connection has no host; give .* gRPC address, host and port, or all addresses in the extra 'replicas'"),
        ({"port": None}, "The connection has no port"),
        ({"port": 65536}, r"host and port is 'h:65536'; expected HOST:PORT without a scheme, the port from 1 to 65535"),
        ({"port": -1}, "host and port is 'h:-1'"),
        ({"host": "http://h"}, "host and port is 'http://h:8500'"),
        ({"host": "me:s3cret@h"}, r"host and port is '\*\*\*@h:8500'"),
        ({"rest_url": "h:8501"}, "The connection: rest_url is 'h:8501'; expected for instance http://serving:8501"),
        ({"rest_url": "http://h:85010"}, "rest_url is no URL"),
        ({"rest_url": "http://me:s3cret@h:8501"}, "rest_url holds a user or a password"),
        ({"rest_url": "http://me:s3cret/x@h:8501"}, "rest_url is no URL"),
        ({"rest_url": "me:s3cret@h:8501"}, "rest_url holds a user or a password"),
        ({"replicas": TWO}, "has a host, port or rest_url and the extra 'replicas' as well"),
        *[({"deadline_seconds": value}, "deadline_seconds is .*; expected a positive number") for value in (0, -1, "x", "nan", "inf", True, [1])],
        *[({"tls": value}, "tls is .*; expected true or false") for value in ("on", 2, [True])],
        ({"plain_rest_allowed": "maybe"}, "plain_rest_allowed is 'maybe'; expected true or false"),
        ({"tls": True}, r"rest_url is 'http://h:8501', but TLS is on.*Write https://"),
        ({"ca_cert": HOUSE.cert}, "has ca_cert, but TLS is off: nothing would be verified"),
        ({"client_key": "s3cret", "tls_server_name": "h", "tls": "false"}, "has client_key and tls_server_name, but TLS is off"),
        ({**SECURE, "ca_cert": "/nowhere/ca.pem"}, r"ca_cert is neither PEM text nor the path of a file .*\(No such file or directory\)"),
        ({**SECURE, "client_key": "s3cret"}, "client_key is neither PEM text nor the path"),
        ({**SECURE, "client_key": "s3cret\0"}, "client_key is neither PEM text nor the path"),
        ({**SECURE, "ca_cert": "-----BEGIN CERTIFICATE-----\nAAAA"}, "ca_cert holds no PEM block"),
        ({**SECURE, "ca_cert": ME.key}, "The connection: ca_cert is no certificate"),
        ({**SECURE, "client_cert": ME.cert}, "The connection: client_cert is set without client_key"),
    ],
)
def test_a_wrong_field_is_named_with_what_to_write(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        endpoint(**{"rest_url": "http://h:8501", **fields})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("replicas", "words"),
    [
        ("[{", r"has an extra 'replicas' that is no JSON \(line 1, column 3\)"),
        ([], "has no host; .* or all addresses in the extra 'replicas'"),
        ("[]", "'replicas' that is no list of objects; write for instance"),
        ({"grpc": "a:8500", "rest": "http://a:8501"}, "'replicas' that is no list of objects"),
        (["a:8500"], r"replicas\[0\] is no object; write the list as .*serving-0:8500"),
        ([TWO[0], {**TWO[1], "gprc": "b:8500"}], r"replicas\[1\] has the unknown key 'gprc'\. Did you mean 'grpc'\?"),
        ([{"rest": "http://a:8501"}], r"replicas\[0\] has no 'grpc'"),
        ([TWO[0], {**TWO[1], "grpc": "b:0"}], r"replicas\[1\]\.grpc is 'b:0'; expected HOST:PORT"),
        ([{**TWO[0], "grpc": 8500}], r"replicas\[0\]\.grpc is 8500"),
        ([{**TWO[0], "grpc": "a"}], r"replicas\[0\]\.grpc is 'a'"),
        ([{**TWO[0], "rest": 8501}], r"replicas\[0\]\.rest is '8501'"),
        ([TWO[0], TWO[1], TWO[0]], "names the replica a:8500 more than once"),
    ],
)
def test_a_wrong_list_of_replicas_says_which_entry_is_wrong(replicas: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        listed(replicas)


def test_every_replica_of_a_list_must_speak_tls_if_one_does() -> None:
    with pytest.raises(SpecError, match=r"replicas\[1\]\.rest is 'http://b:8501', but TLS is on"):
        listed([{"grpc": "a:8500", "rest": "https://a:8501"}, {"grpc": "b:8500", "rest": "http://b:8501"}], tls=True)


@pytest.mark.parametrize("tls", [False, True])
def test_rest_may_be_left_out(tls: bool) -> None:
    assert endpoint(tls=tls).replicas == (Replica("h:8500"),)
    assert listed([{"grpc": "a:8500"}, {"grpc": "b:8500", "rest": ""}, {"grpc": "c:8500", "rest": None}], tls=tls).replicas == (
        Replica("a:8500"),
        Replica("b:8500"),
        Replica("c:8500"),
    )


def test_rest_in_the_clear_beside_tls_is_a_decision() -> None:
    for found in (
        endpoint(tls=True, plain_rest_allowed="true", rest_url="http://h:8501"),
        listed([{"grpc": "h:8500", "rest": "http://h:8501"}], tls=True, plain_rest_allowed=True),
    ):
        assert found == Endpoint((Replica("h:8500", "http://h:8501"),), tls=Tls(), plain_rest_allowed=True)
        with found.open() as fleet:
            assert fleet.replicas[0].rest_url == "http://h:8501"
    assert endpoint(tls=True, plain_rest_allowed=True, rest_url="https://h:8501").replicas[0].rest == "https://h:8501"


def test_a_server_that_speaks_tls_by_grpc_alone_is_asked_by_both(tmp_path: Path) -> None:
    mine = HOUSE.sign("127.0.0.1")
    with replica(ServerTls(mine.cert, mine.key), tmp_path, versions={1: AVAILABLE}) as encrypted, replica() as plain:
        both = {"grpc": encrypted.grpc_address, "rest": plain.rest_url}  # as TensorFlow Serving has them
        with listed([both], tls=True, ca_cert=HOUSE.cert, plain_rest_allowed=True).open() as fleet:
            assert fleet.ready()
            assert fleet.predict("m", [[1]]) == [[1.0]]
            assert fleet.status("m") == {1: AVAILABLE}


def test_certificates_are_text_or_files_and_survive_a_one_line_field(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(f"Issuer: a comment, as openssl writes it\n{HOUSE.cert}{Authority('another').cert}")
    extra = {
        **SECURE,
        "tls": "True",
        "ca_cert": str(tmp_path / "ca.pem"),
        "client_cert": ME.cert.replace("\n", "\\n"),
        "client_key": ME.key.replace("\n", " "),
        "tls_server_name": "serving.internal",
    }
    tls = endpoint(**extra).tls
    assert tls is not None and tls.ca_cert is not None
    assert tls.ca_cert.startswith(HOUSE.cert) and tls.ca_cert.count("BEGIN") == 2
    assert tls == Tls(tls.ca_cert, ME.cert, ME.key, "serving.internal")


def test_a_whole_fleet_is_reached_by_tls(tmp_path: Path) -> None:
    mine = HOUSE.sign("127.0.0.1")
    with replica(ServerTls(mine.cert, mine.key, HOUSE.cert), tmp_path, versions={1: AVAILABLE}) as served:
        certificates = {"ca_cert": HOUSE.cert, "client_cert": ME.cert, "client_key": ME.key}
        with listed([served.addresses], tls="true", **certificates).open() as fleet:
            assert fleet.ready()
            assert fleet.status("m") == {1: AVAILABLE}


@pytest.mark.parametrize("value", [{"key": "a", "secret": "b"}, '{"key": "a", "secret": "b"}'])
def test_options_are_an_object_or_its_text(value: Any) -> None:
    assert ConnectionFields("c", None, None, {"options": value}).options("options") == {"key": "a", "secret": "b"}


@pytest.mark.parametrize("value", [None, "", " ", {}])
def test_no_options_are_none(value: Any) -> None:
    assert ConnectionFields("c", None, None, {"options": value}).options("options") == {}


@pytest.mark.parametrize("value", ["s3cret", '["s3cret"]', ["s3cret"], '{"s3cret"', 7])
def test_other_options_are_refused_without_being_shown(value: Any) -> None:
    with pytest.raises(SpecError, match=r"Connection 'c' has an extra 'options' that is no JSON") as caught:
        ConnectionFields("Connection 'c'", None, None, {"options": value}).options("options")
    assert "s3cret" not in str(caught.value)
