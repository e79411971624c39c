"""What any server behind `ServingClient` must answer: the TensorFlow Serving contract, run against the embedded server or the original.

A subclass in a test module needs the fixtures `server` (`grpc_address`, `rest_url`) and `serving`, which makes it serve model ``linear``
(versions 1 and 2, labels stable=1 and canary=2; one output of 2 numbers for 4) and model ``two`` (inputs left[2] and right[1], two outputs).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest

from airflow_mlops.serving import protos

ROW = [1.0, 2.0, 3.0, 4.0]
NOT_FOUND, INVALID, PRECONDITION = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
def rest(server: Any, serving: None) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.rest_url, trust_env=False, timeout=20) as client:
        yield client


@pytest.fixture
def channel(server: Any, serving: None) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield channel


def predict_request(values: list[float], shape: list[int], *, input_name: str | None = "x", **spec: Any) -> Any:
    """Return a PredictRequest of float32 `values` for model ``linear``."""
    request = protos.predict_pb2.PredictRequest()
    request.model_spec.name = spec.get("name", "linear")
    request.model_spec.signature_name = spec.get("signature", "")
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    if input_name:
        tensor = request.inputs[input_name]
        tensor.dtype = spec.get("dtype", protos.types_pb2.DT_FLOAT)
        for size in shape:
            tensor.tensor_shape.dim.add(size=size)
        (tensor.float_val if tensor.dtype == protos.types_pb2.DT_FLOAT else tensor.double_val).extend(values)
    return request


def predict(channel: grpc.Channel, request: Any) -> Any:
    return protos.prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=20)


class RestProtocol:
    """Requests and answers in JSON."""

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("/v1/models/linear:predict", [5.0, 6.0]),  # no version means the latest
            ("/v1/models/linear/versions/1:predict", [4.0, 5.0]),
            ("/v1/models/linear/labels/stable:predict", [4.0, 5.0]),
            ("/v1/models/linear/labels/canary:predict", [5.0, 6.0]),
            ("/V1/Models/linear/Versions/2:predict", [5.0, 6.0]),
            ("/v1/models/lin%65ar/versions/1:predict", [4.0, 5.0]),
        ],
    )
    def test_rows_are_answered_by_the_version_asked_for(self, rest: httpx.Client, path: str, expected: list[float]) -> None:
        answer = rest.post(path, json={"instances": [ROW]})
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("application/json")
        assert answer.json() == {"predictions": [expected]}

    def test_columns_are_answered_in_columns(self, rest: httpx.Client) -> None:
        assert rest.post("/v1/models/linear/versions/1:predict", json={"inputs": [ROW, ROW]}).json() == {"outputs": [[4.0, 5.0], [4.0, 5.0]]}

    def test_several_inputs_and_outputs_are_objects(self, rest: httpx.Client) -> None:
        answer = rest.post("/v1/models/two:predict", json={"instances": [{"left": [1, 2], "right": [3]}]})
        assert answer.json() == {"predictions": [{"both": [1.0, 2.0, 3.0], "right": [3.0]}]}

    @pytest.mark.parametrize(
        ("method", "path", "body", "status", "words"),
        [
            ("POST", "/v1/models/nobody:predict", {"instances": [ROW]}, 404, "Servable not found for request: Latest(nobody)"),
            ("POST", "/v1/models/linear/versions/9:predict", {"instances": [ROW]}, 404, "Servable not found for request: Specific(linear, 9)"),
            ("POST", "/v1/models/linear/labels/x:predict", {"instances": [ROW]}, 400, "Unrecognized servable version label: x"),
            ("POST", f"/v1/models/linear/versions/{2**63}:predict", {"instances": [ROW]}, 400, "Failed to convert version"),
            ("POST", "/v1/models/linear:predict", {"instances": [ROW], "signature_name": "x"}, 400, '"x" not found in signature def'),
            ("POST", "/v1/models/linear:predict", {"instances": [ROW], "signature_name": 5}, 400, "must be a string"),
            ("POST", "/v1/models/linear:predict", {"instances": [ROW], "signature_name": None}, 400, "must be a string"),
            ("POST", "/v1/models/linear:predict", {"instances": [ROW], "inputs": [ROW]}, 400, "expecting only one of"),
            ("POST", "/v1/models/linear:predict", {"instances": [[1.0]]}, 400, "shape"),
            ("POST", "/v1/models/linear:predict", {"instances": [["a", "b", "c", "d"]]}, 400, "type"),
            ("POST", "/v1/models/linear:predict", {"instances": []}, 400, "No values"),
            ("POST", "/v1/models/linear:predict", None, 400, "JSON Parse error"),
            ("POST", "/v1/models/linear:PREDICT", {"instances": [ROW]}, 400, "Malformed request: POST"),
            ("POST", "/v1/models/linear", {}, 400, "Malformed request: POST"),
            ("GET", "/v1/models/linear:predict", None, 400, "Malformed request: GET"),
            ("DELETE", "/v1/models/linear", None, 400, "Malformed request: DELETE"),
            ("GET", "/v1/models/nobody", None, 404, "Could not find any versions of model nobody"),
            ("GET", "/v1/models/linear/versions/9", None, 404, "Could not find version 9 of model linear"),
            ("GET", "/v1/models", None, 400, "Missing model name"),
        ],
    )
    def test_a_wrong_request_gets_its_status_and_its_reason(
        self, rest: httpx.Client, method: str, path: str, body: Any, status: int, words: str
    ) -> None:
        answer = rest.request(method, path, content=b"" if body is None else json.dumps(body).encode())
        assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text

    def test_outside_of_v1_nothing_is_found(self, rest: httpx.Client) -> None:
        assert rest.get("/").status_code == 404

    def test_the_status_lists_all_versions_the_latest_first(self, rest: httpx.Client) -> None:
        ok = {"error_code": "OK", "error_message": ""}
        expected = [{"version": "2", "state": "AVAILABLE", "status": ok}, {"version": "1", "state": "AVAILABLE", "status": ok}]
        assert rest.get("/v1/models/linear").json() == {"model_version_status": expected}
        assert rest.get("/v1/models/linear/versions/1").json() == {"model_version_status": expected[1:]}

    def test_the_metadata_holds_the_signature(self, rest: httpx.Client) -> None:
        data = rest.get("/v1/models/linear/labels/stable/metadata").json()
        signature = data["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert data["model_spec"] == {"name": "linear", "signature_name": "", "version": "1"}
        assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
        assert [dim["size"] for dim in signature["inputs"]["x"]["tensor_shape"]["dim"]] == ["-1", "4"]

    def test_many_requests_at_once_are_all_answered(self, rest: httpx.Client) -> None:
        def ask(number: int) -> list[float]:
            answer = rest.post("/v1/models/linear/versions/1:predict", json={"instances": [[number, 0, 0, 0]]}).json()
            return [round(value, 4) for value in answer["predictions"][0]]

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(ask, range(200))) == [[0.0, round(number / 10, 4)] for number in range(200)]


class GrpcProtocol:
    """Requests and answers in protocol buffers."""

    @pytest.mark.parametrize(("spec", "version"), [({}, 2), ({"version": 1}, 1), ({"label": "stable"}, 1), ({"label": "canary"}, 2)])
    def test_the_answer_names_the_version_and_signature_that_gave_it(self, channel: grpc.Channel, spec: dict[str, Any], version: int) -> None:
        answer = predict(channel, predict_request(ROW, [1, 4], **spec))
        assert (answer.model_spec.name, answer.model_spec.version.value) == ("linear", version)
        assert answer.model_spec.signature_name == "serving_default"
        output = answer.outputs["output_0"]
        assert [dim.size for dim in output.tensor_shape.dim] == [1, 2]
        assert list(output.float_val) == [3.0 + version, 4.0 + version]

    @pytest.mark.parametrize(
        ("request_", "code", "words"),
        [
            (predict_request(ROW, [1, 4], name="nobody"), NOT_FOUND, "Servable not found for request: Latest(nobody)"),
            (predict_request(ROW, [1, 4], version=9), NOT_FOUND, "Servable not found for request: Specific(linear, 9)"),
            (predict_request(ROW, [1, 4], label="x"), INVALID, "Unrecognized servable version label: x"),
            (predict_request(ROW, [1, 4], signature="x"), PRECONDITION, 'Serving signature key "x" not found.'),
            (predict_request(ROW, [1, 4], name=""), INVALID, "ModelSpec has no name specified."),
            (protos.predict_pb2.PredictRequest(), INVALID, "Missing ModelSpec"),
            (predict_request(ROW, [1, 4], input_name=None), INVALID, "input size does not match signature"),
            (predict_request(ROW, [1, 4], input_name="other"), INVALID, "Missing but required: {x}"),
            (predict_request(ROW[:3], [1, 3]), INVALID, ""),
            (predict_request(ROW, [1, 4], dtype=protos.types_pb2.DT_DOUBLE), INVALID, ""),
            (predict_request(ROW, [7, 7]), INVALID, ""),
        ],
    )
    def test_a_wrong_request_gets_its_code_and_its_reason(self, channel: grpc.Channel, request_: Any, code: grpc.StatusCode, words: str) -> None:
        with pytest.raises(grpc.RpcError) as refused:
            predict(channel, request_)
        assert refused.value.code() is code, refused.value
        assert words in refused.value.details() and refused.value.details()

    def test_only_the_outputs_asked_for_are_given(self, channel: grpc.Channel) -> None:
        request = predict_request([1.0, 2.0], [1, 2], name="two", input_name="left")
        request.inputs["right"].CopyFrom(predict_request([3.0], [1, 1]).inputs["x"])
        request.output_filter.append("right")
        assert list(predict(channel, request).outputs) == ["right"]
        request.output_filter.append("right")
        with pytest.raises(grpc.RpcError, match="duplicate output tensor alias"):
            predict(channel, request)
        request.output_filter[:] = ["nothing"]
        with pytest.raises(grpc.RpcError, match="output tensor alias not found in signature"):
            predict(channel, request)

    def test_the_metadata_is_the_signature_map(self, channel: grpc.Channel) -> None:
        request = protos.get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = "two"
        stub = protos.prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = stub.GetModelMetadata(request, timeout=20)
        signatures = protos.get_model_metadata_pb2.SignatureDefMap()
        assert answer.metadata["signature_def"].Unpack(signatures)
        assert sorted(signatures.signature_def["serving_default"].inputs) == ["left", "right"]
        assert (answer.model_spec.version.value, answer.model_spec.signature_name) == (1, "")
        request.metadata_field[:] = ["other"]
        with pytest.raises(grpc.RpcError) as refused:
            stub.GetModelMetadata(request, timeout=20)
        assert refused.value.code() is INVALID

    def test_a_reload_without_a_model_list_is_refused(self, channel: grpc.Channel) -> None:
        stub = protos.model_service_pb2_grpc.ModelServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.HandleReloadConfigRequest(protos.model_management_pb2.ReloadConfigRequest(), timeout=20)
        assert refused.value.code() is INVALID

    def test_the_status_of_one_version_and_of_none(self, channel: grpc.Channel) -> None:
        stub = protos.model_service_pb2_grpc.ModelServiceStub(channel)
        request = protos.get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "linear"
        request.model_spec.version.value = 1
        assert [entry.version for entry in stub.GetModelStatus(request, timeout=20).model_version_status] == [1]
        request.model_spec.version.value = 9
        with pytest.raises(grpc.RpcError, match="Could not find version 9 of model linear"):
            stub.GetModelStatus(request, timeout=20)
