"""What any server behind `ServingClient` must answer: the TensorFlow Serving contract, run against the embedded server or the original.

These are the requests; what happens to models over time is in `serving_lifecycle`. The fixture `served` (see `conftest`) is the server under
test with the models of `tests.serving_models`. What the contract leaves open, nothing here asks for.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from airflow_mlops.serving import protos, tensors
from tests.serving_models import DTYPES, ROW

from .serving_target import FLOAT, SECONDS, Code, Target, asking, example, predict, refusal, row, spec, tensor

TYPES = protos.types_pb2
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
OK = {"error_code": "OK", "error_message": ""}
INSTANCES = {"instances": [ROW]}
EXAMPLES = {"examples": [{"x": 0.25}, {"x": 0.5}]}


class RestPaths:
    """Which paths and methods there are, and how everything else is refused."""

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("/v1/models/linear:predict", [5.0, 6.0]),  # no version means the latest
            ("/v1/models/linear/versions/1:predict", [4.0, 5.0]),
            ("/v1/models/linear/versions/0001:predict", [4.0, 5.0]),
            ("/v1/models/linear/labels/stable:predict", [4.0, 5.0]),
            ("/v1/models/linear/labels/canary:predict", [5.0, 6.0]),
            ("/V1/Models/linear/Versions/2:predict", [5.0, 6.0]),
            ("/v1/MODELS/linear/LABELS/stable:predict", [4.0, 5.0]),
            ("/v1/models/lin%65ar/versions/1:predict", [4.0, 5.0]),
            ("/v1/models/linear/labels/sta%62le:predict", [4.0, 5.0]),
        ],
    )
    def test_rows_are_answered_by_the_version_asked_for(self, served: Target, path: str, expected: list[float]) -> None:
        answer = served.rest.post(path, json=INSTANCES)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json() == {"predictions": [expected]}

    @pytest.mark.parametrize(
        ("method", "path", "body", "status", "words"),
        [
            ("POST", "/v1/models/nobody:predict", INSTANCES, 404, "Servable not found for request: Latest(nobody)"),
            ("POST", "/v1/models/linear/versions/9:predict", INSTANCES, 404, "Servable not found for request: Specific(linear, 9)"),
            ("POST", "/v1/models/linear/labels/x:predict", INSTANCES, 400, "Unrecognized servable version label: x"),
            ("POST", "/v1/models/nobody/labels/stable:predict", INSTANCES, 400, "Unrecognized servable version label: stable"),
            ("POST", f"/v1/models/linear/versions/{2**63}:predict", INSTANCES, 400, f"Failed to convert version: {2**63} to numeric."),
            ("POST", f"/v1/models/linear/versions/{2**63 - 1}:predict", INSTANCES, 404, f"Specific(linear, {2**63 - 1})"),
            ("POST", "/v1/models/linear/versions/-1:predict", INSTANCES, 400, "Malformed request: POST /v1/models/linear/versions/-1:predict"),
            ("POST", "/v1/models/linear/versions/x:predict", INSTANCES, 400, "Malformed request: POST /v1/models/linear/versions/x:predict"),
            ("POST", "/v1/models/linear/versions/1/labels/stable:predict", INSTANCES, 400, "Malformed request: POST"),
            ("POST", "/v1/models/linear/:predict", INSTANCES, 400, "Malformed request: POST"),
            ("POST", "/v1/models/:predict", INSTANCES, 400, "Malformed request: POST"),
            ("POST", "/v1/models/linear:PREDICT", INSTANCES, 400, "Malformed request: POST /v1/models/linear:PREDICT"),
            ("POST", "/v1/models/linear:explain", INSTANCES, 400, "Malformed request: POST /v1/models/linear:explain"),
            ("POST", "/v1/models/linear", {}, 400, "Malformed request: POST /v1/models/linear"),
            ("POST", "/v1/models/linear/metadata", {}, 400, "Malformed request: POST /v1/models/linear/metadata"),
            ("GET", "/v1/models/linear:predict", None, 400, "Malformed request: GET /v1/models/linear:predict"),
            ("GET", "/v1/models/linear/", None, 400, "Malformed request: GET /v1/models/linear/"),
            ("GET", "/v1/", None, 400, "Malformed request: GET /v1/"),
            ("GET", "/v1/nothing", None, 400, "Malformed request: GET /v1/nothing"),
            ("DELETE", "/v1/models/linear", None, 400, "Malformed request: DELETE /v1/models/linear"),
            ("PUT", "/v1/models/linear:predict", INSTANCES, 400, "Malformed request: PUT /v1/models/linear:predict"),
            ("GET", "/v1/models/nobody", None, 404, "Could not find any versions of model nobody"),
            ("GET", "/v1/models/linear/versions/9", None, 404, "Could not find version 9 of model linear"),
            ("GET", f"/v1/models/linear/versions/{2**63}", None, 400, "Failed to convert version"),
            ("GET", "/v1/models", None, 400, "Missing model name"),
            ("GET", "/v1/models/metadata", None, 404, "Could not find any versions of model metadata"),
            ("GET", "/v1/models/nobody/metadata", None, 404, "Servable not found for request: Latest(nobody)"),
            ("GET", "/v1/models/linear/versions/9/metadata", None, 404, "Servable not found for request: Specific(linear, 9)"),
            ("GET", "/v1/models/linear/labels/x/metadata", None, 400, "Unrecognized servable version label: x"),
        ],
    )
    def test_a_wrong_path_gets_its_status_and_its_reason(self, served: Target, method: str, path: str, body: Any, status: int, words: str) -> None:
        answer = served.rest.request(method, path, content=b"" if body is None else json.dumps(body).encode())
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), answer.text
        assert list(answer.json()) == ["error"] and words in answer.json()["error"], answer.text

    @pytest.mark.parametrize("path", ["/", "/v2/models/linear", "/models/linear", "/v1", "/favicon.ico"])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_outside_of_v1_nothing_is_found(self, served: Target, method: str, path: str) -> None:
        assert served.rest.request(method, path).status_code == 404

    @pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream", "nonsense", None])
    def test_the_content_type_of_a_request_does_not_matter(self, served: Target, content_type: str | None) -> None:
        headers = {} if content_type is None else {"Content-Type": content_type}
        answer = served.rest.post("/v1/models/linear:predict", content=json.dumps(INSTANCES).encode(), headers=headers)
        assert answer.json() == {"predictions": [[5.0, 6.0]]}

    def test_many_requests_at_once_are_all_answered(self, served: Target) -> None:
        def ask(number: int) -> list[float]:
            answer = served.post("linear/versions/1:predict", {"instances": [[number, 0, 0, 0]]}).json()
            return [round(value, 4) for value in answer["predictions"][0]]

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(ask, range(200))) == [[0.0, round(number / 10, 4)] for number in range(200)]


class RestPredict:
    """JSON of requests and answers."""

    def test_columns_are_answered_in_columns(self, served: Target) -> None:
        assert served.post("linear/versions/1:predict", {"inputs": [ROW, ROW]}).json() == {"outputs": [[4.0, 5.0], [4.0, 5.0]]}
        assert served.post("linear/versions/1:predict", {"inputs": {"x": [ROW]}}).json() == {"outputs": [[4.0, 5.0]]}

    def test_rows_may_be_objects_of_the_one_input(self, served: Target) -> None:
        assert served.post("linear/versions/1:predict", {"instances": [{"x": ROW}, {"x": ROW}]}).json() == {"predictions": [[4.0, 5.0]] * 2}

    def test_several_inputs_and_outputs_are_objects(self, served: Target) -> None:
        rows = served.post("two:predict", {"instances": [{"left": [1, 2], "right": [3]}, {"right": [6], "left": [4, 5]}]})
        assert rows.json() == {"predictions": [{"both": [1.0, 2.0, 3.0], "right": [3.0]}, {"both": [4.0, 5.0, 6.0], "right": [6.0]}]}
        columns = served.post("two:predict", {"inputs": {"left": [[1, 2]], "right": [[3]]}})
        assert columns.json() == {"outputs": {"both": [[1.0, 2.0, 3.0]], "right": [[3.0]]}}

    def test_a_signature_is_chosen_by_its_name_and_the_empty_one_is_the_default(self, served: Target) -> None:
        assert served.post("many:predict", {"instances": ["a"], "signature_name": "echo_string"}).json() == {"predictions": ["a"]}
        assert served.post("many:predict", {"instances": [1], "signature_name": ""}).json() == {"predictions": [1.0]}

    @pytest.mark.parametrize(
        ("values", "answered"),
        [([1, 2], [1.0, 2.0]), ([[1], [2]], [[1.0], [2.0]]), ([[[1, 2]], [[3, 4]]], [[[1.0, 2.0]], [[3.0, 4.0]]]), ([[], []], [[], []])],
    )
    def test_rows_are_values_or_lists_of_any_depth(self, served: Target, values: Any, answered: Any) -> None:
        assert served.post("many:predict", {"instances": values}).json() == {"predictions": answered}

    @pytest.mark.parametrize(("value", "answered"), [(3, 3.0), ([], []), ([1], [1.0]), ([[1, 2]], [[1.0, 2.0]]), ([[]], [[]])])
    def test_columns_are_values_or_lists_of_any_depth(self, served: Target, value: Any, answered: Any) -> None:
        assert served.post("many:predict", {"inputs": value}).json() == {"outputs": answered}

    def test_the_first_example_of_the_original_s_tutorial(self, served: Target) -> None:
        """Its signature says [?, 1], and what it sends is no list of lists."""
        answer = served.post("many:predict", {"signature_name": "half_plus_two", "instances": [1.0, 2.0, 5.0]})
        assert answer.json() == {"predictions": [2.5, 3.0, 4.5]}

    def test_a_scalar_output_is_refused_in_rows_and_given_in_columns(self, served: Target) -> None:
        for signature, output in (("scalar", {"outputs": 3.0}), ("scalar_and_rows", {"outputs": {"loss": 3.0, "y": [1.0, 2.0]}})):
            refused = served.post("many:predict", {"signature_name": signature, "instances": [1, 2]})
            assert refused.status_code == 400 and "has no shape information" in refused.json()["error"]
            assert served.post("many:predict", {"signature_name": signature, "inputs": [1, 2]}).json() == output

    def test_outputs_of_unequal_batches_are_refused_in_rows_and_given_in_columns(self, served: Target) -> None:
        refused = served.post("many:predict", {"signature_name": "unequal", "instances": [1, 2]})
        assert refused.status_code == 400 and "inconsistent batch size" in refused.json()["error"]
        assert served.post("many:predict", {"signature_name": "unequal", "inputs": [1, 2]}).json() == {"outputs": {"a": [1.0], "b": [1.0, 2.0]}}

    def test_an_answer_without_a_row_is_an_empty_list(self, served: Target) -> None:
        assert served.post("many:predict", {"signature_name": "empty", "instances": [1, 2]}).json() == {"predictions": []}

    def test_what_follows_the_first_document_is_ignored(self, served: Target) -> None:
        answer = served.rest.post("/v1/models/linear:predict", content=json.dumps(INSTANCES).encode() + b" }]and more")
        assert answer.json() == {"predictions": [[5.0, 6.0]]}


class RestTypes:
    """Every type of tensor in JSON."""

    @pytest.mark.parametrize(
        ("dtype", "values"),
        [
            ("float32", [0.5, -0.0, 16777216.0]),
            ("float64", [0.1, 1e300, -0.25]),
            ("int8", [-128, 127]),
            ("int16", [-(2**15), 2**15 - 1]),
            ("int32", [-(2**31), 2**31 - 1]),
            ("int64", [-(2**63), 2**63 - 1, 2**53 + 1]),
            ("uint8", [0, 255]),
            ("uint32", [0, 2**32 - 1]),
            ("uint64", [0, 2**64 - 1]),
            ("bool", [True, False]),
            ("string", ["é", "", "a\u0000b", '"\\', "\U0001f600"]),
        ],
    )
    def test_what_is_sent_comes_back(self, served: Target, dtype: str, values: list[Any]) -> None:
        for given, answered in (("instances", "predictions"), ("inputs", "outputs")):
            answer = served.post("many:predict", {"signature_name": f"echo_{dtype}", given: values})
            assert answer.json() == {answered: values}
            assert [type(value) for value in answer.json()[answered]] == [type(value) for value in values]

    @pytest.mark.parametrize(("dtype", "given", "answered"), [("int8", 200, -56), ("int16", 2**16 + 5, 5), ("uint8", 300, 44), ("uint8", -1, 255)])
    def test_the_smallest_integers_are_only_checked_as_32_bits(self, served: Target, dtype: str, given: int, answered: int) -> None:
        answer = served.post("many:predict", {"signature_name": f"echo_{dtype}", "instances": [given]})
        assert answer.json() == {"predictions": [answered]}

    @pytest.mark.parametrize(
        ("dtype", "value"),
        [
            ("int8", 2**31),
            ("int32", 2**31),
            ("int32", -(2**31) - 1),
            ("int32", 1.0),
            ("int32", True),
            ("int64", 2**63),
            ("int64", 1.5),
            ("int64", "1"),
            ("uint8", 2**31),
            ("uint32", 2**32),
            ("uint32", -1),
            ("uint64", 2**64),
            ("uint64", -1),
            ("bool", 1),
            ("bool", 0.0),
            ("bool", "true"),
            ("bool", None),
            ("float64", "1"),
            ("float64", False),
            ("string", 1),
            ("string", None),
            ("string", True),
        ],
    )
    def test_a_value_that_its_type_cannot_hold_is_refused(self, served: Target, dtype: str, value: Any) -> None:
        for body in ({"instances": [value]}, {"inputs": [value]}):
            answer = served.post("many:predict", {"signature_name": f"echo_{dtype}", **body})
            assert (answer.status_code, bool(answer.json()["error"])) == (400, True), answer.text

    @pytest.mark.parametrize("dtype", ["half", "bfloat16", "complex64"])
    def test_types_that_json_cannot_carry_are_refused(self, served: Target, dtype: str) -> None:
        for key in ("instances", "inputs"):
            answer = served.post("many:predict", {"signature_name": f"echo_{dtype}", key: [1]})
            assert answer.status_code in (400, 501) and answer.json()["error"]  # the original says 501 of columns

    def test_a_number_too_large_for_a_double_is_refused(self, served: Target) -> None:
        for number in (b"1e400", b"9" * 400):
            answer = served.rest.post("/v1/models/many:predict", content=b'{"instances": [' + number + b"]}")
            assert answer.status_code == 400 and answer.json()["error"], answer.text

    def test_not_a_number_and_the_infinities_are_read_and_written_bare(self, served: Target) -> None:
        answer = served.rest.post("/v1/models/many:predict", content=b'{"instances": [NaN, Infinity, -Infinity, 1]}')
        assert "".join(answer.text.split()) == '{"predictions":[NaN,Infinity,-Infinity,1.0]}'
        made = served.post("many:predict", {"signature_name": "unusual", "inputs": [1]})
        assert "".join(made.text.split()) == '{"outputs":[[Infinity,-Infinity,NaN,1.0]]}'

    @pytest.mark.parametrize("text", ["0.1", "0.2", "1.5", "-0.0", "2.0", "0.001", "100000.0", "123456.0", "1234567.0"])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_float_is_written_without_noise_and_a_whole_one_with_its_point(self, served: Target, dtype: str, text: str) -> None:
        answer = served.rest.post("/v1/models/many:predict", content=f'{{"signature_name": "echo_{dtype}", "inputs": {text}}}'.encode())
        assert "".join(answer.text.split()) == f'{{"outputs":{text}}}'

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_very_small_or_large_float_is_written_without_noise(self, served: Target, dtype: str) -> None:
        answer = served.post("many:predict", {"signature_name": f"echo_{dtype}", "inputs": [1e-7, 3e-5, 1e20]})
        # The original prints 1e-07, ours 1e-7: the same number, with no digit more.
        assert [float(text) for text in answer.text.split("[")[1].split("]")[0].split(",")] == [1e-7, 3e-5, 1e20]
        assert len("".join(answer.text.split())) <= len('{"outputs":[1e-07,0.00003,1e+20]}')

    def test_every_float_is_written_so_that_it_is_read_as_the_same_one(self, served: Target) -> None:
        random = np.random.default_rng(1)
        singles = np.concatenate([random.integers(0, 2**32, 2000, np.uint32).view(np.float32), np.float32([1e20, 9e6, 1 / 3, 3.4028235e38])])
        doubles = np.concatenate([random.uniform(-1, 1, 2000) * 10.0 ** random.integers(-250, 250, 2000), [1e20, 9e6, 1 / 3, 0.1 + 0.2]])
        for dtype, values, tolerance in (("float32", singles, 0), ("float64", doubles, 1e-14)):  # the original reads doubles to 3 units
            values = values[np.isfinite(values)]
            answer = served.post("many:predict", {"signature_name": f"echo_{dtype}", "inputs": values.astype(float).tolist()})
            np.testing.assert_allclose(np.array(answer.json()["outputs"], values.dtype), values, rtol=tolerance, atol=0)
            texts = answer.text.split("[")[1].split("]")[0].split(",")
            assert len(texts) == len(values) and all("." in text or "e" in text for text in texts)

    def test_binary_strings_are_given_in_base64(self, served: Target) -> None:
        binary = {"b64": base64.b64encode(b"\x00\xff\xfe").decode()}
        assert served.post("many:predict", {"signature_name": "picture", "instances": [binary]}).json() == {"predictions": [binary]}
        named = {"signature_name": "picture", "instances": [{"picture_bytes": binary}, {"picture_bytes": "a"}]}
        assert served.post("many:predict", named).json() == {"predictions": [binary, {"b64": "YQ=="}]}
        assert served.post("many:predict", {"signature_name": "picture", "inputs": binary}).json() == {"outputs": binary}

    def test_only_an_output_named_bytes_comes_back_in_base64(self, served: Target) -> None:
        answer = served.post("many:predict", {"signature_name": "text", "instances": [{"b64": "YWI="}, "c"]})
        assert answer.json() == {"predictions": [{"upper": "AB", "raw_bytes": {"b64": "YWI="}}, {"upper": "C", "raw_bytes": {"b64": "Yw=="}}]}


class RestExamples:
    """Classify and Regress by REST."""

    @pytest.mark.parametrize(("model", "signature"), [("examples1", {}), ("examples2", {}), ("examples2", {"signature_name": "serving_default"})])
    def test_classify_gives_labels_and_scores(self, served: Target, model: str, signature: dict[str, str]) -> None:
        answer = served.post(f"{model}:classify", {**EXAMPLES, **signature})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json() == {"results": [[["no", 0.75], ["yes", 0.25]], [["no", 0.5], ["yes", 0.5]]]}

    def test_classify_gives_empty_labels_or_zeros_where_the_model_has_none(self, served: Target) -> None:
        one = {"examples": [{"x": 0.25}]}
        assert served.post("examples1:classify", {"signature_name": "scores", **one}).json() == {"results": [[["", 0.75], ["", 0.25]]]}
        assert served.post("examples1:classify", {"signature_name": "classes", **one}).json() == {"results": [[["no", 0.0], ["yes", 0.0]]]}

    def test_regress_gives_one_number_for_each_example(self, served: Target) -> None:
        assert served.post("examples2:regress", {"signature_name": "regress", **EXAMPLES}).json() == {"results": [0.5, 1.0]}
        assert served.post("examples1/versions/1:regress", {"signature_name": "regress", **EXAMPLES}).json() == {"results": [-0.5, 0.0]}
        assert served.post("examples1:regress", {"signature_name": "regress_flat", **EXAMPLES}).json() == {"results": [-0.5, 0.0]}

    def test_the_table_of_a_tf1_model_was_filled_from_its_asset(self, served: Target) -> None:
        words: list[Any] = ["good", ["bad"], {"b64": base64.b64encode(b"good").decode()}, "unknown"]
        answer = served.post("examples1:regress", {"signature_name": "regress", "examples": [{"x": 0.5, "word": word} for word in words]})
        assert answer.json() == {"results": [2.0, 1.0, 2.0, 0.0]}

    def test_the_context_is_part_of_every_example(self, served: Target) -> None:
        body = {"signature_name": "regress", "context": {"word": "good"}, **EXAMPLES}
        assert served.post("examples1:regress", body).json() == {"results": [1.5, 2.0]}

    @pytest.mark.parametrize(
        ("features", "words"),
        [
            ({"x": 2}, "Data types don't match. Data type: int64"),  # an integer becomes an int64_list
            ({"x": "a"}, "Data types don't match."),
            ({"x": [1.0, 2.0]}, "Key: x"),
            ({}, "Feature: x (data type: float) is required but could not be found."),
        ],
    )
    def test_examples_that_the_graph_does_not_take_are_a_bad_request_with_its_reason(self, served: Target, features: Any, words: str) -> None:
        answer = served.post("examples1:classify", {"examples": [features]})
        assert (answer.status_code, words in answer.json()["error"]) == (400, True), answer.text

    def test_a_model_or_version_that_is_not_there_is_not_found(self, served: Target) -> None:
        for method in ("classify", "regress"):
            assert served.post(f"nobody:{method}", EXAMPLES).status_code == 404
            assert served.post(f"examples1/versions/9:{method}", EXAMPLES).json()["error"].startswith("Servable not found")


class RestInformation:
    """Status and metadata by REST."""

    @pytest.mark.parametrize("path", ["linear", "linear/labels/stable", "linear/labels/nothing", "lin%65ar"])
    def test_the_status_lists_all_versions_the_latest_first_whatever_the_label(self, served: Target, path: str) -> None:
        answer = served.rest.get(f"/v1/models/{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json() == {"model_version_status": [{"version": v, "state": "AVAILABLE", "status": OK} for v in ("2", "1")]}

    def test_the_status_of_one_version_lists_only_it(self, served: Target) -> None:
        answer = served.rest.get("/v1/models/linear/versions/1")
        assert answer.json() == {"model_version_status": [{"version": "1", "state": "AVAILABLE", "status": OK}]}

    @pytest.mark.parametrize(
        ("path", "version"), [("linear", "2"), ("linear/versions/1", "1"), ("linear/labels/stable", "1"), ("linear/labels/canary", "2")]
    )
    def test_the_metadata_holds_the_signature(self, served: Target, path: str, version: str) -> None:
        answer = served.rest.get(f"/v1/models/{path}/metadata")
        signature = answer.json()["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["model_spec"] == {"name": "linear", "signature_name": "", "version": version}
        assert signature["method_name"] == "tensorflow/serving/predict"
        assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
        assert signature["inputs"]["x"]["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}, {"size": "4", "name": ""}], "unknown_rank": False}
        assert list(signature["outputs"]) == ["output_0"]

    def test_the_metadata_lists_every_signature(self, served: Target) -> None:
        signatures = served.rest.get("/v1/models/many/metadata").json()["metadata"]["signature_def"]["signature_def"]
        assert {f"echo_{dtype}" for dtype in DTYPES} < signatures.keys()
        assert signatures["echo_bool"]["inputs"]["x"]["tensor_shape"]["unknown_rank"] is True


class GrpcPredict:
    """Predict in protocol buffers."""

    @pytest.mark.parametrize(("asked", "version"), [({}, 2), ({"version": 1}, 1), ({"label": "stable"}, 1), ({"label": "canary"}, 2)])
    def test_the_answer_names_the_version_and_signature_that_gave_it(self, served: Target, asked: dict[str, Any], version: int) -> None:
        answer = served.prediction.Predict(row(**asked), timeout=SECONDS)
        assert answer.model_spec == spec(protos.predict_pb2.PredictRequest(), "linear", "serving_default", version=version).model_spec
        assert answer.outputs["output_0"] == tensor([3.0 + version, 4.0 + version], [1, 2])

    def test_the_answer_names_another_signature(self, served: Target) -> None:
        answer = served.prediction.Predict(row("many", signature="echo_float32"), timeout=SECONDS)
        assert (answer.model_spec.signature_name, answer.model_spec.version.value) == ("echo_float32", 1)

    @pytest.mark.parametrize(
        ("request_", "code", "words"),
        [
            (row("nobody"), Code.NOT_FOUND, "Servable not found for request: Latest(nobody)"),
            (row(version=9), Code.NOT_FOUND, "Servable not found for request: Specific(linear, 9)"),
            (row(version=-1), Code.NOT_FOUND, "Servable not found for request: Specific(linear, -1)"),
            (row(version=0), Code.NOT_FOUND, "Servable not found for request: Specific(linear, 0)"),
            (row(label="x"), Code.INVALID_ARGUMENT, "Unrecognized servable version label: x"),
            (row(label=""), Code.INVALID_ARGUMENT, "Unrecognized servable version label: "),
            (row("nobody", label="stable"), Code.INVALID_ARGUMENT, "Unrecognized servable version label: stable"),
            (row(signature="x"), Code.FAILED_PRECONDITION, 'Serving signature key "x" not found.'),
            (row(""), Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
            (protos.predict_pb2.PredictRequest(), Code.INVALID_ARGUMENT, "Missing ModelSpec"),
            (predict("linear", {}), Code.INVALID_ARGUMENT, "input size does not match signature: 0!=1"),
            (
                predict("linear", {"x": tensor(ROW, [1, 4]), "y": tensor(ROW, [1, 4])}),
                Code.INVALID_ARGUMENT,
                "input size does not match signature: 2!=1 len({x,y}) != len({x}). Sent extra: {y}. Missing but required: {}.",
            ),
            (predict("two", {"left": tensor([1.0, 2.0], [1, 2])}), Code.INVALID_ARGUMENT, "Missing but required: {right}"),
            (predict("linear", {"other": tensor(ROW, [1, 4])}), Code.INVALID_ARGUMENT, ""),
            (predict("two", {"left": tensor([1.0, 2.0], [1, 2]), "x": tensor([1.0], [1, 1])}), Code.INVALID_ARGUMENT, ""),
            (row(values=ROW[:3]), Code.INVALID_ARGUMENT, ""),
            (predict("linear", {"x": tensor(ROW, [1, 4], TYPES.DT_DOUBLE, "double_val")}), Code.INVALID_ARGUMENT, ""),
            (predict("linear", {"x": tensor([b"a"], [1, 1], TYPES.DT_STRING, "string_val")}), Code.INVALID_ARGUMENT, ""),
            (predict("linear", {"x": tensor(ROW, [7, 7])}), Code.INVALID_ARGUMENT, ""),
            (predict("linear", {"x": tensor(ROW, [1, 4], TYPES.DT_INVALID)}), Code.INVALID_ARGUMENT, ""),
            (predict("linear", {"x": tensor(ROW, [1, 4], TYPES.DT_VARIANT)}), Code.INVALID_ARGUMENT, ""),
            (predict("linear", {"x": tensor(ROW, [-1, 4])}), Code.INVALID_ARGUMENT, ""),
            (predict("linear", {"x": tensor(ROW, [2**40, 2**40])}), Code.INVALID_ARGUMENT, ""),
            (row("many", [-1.0], "refuse"), Code.INVALID_ARGUMENT, "what is given must not be negative"),
        ],
    )
    def test_a_wrong_request_gets_its_code_and_its_reason(self, served: Target, request_: Any, code: grpc.StatusCode, words: str) -> None:
        got, details = refusal(served.prediction.Predict, request_)
        assert (got, words in details, bool(details)) == (code, True, True), (got, details)

    def test_only_the_outputs_asked_for_are_given(self, served: Target) -> None:
        request = predict("two", {"left": tensor([1.0, 2.0], [1, 2]), "right": tensor([3.0], [1, 1])})
        request.output_filter.append("right")
        assert list(served.prediction.Predict(request, timeout=SECONDS).outputs) == ["right"]
        request.output_filter.append("right")
        code, details = refusal(served.prediction.Predict, request)
        assert code is Code.INVALID_ARGUMENT and details.startswith("duplicate output tensor alias: right")
        request.output_filter[:] = ["right", "nothing"]
        code, details = refusal(served.prediction.Predict, request)
        assert code is Code.INVALID_ARGUMENT
        assert details.startswith("output tensor alias not found in signature: nothing")

    @pytest.mark.parametrize(
        ("dtype", "values", "kind"),
        [
            ("float32", [0.5, math.inf], "float_val"),
            ("float64", [0.1, -math.inf], "double_val"),
            ("int8", [-128, 127], "int_val"),
            ("int16", [-(2**15), 2**15 - 1], "int_val"),
            ("int32", [-(2**31), 2**31 - 1], "int_val"),
            ("int64", [-(2**63), 2**63 - 1], "int64_val"),
            ("uint8", [0, 255], "int_val"),
            ("uint16", [0, 2**16 - 1], "int_val"),
            ("uint32", [0, 2**32 - 1], "uint32_val"),
            ("uint64", [0, 2**64 - 1], "uint64_val"),
            ("bool", [True, False], "bool_val"),
            ("half", [0x3C00, 0xFC00], "half_val"),
            ("bfloat16", [0x3F80, 0xFF80], "half_val"),
            ("complex64", [1.0, 2.0, -3.0, 4.5], "scomplex_val"),
            ("string", [b"\x00\xff", b""], "string_val"),
        ],
    )
    def test_every_type_comes_back_in_the_field_of_its_values(self, served: Target, dtype: str, values: list[Any], kind: str) -> None:
        code = {"float32": FLOAT, "float64": TYPES.DT_DOUBLE}.get(dtype) or TYPES.DataType.Value(f"DT_{dtype.upper()}")
        sent = tensor(values, [2], code, kind)
        answer = served.prediction.Predict(predict("many", {"x": sent}, f"echo_{dtype}"), timeout=SECONDS)
        assert answer.outputs["y"] == sent
        if dtype != "string":  # the same as raw bytes, the form in which clients send large tensors
            content = tensors.to_proto(tensors.to_array(sent))
            assert content.tensor_content
            assert served.prediction.Predict(predict("many", {"x": content}, f"echo_{dtype}"), timeout=SECONDS).outputs["y"] == sent

    @pytest.mark.parametrize("shape", [[], [0], [2, 0, 3], [1, 1, 1, 1, 1, 1, 1]])
    def test_every_shape_comes_back(self, served: Target, shape: list[int]) -> None:
        sent = tensor([1.0] * math.prod(shape), shape)
        assert served.prediction.Predict(predict("many", {"x": sent}), timeout=SECONDS).outputs["y"] == sent

    def test_fewer_values_than_the_shape_holds_repeat_the_last_one(self, served: Target) -> None:
        answer = served.prediction.Predict(predict("many", {"x": tensor([1.0, 2.0], [4])}), timeout=SECONDS)
        assert tensors.to_array(answer.outputs["y"]).tolist() == [1.0, 2.0, 2.0, 2.0]
        none = served.prediction.Predict(predict("many", {"x": tensor([], [2])}), timeout=SECONDS)
        assert tensors.to_array(none.outputs["y"]).tolist() == [0.0, 0.0]

    def test_not_a_number_comes_back(self, served: Target) -> None:
        answer = served.prediction.Predict(row("many", [math.nan]), timeout=SECONDS)
        assert [math.isnan(value) for value in answer.outputs["y"].float_val] == [True]

    def test_messages_may_be_larger_than_grpc_allows_by_itself(self, served: Target) -> None:
        values = np.arange(3_000_000, dtype=np.float32)
        answer = served.prediction.Predict(predict("many", {"x": tensors.to_proto(values)}), timeout=SECONDS)
        assert np.array_equal(tensors.to_array(answer.outputs["y"]), values)
        made = served.prediction.Predict(predict("many", {"n": tensor([3_000_000], [], TYPES.DT_INT64, "int64_val")}, "zeros"), timeout=SECONDS)
        assert tensors.to_array(made.outputs["y"]).shape == (3_000_000,)

    def test_predict_takes_signatures_of_any_method(self, served: Target) -> None:
        for model, signature in (("examples1", "regress"), ("examples1", "predict"), ("examples2", "regress")):
            inputs = tensor([example(x=0.5).SerializeToString()], [1], TYPES.DT_STRING, "string_val")
            answer = served.prediction.Predict(predict(model, {"inputs": inputs}, signature), timeout=SECONDS)
            assert [list(output.float_val) for output in answer.outputs.values()] == [[0.0 if model == "examples1" else 1.0]]

    def test_a_method_that_does_not_exist_is_unimplemented(self, served: Target) -> None:
        for method in ("/tensorflow.serving.PredictionService/Explain", "/tensorflow.serving.OtherService/Predict"):
            call = served.channel.unary_unary(method, request_serializer=lambda request: b"", response_deserializer=lambda answer: answer)
            assert refusal(call, None)[0] is Code.UNIMPLEMENTED


class GrpcExamples:
    """Classify, Regress and MultiInference in protocol buffers."""

    @staticmethod
    def classify(name: str = "examples1", signature: str = "", **asked: Any) -> Any:
        return spec(protos.classification_pb2.ClassificationRequest(), name, signature, **asked)

    @staticmethod
    def regress(name: str = "examples1", signature: str = "regress", **asked: Any) -> Any:
        return spec(protos.regression_pb2.RegressionRequest(), name, signature, **asked)

    @staticmethod
    def multi(*tasks: tuple[str, str, str]) -> Any:
        request = asking(protos.inference_pb2.MultiInferenceRequest(), example(x=0.25), example(x=0.5))
        for model, signature, method in tasks:
            spec(request.tasks.add(method_name=method), model, signature)
        return request

    @pytest.mark.parametrize(("model", "signature"), [("examples1", ""), ("examples2", ""), ("examples2", "serving_default")])
    def test_classify_gives_labels_and_scores(self, served: Target, model: str, signature: str) -> None:
        answer = served.prediction.Classify(asking(self.classify(model, signature), example(x=0.25), example(x=1.0)), timeout=SECONDS)
        found = [[(one.label, one.score) for one in row.classes] for row in answer.result.classifications]
        assert found == [[("no", 0.75), ("yes", 0.25)], [("no", 0.0), ("yes", 1.0)]]
        assert answer.model_spec == self.classify(model, "serving_default", version=1).model_spec

    def test_regress_gives_one_value_for_each_example(self, served: Target) -> None:
        examples = [example(x=0.25, word=b"good"), example(x=0.5)]
        answer = served.prediction.Regress(asking(self.regress(version=1), *examples), timeout=SECONDS)
        assert [one.value for one in answer.result.regressions] == [1.5, 0.0]
        assert answer.model_spec == self.regress(version=1).model_spec

    def test_the_context_is_part_of_every_example(self, served: Target) -> None:
        request = asking(self.regress(), example(x=0.25), example(x=0.5), context=example(word=b"bad"))
        assert [one.value for one in served.prediction.Regress(request, timeout=SECONDS).result.regressions] == [0.5, 1.0]

    @pytest.mark.parametrize(
        ("method", "signature", "words"),
        [
            ("Classify", "nothing", "No signature was found with the name: nothing"),
            ("Classify", "other_input", ""),
            ("Classify", "other_output", "Expected classification signature outputs to contain"),
            ("Classify", "three_outputs", ""),
            ("Classify", "flat_scores", "shape"),
            ("Classify", "double_scores", "scores"),
            ("Classify", "number_classes", "Expected classes "),
            ("Classify", "one_class_too_few", "score"),
            ("Classify", "one_row_too_few", "Expected scores "),
            ("Regress", "nothing", "No signature was found with the name: nothing"),
            ("Regress", "", "Expected one "),
            ("Regress", "other_input", ""),
            ("Regress", "scores", "regression output"),
            ("Regress", "wide_outputs", "Expected output Tensor shape to be either "),
            ("Regress", "double_outputs", "Expected output Tensor of "),
            ("Regress", "one_output_too_few", ""),
        ],
    )
    def test_a_signature_that_does_not_fit_is_refused_with_its_reason(self, served: Target, method: str, signature: str, words: str) -> None:
        request = self.classify(signature=signature) if method == "Classify" else self.regress(signature=signature)
        code, details = refusal(getattr(served.prediction, method), asking(request, example(x=0.5)))
        assert (code, words in details, bool(details)) == (Code.INVALID_ARGUMENT, True, True), (code, details)

    @pytest.mark.parametrize("method", ["Classify", "Regress"])
    def test_a_wrong_request_gets_its_code_and_its_reason(self, served: Target, method: str) -> None:
        call = getattr(served.prediction, method)
        make = self.classify if method == "Classify" else self.regress
        good = example(x=0.5)
        assert refusal(call, asking(make("nobody"), good)) == (Code.NOT_FOUND, "Servable not found for request: Latest(nobody)")
        assert refusal(call, asking(make(version=9), good)) == (Code.NOT_FOUND, "Servable not found for request: Specific(examples1, 9)")
        assert refusal(call, asking(make(label="x"), good)) == (Code.INVALID_ARGUMENT, "Unrecognized servable version label: x")
        assert refusal(call, asking(make(""), good)) == (Code.INVALID_ARGUMENT, "ModelSpec has no name specified.")
        assert refusal(call, type(make())()) == (Code.INVALID_ARGUMENT, "Missing ModelSpec")
        for empty in (make(), asking(make(), context=good)):
            code, details = refusal(call, empty)
            assert (code, "Input is empty" in details) == (Code.INVALID_ARGUMENT, True), (code, details)
        for wrong in (example(x=1), example(y=1.0)):
            code, details = refusal(call, asking(make(), wrong))
            assert (code, "x" in details) == (Code.INVALID_ARGUMENT, True), (code, details)

    def test_several_inferences_are_made_of_the_same_examples(self, served: Target) -> None:
        tasks = (("examples1", "", CLASSIFY), ("examples1", "regress", REGRESS))
        classified, regressed = served.prediction.MultiInference(self.multi(*tasks), timeout=SECONDS).results
        assert [[one.score for one in row.classes] for row in classified.classification_result.classifications] == [[0.75, 0.25], [0.5, 0.5]]
        assert [one.value for one in regressed.regression_result.regressions] == [-0.5, 0.0]
        assert classified.model_spec == self.classify("examples1", "serving_default", version=1).model_spec
        assert regressed.model_spec == self.regress("examples1", "regress", version=1).model_spec

    @pytest.mark.parametrize(
        ("tasks", "code", "words"),
        [
            ([("nobody", "", CLASSIFY)], Code.NOT_FOUND, "Servable not found for request: Latest(nobody)"),
            ([("", "", CLASSIFY)], Code.INVALID_ARGUMENT, "name"),
            ([], Code.INVALID_ARGUMENT, "ModelSpec"),
            ([("examples1", "", CLASSIFY), ("", "regress", REGRESS)], Code.INVALID_ARGUMENT, "ModelSpec"),
            ([("examples1", "", CLASSIFY), ("examples2", "regress", REGRESS)], Code.INVALID_ARGUMENT, "must access the same model name"),
            ([("examples1", "", CLASSIFY)] * 2, Code.INVALID_ARGUMENT, "Duplicate evaluation of signature: serving_default"),
            ([("examples1", "x", CLASSIFY)], Code.INVALID_ARGUMENT, "x"),
            (
                [("examples1", "predict", "tensorflow/serving/predict")],
                Code.UNIMPLEMENTED,
                "Unsupported signature method_name: tensorflow/",
            ),
            ([("examples1", "", "")], Code.UNIMPLEMENTED, "Unsupported signature method_name: "),
            ([("examples1", "", REGRESS)], Code.INVALID_ARGUMENT, "Expected one "),
        ],
    )
    def test_wrong_inferences_get_their_code_and_their_reason(self, served: Target, tasks: Any, code: grpc.StatusCode, words: str) -> None:
        got, details = refusal(served.prediction.MultiInference, self.multi(*tasks))
        assert (got, words in details) == (code, True), (got, details)


class GrpcInformation:
    """Metadata and status in protocol buffers."""

    @staticmethod
    def metadata(*fields: str, name: str = "two", **asked: Any) -> Any:
        return spec(protos.get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields), name, **asked)

    def test_the_metadata_is_the_signature_map_and_names_no_signature(self, served: Target) -> None:
        answer = served.prediction.GetModelMetadata(self.metadata("signature_def"), timeout=SECONDS)
        signatures = protos.get_model_metadata_pb2.SignatureDefMap()
        assert answer.metadata["signature_def"].Unpack(signatures)
        assert sorted(signatures.signature_def["serving_default"].inputs) == ["left", "right"]
        assert answer.model_spec == self.metadata(version=1).model_spec

    def test_the_metadata_of_a_label_names_its_version(self, served: Target) -> None:
        answer = served.prediction.GetModelMetadata(self.metadata("signature_def", name="linear", label="stable"), timeout=SECONDS)
        assert answer.model_spec == self.metadata(name="linear", version=1).model_spec

    def test_wrong_questions_for_metadata_are_refused_with_their_reason(self, served: Target) -> None:
        call = served.prediction.GetModelMetadata
        no_spec = protos.get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        for request, code, words in (
            (self.metadata("other"), Code.INVALID_ARGUMENT, "other is not supported"),
            (self.metadata("signature_def", "other"), Code.INVALID_ARGUMENT, "other is not supported"),
            (self.metadata(), Code.INVALID_ARGUMENT, "metadata_field"),
            (no_spec, Code.INVALID_ARGUMENT, "Missing ModelSpec"),
            (self.metadata("signature_def", name=""), Code.INVALID_ARGUMENT, "ModelSpec has no name specified."),
            (self.metadata("signature_def", name="nobody"), Code.NOT_FOUND, "Servable not found for request: Latest(nobody)"),
            (self.metadata("signature_def", version=9), Code.NOT_FOUND, "Servable not found for request: Specific(two, 9)"),
            (self.metadata("signature_def", label="x"), Code.INVALID_ARGUMENT, "Unrecognized servable version label: x"),
        ):
            got, details = refusal(call, request)
            assert (got, words in details) == (code, True), (words, got, details)

    def test_the_status_of_one_version_of_all_and_of_none(self, served: Target) -> None:
        def versions(**asked: Any) -> list[tuple[int, int, int]]:
            request = spec(protos.get_model_status_pb2.GetModelStatusRequest(), "linear", **asked)
            answer = served.models.GetModelStatus(request, timeout=SECONDS)
            return [(entry.version, entry.state, entry.status.error_code) for entry in answer.model_version_status]

        assert versions(version=1) == [(1, 30, 0)]
        assert versions() == versions(label="stable") == versions(label="nothing") == [(2, 30, 0), (1, 30, 0)]
        call, empty = served.models.GetModelStatus, protos.get_model_status_pb2.GetModelStatusRequest
        assert refusal(call, spec(empty(), "linear", version=9)) == (Code.NOT_FOUND, "Could not find version 9 of model linear")
        assert refusal(call, spec(empty(), "nobody")) == (Code.NOT_FOUND, "Could not find any versions of model nobody")
        assert refusal(call, spec(empty(), "nobody", version=9)) == (Code.NOT_FOUND, "Could not find version 9 of model nobody")
        assert refusal(call, empty()) == (Code.INVALID_ARGUMENT, "Missing ModelSpec")


class Monitoring:
    """What operators of a server look at; the server needs the flags that `conftest` names."""

    METRICS = "/monitoring/prometheus/metrics"

    def samples(self, served: Target) -> Iterator[tuple[str, dict[str, str], float]]:
        for line in served.rest.get(self.METRICS).text.splitlines():
            if line and not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                yield series.partition("{")[0], dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', series)), float(value)

    def value(self, served: Target, name: str, **labels: str) -> float:
        samples = self.samples(served)
        return sum(value for found, have, value in samples if found == f":tensorflow:serving:{name}" and labels.items() <= have.items())

    def test_requests_are_counted_by_model_and_status(self, served: Target) -> None:
        def counts() -> list[float]:
            return [self.value(served, "request_count", model_name="linear", status=status) for status in ("OK", "INVALID_ARGUMENT", "NOT_FOUND")]

        before = counts()
        served.answer()
        served.post("linear:predict", INSTANCES)
        served.post("linear:predict", {})
        served.post("linear/versions/9:predict", INSTANCES)
        refusal(served.prediction.Predict, predict("linear", {}))
        assert [after - earlier for after, earlier in zip(counts(), before, strict=True)] == [2, 2, 1]

    @pytest.mark.parametrize(
        ("name", "labels"),
        [
            ("request_latency", {"API": "Predict", "entrypoint": "GRPC"}),
            ("request_latency", {"API": "predict", "entrypoint": "REST"}),  # in small letters, as its path has it
            ("runtime_latency", {"API": "Predict", "runtime": "TF1"}),
        ],
    )
    def test_times_are_histograms_in_microseconds(self, served: Target, name: str, labels: dict[str, str]) -> None:
        def series() -> tuple[float, float]:
            return self.value(served, f"{name}_count", model_name="linear", **labels), self.value(
                served, f"{name}_sum", model_name="linear", **labels
            )

        before = series()
        served.answer()
        served.post("linear:predict", INSTANCES)
        served.post("linear:predict", {})  # a refused request has no latency
        after = series()
        assert after[0] - before[0] == (2 if name == "runtime_latency" else 1)
        assert 1 < after[1] - before[1] < SECONDS * 1e6
        wanted = {"model_name": "linear", **labels}.items()
        buckets = [
            (have["le"], value)
            for found, have, value in self.samples(served)
            if found == f":tensorflow:serving:{name}_bucket" and wanted <= have.items()
        ]
        assert [float(edge) for edge, _ in buckets[:3]] == [10, 18, pytest.approx(32.4)]
        assert (len(buckets), buckets[-1][0]) == (34, "+Inf")
        assert [float(edge) for edge, _ in buckets[:-1]] == pytest.approx([10 * 1.8**k for k in range(33)], rel=1e-5)
        counts = [count for _, count in buckets]
        assert counts == sorted(counts) and counts[-1] == after[0]

    def test_the_page_is_text_with_types_and_without_versions(self, served: Target) -> None:
        served.answer()
        answer = served.rest.get(self.METRICS)
        assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/plain")
        lines = answer.text.splitlines()
        for line in ("request_count counter", "request_latency histogram", "runtime_latency histogram"):
            assert f"# TYPE :tensorflow:serving:{line}" in lines
        of_requests = [line for line in lines if line.startswith((":tensorflow:serving:request_", ":tensorflow:serving:runtime_"))]
        assert of_requests and not any("version" in line for line in of_requests)

    def test_other_pages_of_monitoring_are_not_found(self, served: Target) -> None:
        assert served.rest.get("/monitoring/prometheus/other").status_code == 404

    @pytest.mark.parametrize("service", ["", "ModelService", "PredictionService"])
    def test_the_health_service_says_that_it_serves(self, served: Target, service: str) -> None:
        answer = health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def test_the_health_of_an_unknown_service_is_not_found(self, served: Target) -> None:
        assert refusal(health_pb2_grpc.HealthStub(served.channel).Check, health_pb2.HealthCheckRequest(service="x"))[0] is Code.NOT_FOUND

    def test_requests_come_by_a_unix_socket_too(self, served: Target) -> None:
        with grpc.insecure_channel(f"unix:{served.home / 'grpc.sock'}") as channel:
            answer = protos.prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(row(label="stable"), timeout=SECONDS)
        assert list(answer.outputs["output_0"].float_val) == [4.0, 5.0]
