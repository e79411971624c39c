"""The words in which TensorFlow Serving refuses a request, which clients look for: every one of its JSON and HTTP handlers, and its gRPC services'.

Each is in its source: util/json_tensor.cc, model_servers/http_rest_api_handler.cc, http_rest_api_util.cc and http_server.cc,
servables/tensorflow/*.cc, model_servers/server_core.cc and model_service_impl.cc.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from airflow_mlops.serving import protos
from tests.serving_models import ROW

from .serving_target import SECONDS, Code, Target, asking, example, predict, refusal, spec, tensor

LEFT = {"left": [1, 2], "right": [3]}
AT_0 = "Failed to process element: 0"
LISTED = "of 'instances' list. Error: INVALID_ARGUMENT: "
TYPES = protos.types_pb2


def many(signature: str, **body: Any) -> tuple[str, Any]:
    return "many:predict", {"signature_name": signature, **body}


class RestWords:
    """Bodies that are refused, with what the answer says."""

    @pytest.mark.parametrize(
        ("path", "body", "words"),
        [
            # ParseJson
            ("linear:predict", b"", "JSON Parse error: The document is empty"),
            ("linear:predict", b" ", "JSON Parse error: The document is empty"),
            ("linear:predict", b"instances = [1, 2]", "JSON Parse error: Invalid value."),
            ("linear:predict", b'{"instances": [tru]}', "JSON Parse error: Invalid value."),
            ("linear:predict", b'{"instances": [1,]}', "JSON Parse error: Invalid value."),
            ("linear:predict", b"{instances: [1]}", "JSON Parse error: Missing a name for object member."),
            ("linear:predict", b'{"instances" [1]}', "JSON Parse error: Missing a colon after a name of object member."),
            ("linear:predict", b'{"instances": [1] "x": 2}', "JSON Parse error: Missing a comma or } after an object member."),
            ("linear:predict", b'{"instances": [1 2]}', "JSON Parse error: Missing a comma or ] after an array element."),
            ("linear:predict", b'{"instances": ["a]}', "JSON Parse error: Missing a closing quotation mark in string."),
            ("linear:predict", b'{"instances": ["\\x"]}', "JSON Parse error: Invalid escape character in string."),
            ("linear:predict", b'{"instances": ["\\u00"]}', "JSON Parse error: Incorrect hex digit after \\u escape in string."),
            ("linear:predict", b'{"instances": [1e999]}', "JSON Parse error: Number too big to be stored in double."),
            ("linear:predict", b"[1]", "JSON Value: [1] Is not object"),
            ("linear:predict", b'"a"', 'JSON Value: "a" Is not object'),
            ("linear:predict", b"null", "JSON Value: null Is not object"),
            ("linear:predict", b"\xff\xfe", "JSON Parse error"),
            # FillSignature, FillPredictRequestFromJson
            ("linear:predict", {"signature_name": 100}, "not formatted correctly. 'signature_name' key must be a string value."),
            ("linear:predict", {"signature_name": ["a"], "instances": [1]}, "'signature_name' key must be a string value."),
            ("linear:predict", {"signature_name": None, "instances": [ROW]}, "'signature_name' key must be a string value."),
            ("linear:predict", {"signature_name": "x", "instances": [1]}, 'Serving signature name: "x" not found in signature def'),
            ("linear:predict", {"inputs": [1], "instances": [1]}, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys"),
            ("linear:predict", {"instances": "a"}, "Expecting 'instances' to be an list/array"),
            ("linear:predict", {"instances": None}, "Expecting 'instances' to be an list/array"),
            ("linear:predict", {"instances": {"x": ROW}}, "Expecting 'instances' to be an list/array"),
            ("linear:predict", {"instances": []}, "No values in 'instances' array"),
            ("linear:predict", {"instance": [1]}, "Missing 'inputs' or 'instances' key"),
            ("linear:predict", {}, "Missing 'inputs' or 'instances' key"),
            # FillTensorMapFromInstancesList
            ("two:predict", {"instances": [1, 2]}, "instances is a plain list, but expecting list of objects as multiple input tensors required"),
            ("two:predict", {"instances": [LEFT, [1, 20, 30], LEFT]}, "Expecting object but got list at item 1 of input list"),
            ("linear:predict", {"instances": [ROW, {"x": ROW}]}, "Expecting value/list but got object at item 1 of input list"),
            ("linear:predict", {"instances": [{"x": ROW}, ROW]}, "Expecting object but got list at item 1 of input list"),
            ("two:predict", {"instances": [{**LEFT, "more": 1}]}, f"{AT_0} key: more {LISTED}JSON object: does not have named input: more"),
            ("linear:predict", {"instances": [{"y": ROW}]}, f"{AT_0} key: y {LISTED}JSON object: does not have named input: y"),
            ("linear:predict", {"instances": [{"x": ROW, "y": 1}]}, f"{AT_0} key: y {LISTED}JSON object: does not have named input: y"),
            ("two:predict", {"instances": [LEFT, {"left": [1, 2]}]}, "Failed to process element: 1 of 'instances' list. JSON object: {"),
            ("two:predict", {"instances": [{"left": [1, 2]}]}, "keys must be equal to: left,right"),
            ("linear:predict", {"instances": [{}]}, "keys must be equal to: x"),
            # AddInstanceItem, FillTensorProto
            ("linear:predict", {"instances": [[1, 2], [3, 4], [5, 6, 7]]}, f"element: 2 {LISTED}Expecting tensor size: 2 but got: 3"),
            ("linear:predict", {"instances": [[1, 2], [3, 4], [[5, 6]]]}, f"element: 2 {LISTED}Expecting shape [2] but got: [1,2]"),
            ("linear:predict", {"instances": [1, [1]]}, f"element: 1 {LISTED}Expecting shape [] but got: [1]"),
            ("linear:predict", {"instances": [[], [1]]}, "Expecting tensor size: 0 but got: 1"),
            ("two:predict", {"instances": [LEFT, {**LEFT, "right": [1, 2]}]}, f"1 key: right {LISTED}Expecting tensor size: 1 but got: 2"),
            ("two:predict", {"instances": [LEFT, {**LEFT, "left": [[1, 2]]}]}, f"1 key: left {LISTED}Expecting shape [2] but got: [1,2]"),
            ("linear:predict", {"instances": [[[1, 2], 3]]}, "JSON Value: 3 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
            ("linear:predict", {"instances": [[1, [2]]]}, "Encountered list at unexpected level: 1 expected < 1"),
            ("linear:predict", {"instances": [[[1, 2], [3]]]}, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
            ("linear:predict", {"inputs": [[1, 2], [3]]}, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
            # AddValueToTensor
            ("linear:predict", {"instances": ["x", "y"]}, 'JSON Value: "x" Type: String is not of expected type: float'),
            ("linear:predict", {"instances": [[1, 2], ["a", "b"]]}, f'element: 1 {LISTED}JSON Value: "a" Type: String is not of expected type'),
            ("linear:predict", {"instances": [[None]]}, "JSON Value: null Type: Null is not of expected type: float"),
            ("linear:predict", {"instances": [[True]]}, "JSON Value: true Type: True is not of expected type: float"),
            ("linear:predict", {"instances": [[False]]}, "JSON Value: false Type: False is not of expected type: float"),
            ("linear:predict", {"instances": [[{"b64": "AA=="}]]}, "Type: Object is not of expected type: float"),
            (*many("echo_float64", instances=["1"]), 'JSON Value: "1" Type: String is not of expected type: double'),
            (*many("echo_int32", instances=[1.5]), "JSON Value: 1.5 Type: Number is not of expected type: int32"),
            (*many("echo_int32", instances=[2**31]), "JSON Value: 2147483648 Type: Number is not of expected type: int32"),
            (*many("echo_int8", inputs=[2**31]), "JSON Value: 2147483648 Type: Number is not of expected type: int8"),
            (*many("echo_int64", inputs=[2**63]), "JSON Value: 9223372036854775808 Type: Number is not of expected type: int64"),
            (*many("echo_uint32", inputs=-1), "JSON Value: -1 Type: Number is not of expected type: uint32"),
            (*many("echo_uint64", inputs=[2**64]), "Type: Number is not of expected type: uint64"),
            (*many("echo_bool", instances=[0]), "JSON Value: 0 Type: Number is not of expected type: bool"),
            (*many("echo_string", instances=[1]), "JSON Value: 1 Type: Number is not of expected type: string"),
            (*many("echo_half", instances=[1]), f"{AT_0} of 'instances' list. Error: UNIMPLEMENTED: Conversion of JSON Value: 1 to type: half"),
            (*many("echo_uint16", instances=[1]), "Conversion of JSON Value: 1 to type: uint16"),
            # JsonDecodeBase64Object
            (*many("echo_string", instances=[[{"b64": 5}]]), "not formatted correctly for base64 data"),
            (*many("echo_string", inputs=[{"b64": "YQ==", "more": 1}]), "not formatted correctly for base64 data"),
            (*many("echo_string", instances=[{"b64": "?"}]), "Unable to base64 decode"),
            (*many("echo_string", instances=[{"b64": 5}]), "does not have named input: b64"),
            (*many("echo_string", instances=[[{}]]), "not formatted correctly for base64 data"),
            # FillTensorMapFromInputsMap
            ("two:predict", {"inputs": 1}, "inputs is a plain value/list, but expecting an object as multiple input tensors required"),
            ("two:predict", {"inputs": {"left": [[1, 2]]}}, "Missing named input: right in 'inputs' object."),
            ("linear:predict", {"inputs": {"y": [ROW]}}, "Missing named input: x in 'inputs' object."),
            # MakeRowFormatJsonFromTensors, AddSingleValueAndAdvance
            (*many("scalar", instances=[1]), "Tensor name: loss has no shape information"),
            (*many("unequal", instances=[1, 2]), "has inconsistent batch size: "),
            # the model's own words
            (*many("refuse", instances=[-1]), "what is given must not be negative"),
        ],
    )
    def test_a_body_that_does_not_fit_is_refused_in_these_words(self, served: Target, path: str, body: Any, words: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = served.rest.post(f"/v1/models/{path}", content=content)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json"), answer.text
        assert list(answer.json()) == ["error"] and words in answer.json()["error"], answer.text

    @pytest.mark.parametrize("method", ["classify", "regress"])
    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ({"signature_name": ["a"], "examples": [{"x": 1.0}]}, "'signature_name' key must be a string"),
            ({}, "When method is classify, key 'examples' is expected and was not found"),
            ({"examples": {"x": 1.0}}, "Expecting 'examples' value to be an list/array"),
            ({"examples": []}, "'examples' value is an empty array"),
            ({"context": [{"x": 1.0}]}, "Example must be JSON object but got JSON Array"),
            ({"context": 1, "examples": [{}]}, "Example must be JSON object but got JSON Number"),
            ({"examples": [[{"x": 1.0}]]}, "Example must be JSON object but got JSON Array"),
            ({"examples": [1.0]}, "Example must be JSON object but got JSON Number"),
            ({"examples": ["a"]}, "Example must be JSON object but got JSON String"),
            ({"examples": [None]}, "Example must be JSON object but got JSON Null"),
            ({"examples": [{"x": [10, None]}]}, "Feature: x has element with unexpected JSON type: Null"),
            ({"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
            ({"examples": [{"x": [10, {"test": 10}]}]}, "Feature: x has element with unexpected JSON type: Object"),
            ({"examples": [{"x": [[10], 20]}]}, "Feature: x has element with unexpected JSON type: Array"),
            ({"examples": [{"x": [10, 10.0]}]}, "Unexpected element type in feature: x expecting type: int64"),
            ({"examples": [{"x": [1.0, True]}]}, "Unexpected element type in feature: x expecting type: float"),
            ({"examples": [{"x": ["a", 1]}]}, "Unexpected element type in feature: x expecting type: bytes"),
            ({"examples": [{"x": [20, 18446744073709551603]}]}, "Feature: x has uint64_t element. Only int64_t is supported."),
            ({"examples": [{"x": {"b64": "?"}}]}, "Unable to base64 decode"),
            ({"examples": [{"x": {"a": 1}}]}, "Feature: x has element with unexpected JSON type: Object"),
            ({"signature_name": "x", "examples": [{"x": 1.0}]}, "No signature was found with the name: x"),
        ],
    )
    def test_invalid_examples_are_refused_in_these_words(self, served: Target, method: str, body: Any, words: str) -> None:
        answer = served.post(f"examples1:{method}", body)
        assert (answer.status_code, words in answer.json()["error"]) == (400, True), answer.text

    def test_a_type_that_json_cannot_carry_is_unimplemented_in_columns(self, served: Target) -> None:
        for dtype in ("half", "bfloat16", "complex64", "uint16"):
            answer = served.post(*many(f"echo_{dtype}", inputs=[1]))
            assert (answer.status_code, answer.json()["error"]) == (501, f"Conversion of JSON Value: 1 to type: {dtype}")

    def test_a_bool_is_an_integer_feature(self, served: Target) -> None:
        answer = served.post("examples1:classify", {"examples": [{"x": 0.25, "other": [True, 2]}]})
        assert answer.json() == {"results": [[["no", 0.75], ["yes", 0.25]]]}

    def test_an_example_may_have_a_feature_named_like_base64(self, served: Target) -> None:
        assert served.post("examples1:classify", {"examples": [{"x": 0.25, "b64": "?"}]}).status_code == 200

    @pytest.mark.parametrize("text", ["YQ==", "YQ", " Y Q\n==", "Y\tQ"])
    def test_base64_may_lack_its_padding_and_hold_white_space(self, served: Target, text: str) -> None:
        assert served.post(*many("echo_string", instances=[{"b64": text}])).json() == {"predictions": ["a"]}

    def test_a_mark_of_byte_order_is_skipped(self, served: Target) -> None:
        answer = served.rest.post("/v1/models/many:predict", content=b'\xef\xbb\xbf{"instances": [1]}')
        assert answer.json() == {"predictions": [1.0]}

    def test_a_number_beyond_64_bits_is_a_float(self, served: Target) -> None:
        assert served.post(*many("echo_float64", instances=[2**70, -(2**64)])).json() == {"predictions": [2.0**70, -(2.0**64)]}


class HttpForms:
    """What of HTTP is taken: methods, queries, bodies in pieces, packed bodies, connections that stay."""

    @pytest.mark.parametrize(
        ("method", "path", "status", "words"),
        [
            ("GET", "linear?x=1", 404, "Could not find any versions of model linear?x=1"),  # it is taken for a part of the name
            ("GET", "linear/metadata?x=1", 400, "Malformed request: GET /v1/models/linear/metadata?x=1"),
            ("POST", "linear:predict?x=1", 400, "Malformed request: POST /v1/models/linear:predict?x=1"),
        ],
    )
    def test_a_query_is_no_part_of_the_interface(self, served: Target, method: str, path: str, status: int, words: str) -> None:
        answer = served.rest.request(method, f"/v1/models/{path}")
        assert (answer.status_code, answer.json()["error"]) == (status, words)

    @pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE"])
    def test_other_methods_are_malformed_requests(self, served: Target, method: str) -> None:
        answer = served.rest.request(method, "/v1/models/linear")
        assert answer.status_code == 400
        if method != "HEAD":
            assert answer.json()["error"] == f"Malformed request: {method} /v1/models/linear"

    def test_a_preflight_is_answered_if_it_has_an_origin(self, served: Target) -> None:
        for path in ("/v1/models/linear:predict", "/v1/models/linear"):
            answer = served.rest.options(path, headers={"Origin": "https://example.com"})
            assert (answer.status_code, answer.content) == (200, b"")
            assert served.rest.options(path).status_code == 400
            assert served.rest.options(path, headers={"Origin": "example"}).status_code == 400

    def test_a_body_in_pieces_is_a_body(self, served: Target) -> None:
        answer = served.rest.post("/v1/models/linear/versions/1:predict", content=iter([b'{"inst', b'ances": [[1, 2,', b" 3, 4]]}"]))
        assert answer.json() == {"predictions": [[4.0, 5.0]]}

    def test_a_connection_serves_many_requests(self, served: Target) -> None:
        for _ in range(3):
            assert served.post("linear:predict", {"instances": []}).status_code == 400
            assert served.post("linear/versions/1:predict", {"instances": [ROW]}).json() == {"predictions": [[4.0, 5.0]]}


class GrpcWords:
    """Requests by gRPC that are refused, with what the status says."""

    @pytest.mark.parametrize(
        ("inputs", "words"),
        [
            ({}, "input size does not match signature: 0!=2 len({}) != len({left,right}). Sent extra: {}. Missing but required: {left,right}."),
            (
                {"left": tensor([1.0], [1]), "up": tensor([1.0], [1])},
                "Signature input alias: right(feed name: serving_default_right:0) not found in request and no default value provided. "
                "Inputs expected to be in the request {left,up}, or default input alias set: ",
            ),
            ({"left": tensor([1.0], [2, 2], TYPES.DT_INVALID), "right": tensor([1.0], [1, 1])}, "tensor parsing error: left"),
            ({"left": tensor([1.0] * 9, [1, 2]), "right": tensor([1.0], [1, 1])}, "tensor parsing error: left"),
            (
                {"left": tensor([1.0, 2.0], [1, 2]), "right": tensor([1.0], [1, 1], TYPES.DT_DOUBLE, "double_val")},
                "Expects arg[1] to be float but double",
            ),
        ],
    )
    def test_wrong_inputs_are_refused_in_these_words(self, served: Target, inputs: dict[str, Any], words: str) -> None:
        code, details = refusal(served.prediction.Predict, predict("two", inputs))
        assert (code, words in details) == (Code.INVALID_ARGUMENT, True), details

    @pytest.mark.parametrize(
        ("method", "signature", "words"),
        [
            ("Classify", "other_input", "No classification inputs found in SignatureDef: "),
            ("Classify", "other_output", 'Expected classification signature outputs to contain at least one of "classes" or "scores"'),
            ("Classify", "three_outputs", "Expected one or two output Tensors, found 3"),
            ("Classify", "flat_scores", "Expected Tensor shape: [batch_size num_classes] but got [1]"),
            ("Classify", "double_scores", "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
            ("Classify", "number_classes", "Expected classes Tensor of DT_STRING. Got: DT_INT64"),
            ("Classify", "one_class_too_few", "Tensors class and score should match in dim_size(1). Got 1 vs. 2"),
            ("Classify", "one_row_too_few", "Expected scores output batch size of 1. Got: 0"),
            ("Regress", "", "Expected one output Tensor."),
            ("Regress", "scores", "No regression outputs found in SignatureDef: "),
            ("Regress", "wide_outputs", "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [1,2]"),
            ("Regress", "double_outputs", "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE"),
            ("Regress", "one_output_too_few", "Input batch size did not match output batch size: 1 vs. 0"),
        ],
    )
    def test_a_signature_that_does_not_fit_is_refused_in_these_words(self, served: Target, method: str, signature: str, words: str) -> None:
        kind = protos.classification_pb2.ClassificationRequest if method == "Classify" else protos.regression_pb2.RegressionRequest
        code, details = refusal(getattr(served.prediction, method), asking(spec(kind(), "examples1", signature), example(x=0.5)))
        assert (code, words in details) == (Code.INVALID_ARGUMENT, True), details

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda request: request.tasks.add(method_name="tensorflow/serving/classify"), "Found ModelSpec with an empty model name."),
            (lambda request: setattr(request.tasks[0].model_spec, "signature_name", "x"), "Requested signature not found in model graph: x"),
            (lambda request: request.ClearField("tasks"), "Model"),
            (lambda request: request.ClearField("input"), "Input is empty."),
        ],
    )
    def test_wrong_inferences_are_refused_in_these_words(self, served: Target, change: Callable[[Any], Any], words: str) -> None:
        request = asking(protos.inference_pb2.MultiInferenceRequest(), example(x=0.5))
        request.tasks.add(method_name="tensorflow/serving/classify").model_spec.name = "examples1"
        change(request)
        code, details = refusal(served.prediction.MultiInference, request)
        assert (code, words in details) == (Code.INVALID_ARGUMENT, True), details

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda configs: configs.append(configs[0]), "Illegal to list model linear multiple times in config list"),
            (lambda configs: setattr(configs[0], "base_path", "x"), "Expected model linear to have an absolute path or URI; got base_path()=x"),
            (
                lambda configs: setattr(configs[0], "model_platform", "other"),
                "Illegal to change a model's platform. For model linear platform was tensorflow and new platform requested is other",
            ),
            (lambda configs: configs[0].ClearField("model_platform"), "Illegal setting neither ModelServerConfig::model_type (deprecated) nor"),
            (lambda configs: setattr(configs[0], "model_type", 1), "Illegal setting both ModelServerConfig::model_type (deprecated) and"),
        ],
    )
    def test_wrong_configurations_are_refused_in_these_words(self, served: Target, change: Callable[[Any], Any], words: str) -> None:
        configs = [type(config).FromString(config.SerializeToString()) for config in served.configs.values()]
        change(configs)
        code, details = refusal(served.models.HandleReloadConfigRequest, served.request(*configs))
        assert (code, words in details) == (Code.INVALID_ARGUMENT, True), details
        served.reload()

    def test_a_configuration_that_is_no_list_is_refused_in_these_words(self, served: Target) -> None:
        code, details = refusal(served.models.HandleReloadConfigRequest, protos.model_management_pb2.ReloadConfigRequest())
        words = "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
        assert (code, details) == (Code.INVALID_ARGUMENT, words)

    def test_strings_may_be_packed_as_tensorflow_packs_them(self, served: Target) -> None:
        packed = TensorProto(dtype=TYPES.DT_STRING, tensor_content=b"\x01\x00\x02abb")
        packed.tensor_shape.dim.add(size=3)
        answer = served.prediction.Predict(predict("many", {"x": packed}, "echo_string"), timeout=SECONDS)
        assert list(answer.outputs["y"].string_val) == [b"a", b"", b"bb"]


TensorProto: Any = protos.tensor_pb2.TensorProto
