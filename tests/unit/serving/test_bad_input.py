"""What goes wrong around a model server stays where it went wrong: models that crash, hang or are half there, and clients that do anything.

What belongs to the protocol is asked of every server in `tests.conformance`: broken, cut and missing files, warm-ups that fail, wrong tags,
refused labels, missing platforms and base paths, malformed JSON, wrong types and shapes, bodies of 100 MB. Here are the failures that only a
server with a process for every version can survive, and only of the embedded one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from airflow_mlops.serving import protos
from tests.conformance.serving_lifecycle import BOTH, LINEAR, ONE, TWO, Asking
from tests.conformance.serving_target import FLOAT, SECONDS, Code, Target, predict, refusal, row, tensor, until
from tests.servers import EmbeddedServer
from tests.serving_models import ROW

REST_TIMEOUT, RUN_TIMEOUT, LOAD_TIMEOUT = 2.0, 4.0, 5.0
TROUBLED = {1: "trouble", 2: "trouble"}


@pytest.fixture(scope="module")
def server(serving_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server that waits for nothing long."""
    home = tmp_path_factory.mktemp("rough")
    (home / "models.config").write_text("model_config_list {}")
    limits = {"rest_api_timeout_in_ms": REST_TIMEOUT, "run_timeout_in_ms": RUN_TIMEOUT, "load_timeout_in_ms": LOAD_TIMEOUT}
    flags = [f"--{name}={int(seconds * 1000)}" for name, seconds in limits.items()]
    server = EmbeddedServer(home / "models.config", (*flags, "--file_system_poll_wait_seconds=0.2", "--max_num_load_retries=1"))
    server.start()
    yield server
    assert server.process.poll() is None, server.log.read_text()[-5000:]
    assert server.stop() == 0


@pytest.fixture(scope="module")
def rough(server: EmbeddedServer, serving_models: Path) -> Iterator[Target]:
    """The server with ``calm`` (linear, versions 1 and 2), ``trouble`` (versions 1 and 2), and ``stuck``, which hangs while it is loaded."""
    target = Target(server.grpc_address, server.rest_url, server.config_file.parent, serving_models)
    target.publish("calm", LINEAR)
    target.publish("trouble", TROUBLED)
    target.publish("stuck", {1: "linear1", 2: "hang_at_load"})
    target.reload(*(target.config(name, policy=BOTH) for name in ("calm", "trouble", "stuck")))
    for name, versions in (("calm", (1, 2)), ("trouble", (1, 2)), ("stuck", (1,))):
        target.await_states(name, dict.fromkeys(versions, "AVAILABLE"))
    yield target
    target.close()


@pytest.fixture
def name(rough: Target, numbers: Iterator[int]) -> Iterator[str]:
    """The name of a model of this test alone, which is no longer served afterwards."""
    name = f"m{next(numbers)}"
    yield name
    rough.forget(name)


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return itertools.count(1)


def processes(server: EmbeddedServer) -> set[int]:
    """Return the ids of all processes of the server that run."""
    front = psutil.Process(server.process.pid)
    running = set()
    for process in (front, *front.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if process.status() != psutil.STATUS_ZOMBIE:
                running.add(process.pid)
    return running


def settled(server: EmbeddedServer) -> set[int]:
    """Return `processes` once those that an earlier test has let go of have ended."""
    seen = processes(server)
    while True:
        time.sleep(0.5)
        if (now := processes(server)) == seen:
            return now
        seen = now


def ask(rough: Target, signature: str, seconds: float = 1.0, *, model: str = "trouble", version: int = 1, timeout: float = SECONDS) -> Any:
    """Ask ``trouble`` or a model like it by gRPC."""
    return rough.prediction.Predict(predict(model, {"x": tensor([seconds], [1])}, signature, version=version), timeout=timeout)


def ask_rest(rough: Target, signature: str, seconds: float = 1.0) -> httpx.Response:
    """Ask version 1 of ``trouble`` by REST."""
    return rough.post("trouble/versions/1:predict", {"signature_name": signature, "instances": [seconds]})


def answers_again(rough: Target, **asked: Any) -> bool:
    with contextlib.suppress(grpc.RpcError):
        return list(ask(rough, "", **asked).outputs["y"].float_val) == [1.0]
    return False


def failure(future: Future[Any]) -> tuple[grpc.StatusCode, str]:
    error = future.exception(SECONDS)
    assert isinstance(error, grpc.RpcError), error
    return error.code(), error.details()


class TestConnections:
    """Clients that do not finish what they began, or begin with something else."""

    NUM = 40  # of each kind

    def test_slow_ones_hold_up_nobody_and_are_cut_off(self, rough: Target) -> None:
        body = json.dumps({"instances": [ROW]}).encode()
        head = b"POST /v1/models/calm:predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        kinds = {"headers": (head[:40], head[40:]), "a body": (head + f"Content-Length: {len(body) * 10}\r\n\r\n".encode(), body)}
        with contextlib.ExitStack() as stack:
            slow = []
            for begun, rest in kinds.values():
                for _ in range(self.NUM):
                    connection = stack.enter_context(socket.create_connection(("127.0.0.1", int(rough.rest_url.rsplit(":", 1)[1])), SECONDS))
                    connection.sendall(begun)
                    slow.append((connection, iter(rest)))
            stop = threading.Event()
            dripping = stack.enter_context(ThreadPoolExecutor(1)).submit(self.drip, slow, stop)
            stack.callback(stop.set)
            answered = 0
            while not dripping.done():  # endless dripping ends by the test's own timeout
                assert rough.answer("calm") == TWO
                assert httpx.post(f"{rough.rest_url}/v1/models/calm:predict", content=body, trust_env=False, timeout=SECONDS).status_code == 200
                answered += 1
            assert answered > len(slow), "the slow ones held up others"

    @staticmethod
    def drip(slow: list[tuple[socket.socket, Iterator[int]]], stop: threading.Event) -> None:
        """Send a byte a second on every connection until the server has closed all of them."""
        while slow and not stop.wait(1.0):
            for entry in list(slow):
                connection, rest = entry
                try:
                    connection.sendall(bytes([next(rest)]))
                    connection.setblocking(False)
                    closed = connection.recv(65536) == b""
                except BlockingIOError:
                    closed = False
                except OSError:
                    closed = True
                connection.setblocking(True)
                if closed:
                    slow.remove(entry)

    def test_half_open_ones_on_the_grpc_port_hold_up_nobody(self, rough: Target) -> None:
        host, port = rough.grpc_address.split(":")
        with contextlib.ExitStack() as stack:
            for number in range(self.NUM):
                connection = stack.enter_context(socket.create_connection((host, int(port)), SECONDS))
                connection.sendall((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"PRI * HT", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 64, b"")[number % 5])
            with grpc.insecure_channel(rough.grpc_address) as channel:  # a connection made among them
                call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
                assert call(row("calm").SerializeToString(), timeout=5.0)

    @pytest.mark.parametrize(
        "sent",
        [
            b"\r\n\r\n\r\n",
            b"\x00\xff" * 100 + b"\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET /v1/models/calm HTTP/9.9\r\n\r\n",
            b"GET /v1/models/calm HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
            b"GET /v1/models/calm HTTP/1.1\r\nHost: a\r\nContent-Length: nonsense\r\n\r\n",
            b"POST /v1/models/calm:predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n\r\n",
            b"POST /v1/models/calm:predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
            b"GET /v1/models/calm HTTP/1.1\r\nHost: a\r\n" + b"X-Long: " + b"a" * 1_000_000 + b"\r\n\r\n",
            b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /v1/models/%ff%00%zz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ],
        ids=lambda sent: repr(sent[:60]),
    )
    def test_what_is_hardly_http_does_no_harm(self, rough: Target, sent: bytes) -> None:
        with socket.create_connection(("127.0.0.1", int(rough.rest_url.rsplit(":", 1)[1])), SECONDS) as connection:
            with contextlib.suppress(OSError):  # the server may have answered and closed before the end
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while chunk := connection.recv(65536):
                    answer += chunk
        assert not answer or answer.split(b" ", 2)[1][:1] in (b"2", b"4"), answer[:200]  # a long header alone is no reason to refuse
        assert rough.post("calm:predict", {"instances": [ROW]}).json() == {"predictions": [TWO]}

    def test_a_client_that_goes_away_before_its_answer_does_no_harm(self, rough: Target) -> None:
        for _ in range(20):
            with contextlib.suppress(httpx.TimeoutException):
                httpx.post(f"{rough.rest_url}/v1/models/trouble:predict", json={"signature_name": "slow", "instances": [0.2]}, timeout=0.05)
            rough.prediction.Predict.future(predict("trouble", {"x": tensor([0.2], [1])}, "slow"), timeout=SECONDS).cancel()
        until(lambda: answers_again(rough, version=2), "an answer")
        assert rough.answer("calm") == TWO


class TestFiles:
    """Directories that are not what they should be."""

    def test_a_copy_that_is_seen_half_is_loaded_when_it_is_whole(self, rough: Target, name: str) -> None:
        with rough.serving(name, {1: "linear1"}), Asking(rough, name) as asking:
            shutil.copytree(rough.built / "linear2", rough.home / name / "2", ignore=shutil.ignore_patterns("saved_model.pb"))
            until(lambda: 2 in rough.states(name), "the half copy is seen")
            shutil.copy(rough.built / "linear2" / "saved_model.pb", rough.home / name / "2")
            rough.await_states(name, {1: "END", 2: "AVAILABLE"})
        assert all(answer in (ONE, TWO) for answer in asking.answers), asking.answers

    def test_a_graph_without_its_variables_does_not_take_the_place_of_a_whole_one(self, rough: Target, name: str) -> None:
        """The original serves it, and answers every request with an error: half of a copy looks like this."""
        with rough.serving(name, {1: "linear1"}), Asking(rough, name) as asking:
            rough.publish(name, {2: "no_variables"})
            rough.await_states(name, {1: "AVAILABLE", 2: "END"})
            assert rough.status(name)[2][2]
        assert set(map(str, asking.answers)) == {str(ONE)}

    @pytest.mark.parametrize("model", ["missing_tensor", "missing_op_inside"])
    def test_a_fault_that_shows_late_is_told_by_the_load_or_the_request(self, rough: Target, name: str, model: str) -> None:
        rough.publish(name, {1: model})
        with contextlib.suppress(grpc.RpcError):
            rough.reload(rough.config(name))
        until(lambda: rough.states(name).get(1) in ("END", "AVAILABLE"), "the load is over")
        _, code, text = rough.status(name)[1]
        if rough.states(name)[1] == "AVAILABLE":
            code, text = refusal(rough.prediction.Predict, row(name))
            assert code not in (Code.INTERNAL, Code.UNKNOWN, Code.UNAVAILABLE)
        assert code and ("nowhere" if model == "missing_tensor" else "OpOfANewerTensorFlow") in text

    def test_files_that_vanish_under_a_loaded_version_do_no_harm_but_to_its_return(self, rough: Target, name: str) -> None:
        with rough.serving(name, {1: "trouble"}):
            shutil.rmtree(rough.home / name / "1")
            assert rough.answer(name, [1.0]) == [1.0]
            with pytest.raises(grpc.RpcError):
                rough.prediction.Predict(predict(name, {"x": tensor([1.0], [1])}, "crash"), timeout=SECONDS)
            with pytest.raises(grpc.RpcError) as refused:  # it cannot come back: its files are gone
                until(lambda: rough.answer(name, [1.0]) and False, "a refusal", 5.0)
            assert refused.value.code() in (Code.UNAVAILABLE, Code.NOT_FOUND) and refused.value.details()
        assert rough.answer("calm") == TWO

    def test_answers_that_are_no_numbers_are_answers(self, rough: Target, name: str) -> None:
        with rough.serving(name, {1: "many"}):
            answer = rough.post(f"{name}:predict", {"signature_name": "unusual", "instances": [1]})
            assert "".join(answer.text.split()) == '{"predictions":[[Infinity,-Infinity,NaN,1.0]]}'


class TestGreed:
    """A request of a few bytes that stands for a tensor of a great many: one value is repeated until the shape is full."""

    @pytest.mark.parametrize(
        ("values", "kind", "dtype", "size", "signature"),
        [([1.0], "float_val", FLOAT, 2**23, ""), ([b"a"], "string_val", protos.types_pb2.DT_STRING, 2**18, "echo_string")],
        ids=["floats", "strings"],
    )
    def test_it_costs_nobody_else_anything(
        self, rough: Target, name: str, values: list[Any], kind: str, dtype: int, size: int, signature: str
    ) -> None:
        request = predict(name, {"x": tensor(values, [size], dtype, kind)}, signature)
        with rough.serving(name, {1: "many"}), Asking(rough, "calm") as calm:
            try:
                answer = rough.prediction.Predict(request, timeout=SECONDS).outputs["y"]
                assert [dim.size for dim in answer.tensor_shape.dim] == [size]
            except grpc.RpcError as error:
                assert error.code() in (Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED) and error.details(), error
        assert set(map(str, calm.answers)) == {str(TWO)} and calm.slowest < 2.0


class TestStuckLoads:
    """A model that never ends its load."""

    def test_the_version_ends_when_its_time_is_over(self, rough: Target) -> None:
        """It has hung since the first test of this module; the tests below look at processes, and it may have none any more."""
        rough.await_states("stuck", {1: "AVAILABLE", 2: "END"})
        _, code, text = rough.status("stuck")[2]
        assert code != 0 and text
        assert rough.answer("stuck") == ONE


class TestReloadsOfOthers:
    """Two who do not know of each other reload one server."""

    def test_the_last_one_is_in_force_and_none_is_half(self, rough: Target, numbers: Iterator[int]) -> None:
        names = [f"m{next(numbers)}" for _ in range(2)]
        for name in names:
            rough.publish(name, LINEAR)
        requests = [rough.request(*rough.configs.values(), rough.config(name, policy=BOTH)) for name in names]
        try:
            with Asking(rough, "calm") as calm, ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda turn: rough.models.HandleReloadConfigRequest(requests[turn % 2], timeout=SECONDS), range(20)))
            assert set(map(str, calm.answers)) == {str(TWO)}
            rough.models.HandleReloadConfigRequest(requests[0], timeout=SECONDS)
            rough.await_states(names[0], {1: "AVAILABLE", 2: "AVAILABLE"})
            until(lambda: set(rough.states(names[1]).values()) <= {"END"}, "the other model is gone")
            assert rough.answer(names[0], version=1) == ONE
        finally:
            rough.forget(*names)


class TestCrashes:
    """A model whose native code ends the process."""

    @pytest.mark.parametrize("by", ["grpc", "rest"])
    def test_at_predict_only_its_own_requests_fail_and_it_comes_back(self, rough: Target, server: EmbeddedServer, by: str) -> None:
        before = settled(server)
        with Asking(rough, "calm") as calm, Asking(rough, "trouble", version=2) as other, ThreadPoolExecutor(2) as pool:
            in_flight, in_flight_rest = pool.submit(ask, rough, "slow", 1.5), pool.submit(ask_rest, rough, "slow", 1.5)
            time.sleep(0.3)  # they run
            if by == "grpc":
                code, details = refusal(rough.prediction.Predict, predict("trouble", {"x": tensor([1.0], [1])}, "crash", version=1))
                assert code is Code.UNAVAILABLE and details
            else:
                answer = ask_rest(rough, "crash")
                assert (answer.status_code, answer.headers["content-type"]) == (503, "application/json") and answer.json()["error"]
            assert failure(in_flight)[0] is Code.UNAVAILABLE and failure(in_flight)[1]
            assert in_flight_rest.result().status_code == 503 and in_flight_rest.result().json()["error"]
            until(lambda: answers_again(rough), "the crashed version answers again")
        assert set(map(str, calm.answers)) == {str(TWO)}
        assert set(map(str, other.answers)) == {str(ROW)}
        assert rough.states("trouble") == {1: "AVAILABLE", 2: "AVAILABLE"}
        after = until(lambda: len(processes(server)) == len(before) and processes(server), "one process has taken the place of another")
        assert len(before - after) == len(after - before) == 1

    def test_again_and_again_it_comes_back(self, rough: Target, name: str) -> None:
        with rough.serving(name, {1: "trouble"}):
            for _ in range(2):
                with pytest.raises(grpc.RpcError):
                    ask(rough, "crash", model=name)
                until(lambda: answers_again(rough, model=name), "the crashed version answers again")

    def test_at_load_the_version_ends_with_a_reason_and_the_old_one_serves_on(self, rough: Target, name: str) -> None:
        with rough.serving(name, {1: "linear1"}), Asking(rough, name) as asking:
            rough.publish(name, {2: "crash_at_load"})
            rough.await_states(name, {1: "AVAILABLE", 2: "END"})
            _, code, text = rough.status(name)[2]
            assert code != 0 and text
        assert set(map(str, asking.answers)) == {str(ONE)}

    def test_killed_from_outside_it_comes_back_too(self, rough: Target, server: EmbeddedServer, name: str) -> None:
        before = settled(server)
        with rough.serving(name, {1: "linear1"}):
            (own,) = processes(server) - before
            psutil.Process(own).kill()
            until(lambda: processes(server) - before not in (set(), {own}), "another process in its place")
            until(lambda: self.answers(rough, name), "the killed version answers again")

    @staticmethod
    def answers(rough: Target, name: str) -> bool:
        with contextlib.suppress(grpc.RpcError):
            return rough.answer(name) == ONE
        return False


class TestHangs:
    """A model that never ends what it began."""

    def test_at_predict_rest_ends_with_its_timeout_while_others_are_answered(self, rough: Target) -> None:
        with Asking(rough, "calm") as calm, Asking(rough, "trouble", version=2) as other:
            answer = ask_rest(rough, "hang")
            assert (answer.status_code, answer.headers["content-type"]) == (504, "application/json") and answer.json()["error"]
        assert set(map(str, calm.answers)) == {str(TWO)}
        assert set(map(str, other.answers)) == {str(ROW)}
        until(lambda: answers_again(rough), "the version answers again")

    def test_at_predict_a_run_that_takes_too_long_costs_its_process_and_the_version_comes_back(
        self, rough: Target, server: EmbeddedServer, name: str
    ) -> None:
        others = settled(server)
        with rough.serving(name, {1: "trouble"}), Asking(rough, "calm") as calm:
            (own,) = processes(server) - others
            with pytest.raises(grpc.RpcError) as refused:
                ask(rough, "hang", model=name)
            assert refused.value.code() in (Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE) and refused.value.details()
            until(lambda: answers_again(rough, model=name), "the version answers again")
            assert own not in processes(server)
            assert rough.states(name) == {1: "AVAILABLE"}
        assert set(map(str, calm.answers)) == {str(TWO)}

    def test_a_deadline_of_the_client_ends_only_its_own_call(self, rough: Target) -> None:
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(ask, rough, "slow", 1.5, version=2)
            with pytest.raises(grpc.RpcError) as refused:
                ask(rough, "slow", 1.5, version=2, timeout=0.5)
            assert refused.value.code() is Code.DEADLINE_EXCEEDED
            assert list(slow.result(SECONDS).outputs["y"].float_val) == [1.5]

    def test_a_model_may_be_dropped_while_it_hangs_at_predict_or_load(self, rough: Target, server: EmbeddedServer, name: str) -> None:
        others, loading = processes(server), f"{name}loading"
        rough.publish(loading, {1: "hang_at_load"})
        with rough.serving(name, {1: "trouble"}), ThreadPoolExecutor(1) as pool:
            rough.configure(rough.config(loading))
            call = pool.submit(ask, rough, "hang", model=name)
            until(lambda: rough.states(loading).get(1) == "LOADING" and len(processes(server) - others) == 2, "both hang")
            rough.reload(drop=[name, loading])
            assert failure(call)[0] in (Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE, Code.CANCELLED, Code.ABORTED) and failure(call)[1]
            rough.await_states(name, {1: "END"})
            rough.await_states(loading, {1: "END"})
        until(lambda: processes(server) <= others, "their processes are gone")
        rough.forget(loading)
