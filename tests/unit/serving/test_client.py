"""The client against a real server that is slow, away for a moment, or refuses: what is asked again, and when it gives up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest

from airflow_mlops.exceptions import ServingError, ServingUnavailable, SpecError
from airflow_mlops.serving import protos
from airflow_mlops.serving.client import ServingClient
from airflow_mlops.serving.config import ServerConfig
from tests.replicas import AVAILABLE, REFUSED, UNAVAILABLE, Replica, nobody, replica, seconds

X = {"x": np.array([[1.5, 2.5]], np.float32)}
READS: dict[str, Callable[[ServingClient], Any]] = {
    "GetModelStatus": lambda client: client.status("m"),
    "Predict": lambda client: client.predict_tensors("m", X),
    "predict": lambda client: client.predict("m", [[1]]),
    "GetModelMetadata": lambda client: client.signatures("m"),
}
AWAY = {"GetModelStatus": UNAVAILABLE, "Predict": UNAVAILABLE, "predict": 503, "GetModelMetadata": UNAVAILABLE}


@pytest.fixture
def served() -> Iterator[Replica]:
    with replica(versions={1: AVAILABLE}) as served:
        yield served


@pytest.mark.parametrize("method", READS)
def test_a_question_is_asked_again_when_the_server_is_away_for_a_moment(served: Replica, method: str) -> None:
    served.failures[method] = [AWAY[method]] * 2
    with served.client() as client:
        READS[method](client)
    assert served.calls[method] == 3


def test_a_question_is_asked_again_when_the_connection_broke(served: Replica) -> None:
    served.failures["predict"] = ["drop"]
    with served.client() as client:
        READS["predict"](client)
    assert served.calls["predict"] == 2


@pytest.mark.parametrize("method", ["GetModelStatus", "predict"])
def test_a_server_that_stays_away_is_asked_a_few_times_within_the_deadline(served: Replica, method: str) -> None:
    served.failures[method] = [AWAY[method]] * 99
    with served.client() as client, pytest.raises(ServingUnavailable) as caught:
        READS[method](client)
    assert served.calls[method] == 4
    assert caught.value.retryable
    served.calls.clear()
    with served.client(0.3) as client, seconds() as taken, pytest.raises(ServingUnavailable):
        READS[method](client)
    assert served.calls[method] < 4
    assert taken[0] < 0.36


@pytest.mark.parametrize(
    ("method", "failure"), [("GetModelStatus", REFUSED), ("Predict", grpc.StatusCode.INTERNAL), ("predict", 400), ("GetModelMetadata", REFUSED)]
)
def test_a_refusal_is_not_asked_again(served: Replica, method: str, failure: Any) -> None:
    served.failures[method] = [failure]
    with served.client() as client, pytest.raises(ServingError, match="refused") as caught:
        READS[method](client)
    assert not caught.value.retryable
    assert served.calls[method] == 1


@pytest.mark.parametrize("failure", [UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, REFUSED])
def test_a_reload_is_sent_once_whatever_becomes_of_it(served: Replica, failure: grpc.StatusCode) -> None:
    served.failures["HandleReloadConfigRequest"] = [failure]
    with served.client() as client:
        with pytest.raises(ServingError) as caught:
            client.reload(ServerConfig())
        assert (served.calls["HandleReloadConfigRequest"], served.configs) == (1, [])
        assert caught.value.retryable == (failure is not REFUSED)
        client.reload(ServerConfig())
    assert served.calls["HandleReloadConfigRequest"] == 2


def test_a_model_that_is_not_available_yet_is_no_refusal_of_the_configuration(served: Replica) -> None:
    """The server serves it from then on; the model's state says how it went."""
    served.failures["HandleReloadConfigRequest"] = [(grpc.StatusCode.UNKNOWN, "1 model(s) did not become available: {{{name: m version: 1}}, }")]
    with served.client() as client:
        client.reload(ServerConfig())
        served.failures["HandleReloadConfigRequest"] = [(grpc.StatusCode.UNKNOWN, "anything else")]
        with pytest.raises(ServingError, match="anything else"):
            client.reload(ServerConfig())


def test_a_slow_server_is_given_up_at_the_deadline_and_not_asked_again(served: Replica) -> None:
    served.delay_seconds = 30.0

    def waited(call: Callable[[ServingClient], Any]) -> float:
        with served.client(1.0) as client, seconds() as taken, pytest.raises(ServingUnavailable, match=r"did not answer.*\(deadline 1 s\)"):
            call(client)
        return taken[0]

    calls = {**READS, "HandleReloadConfigRequest": lambda client: client.reload(ServerConfig())}
    with ThreadPoolExecutor(len(calls)) as pool:
        taken = list(pool.map(waited, calls.values()))
    assert min(taken) > 0.8
    assert max(taken) < 1.2
    assert served.calls == dict.fromkeys(calls, 1)


@pytest.fixture
def dripping() -> Iterator[str]:
    """A URL that answers a byte every tenth of a second, and never all of them."""
    done = threading.Event()

    def answer(listening: socket.socket) -> None:
        with listening, listening.accept()[0] as connection:
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not done.wait(0.1):
                connection.sendall(b" ")

    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=answer, args=(listening,))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    done.set()
    thread.join()


def test_an_answer_that_never_ends_is_given_up_at_the_deadline(dripping: str) -> None:
    with ServingClient("127.0.0.1:1", dripping, 0.5) as client, seconds() as taken, pytest.raises(ServingUnavailable, match="took too long"):
        client.predict("m", [[1]])
    assert 0.5 <= taken[0] < 0.65


def test_an_answer_that_cannot_be_unpacked_is_none() -> None:
    def answer(listening: socket.socket) -> None:
        with listening.accept()[0] as connection:
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnone")

    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
        answered = pool.submit(answer, listening)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with ServingClient("127.0.0.1:1", url, 5.0) as client, pytest.raises(ServingUnavailable, match=r"did not answer POST .*decompressing"):
            client.predict("m", [[1]])
        answered.result()


def test_whether_a_server_is_ready_is_asked_once(served: Replica) -> None:
    served.failures = {"GetModelStatus": [UNAVAILABLE], "rest status": [503]}
    with served.client() as client, nobody().client() as none:
        assert [client.ready() for _ in range(3)] == [False, False, True]
        assert not none.ready()
    assert served.calls == {"GetModelStatus": 3, "rest status": 2}


def test_a_server_is_ready_when_both_interfaces_answer(served: Replica) -> None:
    with served.client() as client, ServingClient(served.grpc_address, nobody().rest_url, 5.0) as half:
        assert client.ready()
        assert not half.ready()
        with pytest.raises(ServingUnavailable, match=half.rest_url):
            half.check()


def test_a_server_without_a_rest_url_is_asked_by_grpc_alone(served: Replica) -> None:
    with ServingClient(served.grpc_address) as client:
        assert client.rest_url is None
        assert client.ready()
        assert client.status("m") == {1: AVAILABLE}
        assert client.predict_tensors("m", X)[1].keys() == {"x"}
        with pytest.raises(SpecError, match=rf"the model server at {served.grpc_address} has no REST URL\..*or ask by gRPC with predict_tensors"):
            client.predict("m", [[1]])
    assert served.calls == {"GetModelStatus": 2, "Predict": 1}


def test_signatures_come_by_name_and_what_is_none_is_the_server_s_fault(served: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    with served.client() as client:
        assert client.signatures("m", label="stable") == {"serving_default": served.signature}
        broken = protos.get_model_metadata_pb2.GetModelMetadataResponse()
        broken.metadata["signature_def"].value = b"none"
        monkeypatch.setattr(client._predictions, "GetModelMetadata", lambda *_, **__: broken)
        with pytest.raises(ServingError, match="answered with signatures that cannot be read"):
            client.signatures("m")


@pytest.mark.parametrize(("asked", "version"), [({}, 9), ({"version": 3}, 3), ({"version": 0}, 0), ({"label": "stable"}, 7)])
def test_tensors_come_back_with_the_version_that_answered(served: Replica, asked: dict[str, Any], version: int) -> None:
    inputs = {
        "floats": np.array([[1.5, np.inf], [-0.0, 2.0]], np.float32),
        "halves": np.array([1.5], ml_dtypes.bfloat16),
        "words": np.array([[b"a", b""]], object),
        "scalar": np.array(2**40, np.int64),
    }
    with served.client() as client:
        answered, outputs = client.predict_tensors("m", inputs, signature_name="other", **asked)
    assert answered == version
    assert outputs.keys() == inputs.keys()
    for name, array in inputs.items():
        assert outputs[name].dtype == array.dtype
        np.testing.assert_array_equal(outputs[name], array)


def test_only_the_outputs_that_are_asked_for_come_back(served: Replica) -> None:
    with served.client() as client:
        assert client.predict_tensors("m", {**X, "y": np.zeros(1)}, output_filter=["y"])[1].keys() == {"y"}


def test_an_array_that_tensorflow_does_not_know_is_refused_before_it_is_sent(served: Replica) -> None:
    with served.client() as client, pytest.raises(SpecError, match="cannot be sent"):
        client.predict_tensors("m", {"x": np.array(["2026-01-01"], "datetime64[D]")})
    assert not served.calls


def test_a_tensor_that_cannot_be_read_is_the_server_s_fault(served: Replica) -> None:
    served.tensors["y"] = protos.tensor_pb2.TensorProto(dtype=protos.types_pb2.DT_RESOURCE)
    with served.client() as client, pytest.raises(ServingError, match="DT_RESOURCE"):
        client.predict_tensors("m", X)


def test_a_version_and_a_label_are_not_asked_for_at_once() -> None:
    both: dict[str, Any] = {"version": 1, "label": "x"}
    with nobody().client() as client:
        for ask in (lambda: client.predict("m", [], **both), lambda: client.predict_tensors("m", {}, **both), lambda: client.signatures("m", **both)):
            with pytest.raises(SpecError, match="Both version 1 and label 'x'"):
                ask()


@pytest.mark.parametrize("deadline", [0, -1.0, float("nan"), float("inf")])
def test_a_deadline_is_a_positive_number(deadline: float) -> None:
    with pytest.raises(SpecError, match="deadline_seconds is"):
        ServingClient("h:8500", "http://h:8501", deadline)


@pytest.mark.parametrize("url", ["h:8501", "ftp://h:8501", "http://", "http://h:99999", "http://u:s3cret@h:8501", "http://h:8501?x=1"])
def test_a_rest_url_that_is_none_is_no_reason_to_try_again(url: str) -> None:
    with pytest.raises(SpecError, match=r"http://serving:8501") as caught:
        ServingClient("h:8500", url)
    assert "s3cret" not in str(caught.value)
