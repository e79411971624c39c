"""Requests that nobody meant to send: whatever comes, a model server answers with a reason, in time, and goes on.

Every check takes the number of examples, so that the tests run some hundreds and the proofs many thousands of the same ones.
"""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import string
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_mlops.serving import protos
from tests.serving_models import ROW

from .serving_target import Code, Target, asking, example, predict, row, spec, tensor

DEADLINE = 10.0  # seconds; no answer may need them
PREDICTION, MODELS = "/tensorflow.serving.PredictionService/", "/tensorflow.serving.ModelService/"
RELOAD = f"{MODELS}HandleReloadConfigRequest"
REQUESTS: dict[str, Any] = {
    f"{PREDICTION}Predict": protos.predict_pb2.PredictRequest,
    f"{PREDICTION}Classify": protos.classification_pb2.ClassificationRequest,
    f"{PREDICTION}Regress": protos.regression_pb2.RegressionRequest,
    f"{PREDICTION}MultiInference": protos.inference_pb2.MultiInferenceRequest,
    f"{PREDICTION}GetModelMetadata": protos.get_model_metadata_pb2.GetModelMetadataRequest,
    f"{MODELS}GetModelStatus": protos.get_model_status_pb2.GetModelStatusRequest,
    RELOAD: protos.model_management_pb2.ReloadConfigRequest,
}
NAMES = [
    *("linear", "two", "many", "examples1", "nobody", "", "stable", "canary", "signature_def", "tensorflow", "relative", "/nowhere/at/all"),
    *("x", "y", "left", "right", "inputs", "word", "text", "serving_default", "regress", "predict", "echo_string", "echo_int8", "scalar", "unequal"),
    *("tensorflow/serving/classify", "tensorflow/serving/regress", "é\u0000\U0001f600", "a" * 300),
]
WHOLE = [0, 1, 2, 3, 4, 7, -1, 5, 17, 127, 255, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, 2**63 - 1, -(2**63), 2**64 - 1]
SIZES = [0, 1, 2, 3, 4, 7, -1, 2**40, 2**62]  # of dimensions: what a few bytes can make a server allocate is `test_bad_input`'s
REAL = [0.0, -0.0, 1.0, 0.5, -1e38, 1e-45, float("nan"), float("inf"), float("-inf"), 1e300]
PYTHON_FAULT = re.compile(
    r"Traceback|\b(Attribute|Key|Type|Index|Name|Value|Unicode\w*|Assertion|Recursion|Overflow|Import)Error\b|NoneType|object has no"
)
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def checked(num_examples: int) -> Callable[[Any], Any]:
    """Return the settings of every check here: the same examples each time, as many as asked for."""
    return settings(max_examples=num_examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def goes_on(served: Target) -> None:
    """Fail if a normal request is not answered right away."""
    asked = time.monotonic()
    assert served.answer("linear", label="stable") == [4.0, 5.0]
    assert time.monotonic() - asked < DEADLINE


# ------------------------------------------------------------------------------------------------------------------------------ REST

leaves = st.one_of(st.none(), st.booleans(), st.sampled_from([*WHOLE, *REAL]), st.sampled_from(NAMES), st.text(max_size=5), st.just({"b64": "AA=="}))
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["b64", "x", "inputs", "left"]) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)
BODIES: dict[str, list[Any]] = {
    "linear:predict": [{"instances": [ROW]}, {"inputs": {"x": [ROW, ROW]}}],
    "two:predict": [{"instances": [{"left": [1, 2], "right": [3]}]}, {"inputs": {"left": [[1, 2]], "right": [[3]]}}],
    "many:predict": [
        {"instances": [1, 2], "signature_name": name} for name in ("scalar", "unequal", "echo_int8", "echo_bool", "echo_half", "unusual")
    ]
    + [{"instances": [{"b64": "AA=="}, "a"], "signature_name": name} for name in ("text", "picture", "echo_string")]
    + [{"inputs": {"b64": "AA=="}, "signature_name": "picture"}, {"inputs": 1, "signature_name": "scalar"}, {"inputs": [[]]}],
    "examples1:classify": [{"examples": [{"x": 0.5, "word": "good"}], "context": {"word": ["bad"]}}],
    "examples1:regress": [{"examples": [{"x": [0.5]}], "signature_name": "regress"}],
}


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """Return JSON like `value` with something else in one or two places."""
    if draw(st.integers(0, 5)) == 0:
        return draw(anything)
    if isinstance(value, dict) and value:
        key = draw(st.sampled_from(sorted(value)))
        changed = {**value, key: draw(mutated(value[key]))}
        how = draw(st.integers(0, 5))
        if how == 0:
            changed.pop(key)
        elif how == 1:
            changed[draw(st.sampled_from(["instances", "inputs", "examples", "signature_name", "x", "b64", "more"]))] = draw(anything)
        return changed
    if isinstance(value, list) and value:
        place = draw(st.integers(0, len(value) - 1))
        middle = [draw(mutated(value[place]))] * draw(st.integers(0, 2))
        return [*value[:place], *middle, *value[place + 1 :]]
    return draw(anything)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """Return a path behind ``/v1/models/`` and a body for it: almost right, other JSON, or no JSON at all."""
    path = draw(st.sampled_from(sorted(BODIES)))
    good = draw(st.sampled_from(BODIES[path]))
    text = json.dumps(draw(mutated(good) | anything | st.just(good))).encode()
    how = draw(st.integers(0, 6))
    if how == 0:
        text = draw(st.binary(max_size=40))
    elif how == 1:
        text = draw(bytes_like(text))
    elif how == 2:
        text = draw(st.sampled_from([b"\xef\xbb\xbf", b" \n\t", b"[" * 5000, b'{"instances":' * 2000, b"\x00"])) + text
    return path, text


paths = st.builds(
    lambda parts, end: "/" + "/".join(parts) + end,
    st.lists(
        st.sampled_from(
            [
                "v1",
                "V1",
                "models",
                "linear",
                "versions",
                "labels",
                "stable",
                "metadata",
                "1",
                "9",
                str(2**63),
                "-1",
                "",
                ".",
                "..",
                "%2e%2e",
                "%",
                "%zz",
            ]
        )
        | st.text(string.printable.replace(" ", "")[:-5] + "é", min_size=1, max_size=6),
        max_size=7,
    ),
    st.sampled_from(["", ":predict", ":classify", ":regress", ":PREDICT", ":", "/", "?a=b", "#a", "%00", ":predict?x", "//"]),
)
near_paths = st.builds(
    lambda version, end: f"/v1/models/{version}{end}",
    st.sampled_from(["linear", "linear/versions/1", "linear/labels/stable", "many", "lin%65ar", "linear/labels/", "linear/versions/", "nobody"]),
    st.sampled_from(["", "", ":predict", ":predict", ":classify", "/metadata", "/metadata", "?a=b", "/", ":Predict"]),
)
methods = st.sampled_from(["GET", "GET", "GET", "POST", "POST", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
odd_methods = st.sampled_from(["get", "PROPFIND", "CONNECT", "TRACE"]) | st.text(string.ascii_letters + "-", min_size=1, max_size=8)
headers = st.lists(
    st.tuples(
        st.sampled_from(
            ["Content-Type", "Accept", "Accept-Encoding", "Content-Encoding", "Expect", "X-Forwarded-For", "Range", "Origin", "Cookie", "Upgrade"]
        ),
        st.sampled_from(
            ["application/json", "text/plain; charset=utf-16", "gzip", "100-continue", "*/*", "bytes=0-1", "a" * 4000, "websocket", "h2c", ""]
        )
        | st.text(string.ascii_letters + string.punctuation, max_size=8),
    ),
    max_size=4,
)


def rarely(rare: st.SearchStrategy[Any], often: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from([0, 0, 0, 1]).flatmap(lambda which: rare if which else often)


def body_of(asked: tuple[str, bytes]) -> bytes:
    return asked[1]


def send(served: Target, method: str, sent: bytes) -> tuple[int, str, bytes] | None:
    """Send the bytes of a request to the REST port and return status, content type and body of the answer; None if the server hung up."""
    host, port = served.rest_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), DEADLINE) as connection:
        try:
            connection.sendall(sent)
            received = b""
            while chunk := connection.recv(1 << 16):
                received += chunk
        except ConnectionError:
            received = b""
    while received.startswith(b"HTTP/1.1 100"):
        received = received.partition(b"\r\n\r\n")[2]
    if not received:
        return None
    answer = http.client.HTTPResponse(_Received(received), method=method)  # type: ignore[arg-type]
    answer.begin()
    return answer.status, answer.headers.get("Content-Type", ""), answer.read()


class _Received:
    """What `http.client` reads an answer from."""

    def __init__(self, received: bytes) -> None:
        self.received = received

    def makefile(self, *args: object) -> io.BytesIO:
        return io.BytesIO(self.received)


def has_a_reason(status: int, content_type: str, body: bytes, *, is_json: bool) -> None:
    """Fail if an answer is neither a good one nor a refusal that says why."""
    assert 200 <= status < 600
    if is_json:
        assert content_type == "application/json", (status, content_type, body)
    if content_type == "application/json" and body:
        parsed = json.loads(body)
        assert status == 200 or (list(parsed) == ["error"] and parsed["error"]), (status, body)
        assert status == 200 or not PYTHON_FAULT.search(parsed["error"]), body
    if status >= 500:
        assert content_type == "application/json" and body, (status, content_type, body)
        assert status != 500, body


def rest_bodies(served: Target, num_examples: int) -> None:
    """Ask with bodies of every kind for models that are there."""

    @checked(num_examples)
    @given(bodies())
    def check(asked: tuple[str, bytes]) -> None:
        path, body = asked
        answer = served.rest.post(f"/v1/models/{path}", content=body, timeout=DEADLINE)
        has_a_reason(answer.status_code, answer.headers["content-type"], answer.content, is_json=True)
        goes_on(served)

    check()


def rest_requests(served: Target, num_examples: int) -> None:
    """Ask with methods, paths and headers of every kind."""

    @checked(num_examples)
    @given(
        rarely(odd_methods, methods),
        rarely(paths, near_paths),
        rarely(headers, st.just([])),
        st.just(json.dumps({"instances": [ROW]}).encode()) | bodies().map(body_of),
    )
    def check(method: str, path: str, fields: list[tuple[str, str]], body: bytes) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}"]
        sent = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in fields)]).encode() + b"\r\n\r\n" + body
        answer = send(served, method, sent)
        assert answer is not None or not path.isascii(), "the server hung up"
        if answer is not None:
            has_a_reason(*answer, is_json=False)
        goes_on(served)

    check()


def rest_bytes(served: Target, num_examples: int) -> None:
    """Send what is hardly HTTP."""
    good = f"POST /v1/models/linear:predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 36\r\n\r\n{json.dumps({'instances': [ROW]})}"

    @checked(num_examples)
    @given(st.binary(max_size=200).map(lambda sent: sent + b"\r\n\r\n") | bytes_like(good.encode()))
    def check(sent: bytes) -> None:
        host, port = served.rest_url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), DEADLINE) as connection:
            try:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                received = b""
                while chunk := connection.recv(1 << 16):
                    received += chunk
            except ConnectionError:
                received = b""
        assert not received.startswith(b"HTTP/1.1 5"), received
        goes_on(served)

    check()


# ------------------------------------------------------------------------------------------------------------------------------ gRPC


@st.composite
def bytes_like(draw: st.DrawFn, good: bytes) -> bytes:
    """Return bytes with a few of them changed, left out, doubled, or cut off."""
    changed = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        how = draw(st.integers(0, 4))
        if how == 0:
            changed[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif how == 1:
            del changed[place : place + draw(st.integers(1, 8))]
        elif how == 2:
            changed[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif how == 3:
            changed[place:place] = changed[place : place + draw(st.integers(1, 16))]
        else:
            del changed[place:]
    return bytes(changed)


@st.composite
def messages(draw: st.DrawFn, kind: Any, depth: int = 6) -> Any:
    """Return a message of a class with values of every kind in some of its fields."""
    message = kind()
    fill(draw, message, depth)
    return message


def fill(draw: st.DrawFn, message: Any, depth: int) -> None:
    fields = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    for field in draw(st.lists(st.sampled_from(fields), max_size=5, unique_by=lambda field: field.name)):
        nested = field.message_type is not None
        if nested and depth == 0:
            continue
        value = getattr(message, field.name)
        if nested and field.message_type.GetOptions().map_entry:
            key, of = field.message_type.fields
            for _ in range(draw(st.integers(1, 2))):
                name = draw(scalars(key))
                if of.message_type is None:
                    value[name] = draw(scalars(of))
                else:
                    fill(draw, value[name], depth - 1)
        elif nested and field.is_repeated:
            for _ in range(draw(st.integers(0, 2))):
                fill(draw, value.add(), depth - 1)
        elif nested:
            value.SetInParent()
            fill(draw, value, depth - 1)
        elif field.is_repeated:
            value.extend(draw(st.lists(scalars(field), max_size=4)))
        else:
            setattr(message, field.name, draw(scalars(field)))


def scalars(field: Any) -> st.SearchStrategy[Any]:
    """Return values for a field that is no message."""
    if field.enum_type is not None:
        return st.sampled_from([*field.enum_type.values_by_number, 999])
    kind = field.cpp_type
    if kind in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return st.sampled_from(REAL)
    if kind == field.CPPTYPE_BOOL:
        return st.booleans()
    if kind == field.CPPTYPE_STRING:
        if field.type == field.TYPE_BYTES:
            return st.binary(max_size=12) | st.sampled_from([example(x=0.5).SerializeToString(), b"\xff" * 16])
        return st.sampled_from(NAMES)
    if field.full_name == "tensorflow.TensorShapeProto.Dim.size":
        return st.sampled_from(SIZES)
    low, high = {
        field.CPPTYPE_INT32: (-(2**31), 2**31),
        field.CPPTYPE_UINT32: (0, 2**32),
        field.CPPTYPE_INT64: (-(2**63), 2**63),
        field.CPPTYPE_UINT64: (0, 2**64),
    }[kind]
    return st.sampled_from([number for number in WHOLE if low <= number < high])


def good_requests() -> list[tuple[str, Any]]:
    """Return requests of every method that are answered."""
    examples = [example(x=0.5, word=b"good"), example(x=0.25)]
    multi = protos.inference_pb2.MultiInferenceRequest()
    spec(multi.tasks.add(method_name="tensorflow/serving/classify"), "examples1")
    spec(multi.tasks.add(method_name="tensorflow/serving/regress"), "examples1", "regress")
    text = tensor([b"a", b"\xff"], [2], protos.types_pb2.DT_STRING, "string_val")
    return [
        (f"{PREDICTION}Predict", row(label="stable")),
        (f"{PREDICTION}Predict", predict("two", {"left": tensor([1.0, 2.0], [1, 2]), "right": tensor([3.0], [1, 1])}, version=1)),
        (f"{PREDICTION}Predict", predict("many", {"text": text}, "text")),
        (f"{PREDICTION}Classify", asking(spec(protos.classification_pb2.ClassificationRequest(), "examples1"), *examples)),
        (f"{PREDICTION}Regress", asking(spec(protos.regression_pb2.RegressionRequest(), "examples1", "regress"), *examples, context=examples[0])),
        (f"{PREDICTION}MultiInference", asking(multi, *examples)),
        (f"{PREDICTION}GetModelMetadata", spec(protos.get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"]), "linear")),
        (f"{MODELS}GetModelStatus", spec(protos.get_model_status_pb2.GetModelStatusRequest(), "linear", version=1)),
    ]


@st.composite
def changed_messages(draw: st.DrawFn) -> tuple[str, bytes]:
    """Return a good request of any method into which another message of its kind is merged."""
    method, good = draw(st.sampled_from(good_requests()))
    request = type(good)()
    request.CopyFrom(good)
    request.MergeFrom(draw(messages(type(good))))
    return method, request.SerializeToString()


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, bytes]:
    """Return a Predict request for a signature that takes every shape, with one tensor in which anything may be."""
    signature, dtype = draw(st.sampled_from([("", 1), ("echo_string", 7), ("echo_int8", 6), ("echo_uint64", 23), ("echo_half", 19), ("scalar", 1)]))
    given_ = draw(messages(protos.tensor_pb2.TensorProto, 2))
    given_.dtype = dtype if draw(st.integers(0, 3)) else draw(st.sampled_from([*protos.types_pb2.DataType.values(), 999]))
    if draw(st.booleans()):
        given_.ClearField("tensor_content")
        given_.tensor_shape.Clear()
        for size in draw(st.lists(st.sampled_from(SIZES), max_size=4)):
            given_.tensor_shape.dim.add(size=size)
    return f"{PREDICTION}Predict", predict("many", {"x": given_}, signature).SerializeToString()


def ask(served: Target, method: str, sent: bytes) -> None:
    """Send bytes as the request of a method; fail if it is refused without a reason, too late, or by a fault of the server."""
    call = served.channel.unary_unary(method, request_serializer=None, response_deserializer=None)
    if method == RELOAD:
        sent = harmless(served, sent)
    try:
        call(sent, timeout=DEADLINE)
    except grpc.RpcError as error:
        code, details = error.code(), error.details()
        assert details, (method, code)
        assert code not in (Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE, Code.UNKNOWN), (method, code, details)
        assert code is not Code.INTERNAL or not parses(method, sent), (method, details)
        assert not PYTHON_FAULT.search(details) or not parses(method, sent), (method, code, details)


def parses(method: str, sent: bytes) -> bool:
    try:
        REQUESTS[method].FromString(sent)
    except Exception:  # whatever protobuf raises means no
        return False
    return True


def harmless(served: Target, sent: bytes) -> bytes:
    """Return a request to reload that, if it is accepted, still serves what is served; one that cannot be parsed stays as it is."""
    if not parses(RELOAD, sent):
        return sent
    request = protos.model_management_pb2.ReloadConfigRequest.FromString(sent)
    if not request.config.HasField("model_config_list"):
        return sent
    configs = [config for config in request.config.model_config_list.config if config.name not in served.configs]
    del request.config.model_config_list.config[:]
    request.config.model_config_list.config.extend([*served.configs.values(), *configs])
    return bytes(request.SerializeToString())


def grpc_messages(served: Target, num_examples: int) -> None:
    """Ask every method with messages of its kind in which anything may be."""

    def check_of(method: str) -> Callable[[], None]:
        @checked(num_examples)
        @given(messages(REQUESTS[method]))
        def check(message: Any) -> None:
            ask(served, method, message.SerializeToString())
            goes_on(served)

        return check

    for method in REQUESTS:
        check_of(method)()
    served.reload()


def grpc_changes(served: Target, num_examples: int) -> None:
    """Ask with good requests in which something was changed, and with tensors of every kind."""

    @checked(num_examples)
    @given(changed_messages() | tensors())
    def check(asked: tuple[str, bytes]) -> None:
        ask(served, *asked)
        goes_on(served)

    check()


def grpc_bytes(served: Target, num_examples: int) -> None:
    """Send what is hardly a message, and good ones in which bytes were changed."""
    good = [(method, request.SerializeToString()) for method, request in good_requests()]
    random = st.tuples(st.sampled_from(sorted(REQUESTS)), st.binary(max_size=60))
    changed = st.sampled_from(good).flatmap(lambda entry: st.tuples(st.just(entry[0]), bytes_like(entry[1])))

    @checked(num_examples)
    @given(random | changed)
    def check(asked: tuple[str, bytes]) -> None:
        ask(served, *asked)
        goes_on(served)

    check()
    served.reload()


CHECKS = [rest_bodies, rest_requests, rest_bytes, grpc_messages, grpc_changes, grpc_bytes]
every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
