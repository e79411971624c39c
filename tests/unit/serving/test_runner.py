"""Calls to answers with real requests; in the place of TensorFlow stands a servable that notes what it is run with."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded import batching
from airflow_mlops.serving.embedded.engine import Port, Signature
from airflow_mlops.serving.embedded.frames import Answer, Call, Kind
from airflow_mlops.serving.embedded.orders import BatchingParameters
from airflow_mlops.serving.embedded.refusal import Refusal, invalid
from airflow_mlops.serving.embedded.requests import Model
from airflow_mlops.serving.embedded.runner import Runner
from airflow_mlops.serving.signatures import DEFAULT_SIGNATURE
from airflow_mlops.serving.tensors import CODES, DT_STRING, DTYPES, Array, to_array, to_proto

FLOAT = Port(None, CODES[np.dtype(np.float32)], None)
STRING = Port(None, DT_STRING, None)
OK, INVALID, INTERNAL = (code.value[0] for code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL))


def double(x: Array) -> dict[str, Array]:
    return {"y": x * 2}


def no_negatives(x: Array) -> dict[str, Array]:
    if (x < 0).any():
        raise invalid("what is given must not be negative")
    return {"y": x}


def raising(error: Exception) -> Callable[[Array], dict[str, Array]]:
    def raise_it(x: Array) -> dict[str, Array]:
        raise error

    return raise_it


FUNCTIONS: dict[str, Callable[[Array], dict[str, Array]]] = {
    DEFAULT_SIGNATURE: double,
    "other": double,
    "no_negatives": no_negatives,
    "sum": lambda x: {"y": np.asarray(x.sum())},
    "first": lambda x: {"y": x[:1]},
    "unforeseen": raising(RuntimeError("nobody foresaw this")),
    "memory": raising(MemoryError("too large")),
    "regress": lambda inputs: {"outputs": np.array([len(example) for example in inputs], np.float32)},
    "classify": lambda inputs: {"scores": np.array([[len(example), 0.5] for example in inputs], np.float32)},
}
OUTPUTS = {"regress": ["outputs"], "classify": ["scores"]}


class Notes:
    """A servable of Python functions; `runs` are the signatures that were run and with how many rows."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, int]] = []
        self.inputs: list[Mapping[str, Array]] = []
        self.signature_defs: Mapping[str, Any] = {}
        self.signatures = {
            name: Signature({"inputs": STRING} if name in OUTPUTS else {"x": FLOAT}, dict.fromkeys(OUTPUTS.get(name, ["y"]), FLOAT))
            for name in FUNCTIONS
        }

    def input_types(self, signature: str) -> dict[str, np.dtype[Any]]:
        return {name: DTYPES[port.code] for name, port in self.signatures[signature].inputs.items()}

    def run(self, signature: str, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
        (array,) = inputs.values()
        self.runs.append((signature, array.shape[0] if array.ndim else -1))
        self.inputs.append(inputs)
        outputs = FUNCTIONS[signature](array)
        return {name: outputs[name] for name in wanted}


class Joined(NamedTuple):
    """A runner, and what its servable noted."""

    runner: Runner
    notes: Notes


def joining(parameters: BatchingParameters | None = None, **changed: Any) -> Joined:
    """Return a runner that joins requests, or with `parameters` None and nothing `changed` one that does not."""
    notes = Notes()
    model: Any = Model("m", 3, notes)  # type: ignore[arg-type]
    return Joined(Runner(model, BatchingParameters(**changed) if changed else parameters), notes)


def call(number: int, *values: float, signature: str = "", array: Array | None = None, deadline: float = 0.0, outputs: tuple[str, ...] = ()) -> Call:
    request = protos.predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name, request.model_spec.signature_name = "m", signature
    request.inputs["x"].CopyFrom(to_proto(np.array(values, np.float32) if array is None else array))
    return Call(number, Kind.PREDICT, deadline, request.SerializeToString())


def rest(number: int, body: Any, kind: Kind = Kind.REST_PREDICT) -> Call:
    return Call(number, kind, 0.0, body if isinstance(body, bytes) else json.dumps(body).encode())


def examples(number: int, kind: Kind, signature: str, count: int) -> Call:
    message = {Kind.CLASSIFY: protos.classification_pb2.ClassificationRequest, Kind.REGRESS: protos.regression_pb2.RegressionRequest}[kind]
    request = message()
    request.model_spec.name, request.model_spec.signature_name = "m", signature
    for _ in range(count):
        request.input.example_list.examples.add()
    return Call(number, kind, 0.0, request.SerializeToString())


def values(answer: Answer) -> Any:
    """Return the values of an answer to `call`, or (code, words) of an error."""
    if answer.code:
        return answer.code, answer.payload.decode()
    response = protos.predict_pb2.PredictResponse.FromString(answer.payload)
    return to_array(response.outputs["y"]).tolist()


def asked(joined: Joined, *calls: Call) -> dict[int, Any]:
    """Return the answers' values by the calls' numbers."""
    answers = joined.runner.answers(calls)
    assert sorted(answer.number for answer in answers) == sorted(one.number for one in calls)
    return {answer.number: values(answer) for answer in answers}


class TestEachByItself:
    def test_every_call_gets_its_own_answer(self) -> None:
        joined = joining()
        assert asked(joined, call(7, 1, 2), call(5, 3), call(6, 4, signature="sum")) == {7: [2, 4], 5: [6], 6: 4}
        assert joined.notes.runs == [(DEFAULT_SIGNATURE, 2), (DEFAULT_SIGNATURE, 1), ("sum", 1)]

    def test_the_answer_says_which_model_gave_it_and_how_long_it_ran(self) -> None:
        (answer,) = joining().runner.answers([call(1, 1)])
        spec = protos.predict_pb2.PredictResponse.FromString(answer.payload).model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == ("m", 3, DEFAULT_SIGNATURE)
        assert 0 <= answer.run_micros < 10_000_000

    def test_an_answer_holds_values_or_where_it_is_told_bytes(self) -> None:
        notes: Any = Notes()
        for as_content in (False, True):
            (answer,) = Runner(Model("m", 3, notes, as_content), None).answers([call(1, 1.5)])
            output = protos.predict_pb2.PredictResponse.FromString(answer.payload).outputs["y"]
            assert (bool(output.tensor_content), list(output.float_val)) == ((True, []) if as_content else (False, [3.0]))

    def test_rest_is_answered_in_json(self) -> None:
        rows, columns = joining().runner.answers([rest(1, {"instances": [1, 2]}), rest(2, {"inputs": [1, 2]})])
        assert (rows.payload, columns.payload) == (b'{"predictions":[2.0,4.0]}', b'{"outputs":[2.0,4.0]}')

    def test_examples_are_classified_and_regressed_by_both_interfaces(self) -> None:
        joined = joining()
        classified, regressed, json_classified, json_regressed = joined.runner.answers(
            [
                examples(1, Kind.CLASSIFY, "classify", 2),
                examples(2, Kind.REGRESS, "regress", 2),
                rest(3, {"signature_name": "classify", "examples": [{}, {}]}, Kind.REST_CLASSIFY),
                rest(4, {"signature_name": "regress", "examples": [{}]}, Kind.REST_REGRESS),
            ]
        )
        result = protos.classification_pb2.ClassificationResponse.FromString(classified.payload).result
        assert [[one.score for one in row.classes] for row in result.classifications] == [[0.0, 0.5]] * 2
        assert [one.value for one in protos.regression_pb2.RegressionResponse.FromString(regressed.payload).result.regressions] == [0.0, 0.0]
        assert json_classified.payload == b'{"results":[[["",0.0],["",0.5]],[["",0.0],["",0.5]]]}'
        assert json_regressed.payload == b'{"results":[0.0]}'

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            (Call(2, Kind.PREDICT, 0.0, b"\x0a\x80"), "is not a tensorflow.serving.PredictRequest"),
            (call(2, 1, outputs=("z",)), "output tensor alias not found in signature: z"),
            (call(2, 1, outputs=("y", "y")), "duplicate output tensor alias: y"),
            (call(2, -1, signature="no_negatives"), "what is given must not be negative"),
            (rest(2, b"{"), "JSON Parse error"),
            (rest(2, {"signature_name": "nothing"}), 'Serving signature name: "nothing" not found in signature def'),
            (rest(2, {"signature_name": "sum", "instances": [1]}), "Tensor name: y has no shape information"),
        ],
    )
    @pytest.mark.parametrize("parameters", [None, BatchingParameters()], ids=["alone", "joined"])
    def test_who_asks_wrongly_is_told_so_and_nobody_else(self, wrong: Call, words: str, parameters: BatchingParameters | None) -> None:
        answers = {answer.number: answer for answer in joining(parameters).runner.answers([call(1, 1), wrong, call(3, 3)])}
        assert (values(answers[1]), values(answers[3])) == ([2], [6])
        assert (answers[2].code, words in answers[2].payload.decode()) == (INVALID, True), answers[2]

    def test_an_unknown_signature_is_a_precondition_as_in_the_original(self) -> None:
        code, words = asked(joining(), call(1, 1, signature="nothing"))[1]
        assert (code, words) == (grpc.StatusCode.FAILED_PRECONDITION.value[0], 'Serving signature key "nothing" not found.')

    @pytest.mark.parametrize("parameters", [None, BatchingParameters()], ids=["alone", "joined"])
    def test_what_nobody_foresaw_is_internal_with_its_reason(self, parameters: BatchingParameters | None) -> None:
        found = asked(joining(parameters), call(1, 1), call(2, 1, signature="unforeseen"), call(3, 1, signature="memory"))
        assert found == {
            1: [2],
            2: (INTERNAL, "RuntimeError: nobody foresaw this"),
            3: (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "The request needs more memory than there is; send it in smaller parts"),
        }

    def test_who_no_longer_waits_is_not_answered_with_a_run(self) -> None:
        joined = joining()
        now = time.monotonic()
        found = asked(joined, call(1, 1, deadline=now - 1), call(2, 2, deadline=now + 100), call(3, 3, deadline=0.0))
        assert found == {1: (grpc.StatusCode.DEADLINE_EXCEEDED.value[0], "The request waited past its deadline"), 2: [4], 3: [6]}
        assert len(joined.notes.runs) == 2


class TestNobodyWaits:
    """What becomes of a call whose client goes away while others are run."""

    @pytest.mark.parametrize("parameters", [None, BatchingParameters()], ids=["alone", "joined"])
    def test_one_that_was_left_is_not_run(self, parameters: BatchingParameters | None) -> None:
        notes = Notes()
        runner = Runner(Model("m", 3, notes), parameters, left={2})  # type: ignore[arg-type]
        found = {answer.number: values(answer) for answer in runner.answers([call(1, 1), call(2, 2), call(3, 3, signature="other")])}
        assert found == {1: [2], 2: (grpc.StatusCode.CANCELLED.value[0], "The client went away"), 3: [6]}
        assert notes.runs == [(DEFAULT_SIGNATURE, 1), ("other", 1)]

    @pytest.mark.parametrize(
        ("calls", "parameters"),
        [
            ([call(1, 1), call(2, 2)], BatchingParameters(max_batch_size=1)),
            ([call(1, 1), call(2, 2, signature="other")], BatchingParameters()),
            ([call(1, 1), call(2, 2)], None),
            ([call(1, 1), call(2, 2, 2)], BatchingParameters(max_batch_size=1, enable_large_batch_splitting=True)),
        ],
        ids=["next batch", "other signature", "alone", "large"],
    )
    def test_one_that_is_left_during_the_run_before_it_is_not_run(self, calls: list[Call], parameters: BatchingParameters | None) -> None:
        left: set[int] = set()

        class Leaving(Notes):
            def run(self, *run: Any) -> dict[str, Array]:
                left.add(2)
                return super().run(*run)

        notes = Leaving()
        first, second = sorted(Runner(Model("m", 3, notes), parameters, left).answers(calls), key=lambda answer: answer.number)  # type: ignore[arg-type]
        assert (values(first), second.code) == ([2], grpc.StatusCode.CANCELLED.value[0])
        assert notes.runs == [(DEFAULT_SIGNATURE, 1)]

    def test_one_whose_deadline_passes_during_the_run_before_it_is_not_run(self) -> None:
        class Slow(Notes):
            def run(self, *run: Any) -> dict[str, Array]:
                time.sleep(0.3)
                return super().run(*run)

        notes = Slow()
        runner = Runner(Model("m", 3, notes), BatchingParameters(max_batch_size=2))  # type: ignore[arg-type]
        until = time.monotonic() + 0.2
        calls = [call(1, 1, 1), call(2, 2, deadline=until), call(3, 3)]
        found = {answer.number: values(answer) for answer in runner.answers(calls)}
        assert found == {1: [2, 2], 2: (grpc.StatusCode.DEADLINE_EXCEEDED.value[0], "The request waited past its deadline"), 3: [6]}
        assert notes.runs == [(DEFAULT_SIGNATURE, 2), (DEFAULT_SIGNATURE, 1)]


class TestTogether:
    def test_calls_that_fit_together_are_one_run_and_each_gets_its_rows(self) -> None:
        joined = joining(BatchingParameters())
        assert asked(joined, call(1, 1), call(2, 2, 3), call(3, 4)) == {1: [2], 2: [4, 6], 3: [8]}
        assert joined.notes.runs == [(DEFAULT_SIGNATURE, 4)]

    def test_one_that_is_to_be_alone_is_joined_with_no_other(self) -> None:
        joined = joining(BatchingParameters())
        assert asked(joined, call(1, 1), call(2, 2)._replace(alone=True), call(3, 3)) == {1: [2], 2: [4], 3: [6]}
        assert sorted(joined.notes.runs) == [(DEFAULT_SIGNATURE, 1), (DEFAULT_SIGNATURE, 2)]

    def test_one_of_a_wrong_shape_is_refused_before_padding_makes_it_fit(self) -> None:
        joined = joining(pad_variable_length_inputs=True)
        port = FLOAT._replace(shape=(-1, 3))
        joined.notes.signatures[DEFAULT_SIGNATURE] = Signature({"x": port}, {"y": FLOAT})
        found = asked(joined, call(1, array=np.ones((1, 3), np.float32)), call(2, array=np.ones((1, 2), np.float32)))
        assert found == {1: [[2, 2, 2]], 2: (INVALID, "Input 'x' has shape [1, 2]; the signature expects [-1, 3] (-1 is any size).")}
        assert joined.notes.runs == [(DEFAULT_SIGNATURE, 1)]

    def test_it_is_known_which_calls_are_worked_on_and_by_which_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        working: dict[int, int] = {}
        seen: list[set[int]] = []

        def look(x: Array) -> dict[str, Array]:
            seen.append({number for number, thread in working.items() if thread == threading.get_ident()})
            return {"y": x}

        monkeypatch.setitem(FUNCTIONS, "other", look)
        for parameters, expected in ((None, [{1}, {2}]), (BatchingParameters(), [{1, 2}])):
            seen.clear()
            calls = [call(1, 1, signature="other"), call(2, 2, signature="other"), call(3, 3, signature="nothing")]
            Runner(Model("m", 3, Notes()), parameters, work=working.__setitem__).answers(calls)  # type: ignore[arg-type]
            assert (seen, working) == (expected, {1: 0, 2: 0, 3: 0})

    def test_both_interfaces_are_joined(self) -> None:
        joined = joining(BatchingParameters())
        first, second = joined.runner.answers([rest(1, {"instances": [1]}), call(2, 2)])
        assert (first.payload, values(second)) == (b'{"predictions":[2.0]}', [4])
        assert joined.notes.runs == [(DEFAULT_SIGNATURE, 2)]

    def test_examples_are_joined(self) -> None:
        joined = joining(BatchingParameters())
        first, second = joined.runner.answers([examples(1, Kind.REGRESS, "regress", 2), examples(2, Kind.REGRESS, "regress", 1)])
        assert joined.notes.runs == [("regress", 3)]
        sizes = [len(protos.regression_pb2.RegressionResponse.FromString(one.payload).result.regressions) for one in (first, second)]
        assert sizes == [2, 1]

    def test_what_is_not_alike_is_not_joined(self) -> None:
        joined = joining(BatchingParameters())
        found = asked(
            joined,
            call(1, 1),
            call(2, array=np.ones((1, 2), np.float32)),
            call(3, 3),
            call(4, 4, signature="other"),
            call(5, array=np.ones((1, 3), np.float32)),
            call(6, array=np.array(5, np.float32)),
        )
        assert found == {1: [2], 2: [[2, 2]], 3: [6], 4: [8], 5: [[2, 2, 2]], 6: 10}
        assert sorted(joined.notes.runs) == [("other", 1), (DEFAULT_SIGNATURE, -1), *[(DEFAULT_SIGNATURE, 1)] * 2, (DEFAULT_SIGNATURE, 2)]

    def test_an_empty_request_is_run_alone(self) -> None:
        joined = joining(BatchingParameters())
        assert asked(joined, call(1), call(2, 2)) == {1: [], 2: [4]}
        assert sorted(joined.notes.runs) == [(DEFAULT_SIGNATURE, 0), (DEFAULT_SIGNATURE, 1)]

    def test_one_bad_request_is_nobody_elses_error(self) -> None:
        joined = joining(BatchingParameters())
        found = asked(joined, *(call(number, value, signature="no_negatives") for number, value in enumerate((1, -1, 2))))
        assert found == {0: [1], 1: (INVALID, "what is given must not be negative"), 2: [2]}
        assert joined.notes.runs == [("no_negatives", 3), *[("no_negatives", 1)] * 3]

    def test_outputs_that_have_not_one_row_for_each_input_row_are_run_alone_and_that_is_remembered(self) -> None:
        joined = joining(BatchingParameters())
        for times, runs in enumerate(([("sum", 3), ("sum", 2), ("sum", 1)], [("sum", 2), ("sum", 1)])):
            joined.notes.runs.clear()
            assert asked(joined, call(1, 1, 2, signature="sum"), call(2, 5, signature="sum")) == {1: 3, 2: 5}, times
            assert joined.notes.runs == runs
        assert asked(joined, call(1, 1), call(2, 2)) == {1: [2], 2: [4]}
        assert joined.notes.runs[-1] == (DEFAULT_SIGNATURE, 2)  # another signature is still joined

    def test_the_output_of_one_row_alone_is_not_taken_for_one_of_every_row(self) -> None:
        joined = joining(BatchingParameters())
        assert asked(joined, call(1, 1, 2, signature="first"), call(2, 5, signature="first")) == {1: [1], 2: [5]}

    def test_several_inferences_of_one_request_are_run_alone(self) -> None:
        request = protos.inference_pb2.MultiInferenceRequest()
        for method in ("classify", "regress"):
            task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
            task.model_spec.name, task.model_spec.signature_name = "m", method
        request.input.example_list.examples.add()
        joined = joining(BatchingParameters())
        multi = Call(1, Kind.MULTI_INFERENCE, 0.0, request.SerializeToString())
        answers = joined.runner.answers([multi, examples(2, Kind.REGRESS, "regress", 1), multi._replace(number=3)])
        assert [answer.code for answer in answers] == [OK] * 3
        assert sorted(joined.notes.runs) == [("classify", 1)] * 2 + [("regress", 1)] * 3
        results = protos.inference_pb2.MultiInferenceResponse.FromString(answers[0].payload).results
        assert [result.WhichOneof("result") for result in results] == ["classification_result", "regression_result"]

    def test_one_task_alone_is_joined_like_any_request(self) -> None:
        request = protos.inference_pb2.MultiInferenceRequest()
        spec = request.tasks.add(method_name="tensorflow/serving/regress").model_spec
        spec.name, spec.signature_name = "m", "regress"
        request.input.example_list.examples.add()
        joined = joining(BatchingParameters())
        joined.runner.answers([Call(1, Kind.MULTI_INFERENCE, 0.0, request.SerializeToString()), examples(2, Kind.REGRESS, "regress", 1)])
        assert joined.notes.runs == [("regress", 2)]

    def test_requests_that_cannot_be_joined_for_want_of_memory_are_answered_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(batching, "joined", lambda requests, parameters: raising(MemoryError("no room"))(np.zeros(0)))
        joined = joining(BatchingParameters())
        assert asked(joined, call(1, 1), call(2, 2)).keys() == {1, 2}


class TestSizes:
    def test_no_run_has_more_rows_than_allowed(self) -> None:
        joined = joining(max_batch_size=4)
        calls = [call(number, *range(size)) for number, size in enumerate((2, 2, 3, 1, 4, 1))]
        found = asked(joined, *calls)
        assert [len(found[number]) for number in range(6)] == [2, 2, 3, 1, 4, 1]
        assert [rows for _, rows in joined.notes.runs] == [4, 4, 4, 1]

    def test_one_that_is_too_large_is_refused_and_the_others_answered(self) -> None:
        joined = joining(max_batch_size=4)
        found = asked(joined, call(1, 1), call(2, *range(5)), call(3, 3))
        assert found == {1: [2], 2: (INVALID, "Task size 5 is larger than maximum input batch size 4"), 3: [6]}

    def test_a_batch_is_padded_to_the_next_allowed_size_and_answers_are_not(self) -> None:
        joined = joining(max_batch_size=8, allowed_batch_sizes=(2, 4, 8))
        assert asked(joined, call(1, 1), call(2, 2, 3)) == {1: [2], 2: [4, 6]}
        assert asked(joined, call(1, *range(5))) == {1: [0, 2, 4, 6, 8]}
        assert asked(joined, call(1, 1)) == {1: [2]}
        assert [rows for _, rows in joined.notes.runs] == [4, 8, 2]

    def test_what_fails_only_for_its_padding_is_run_as_it_came(self) -> None:
        joined = joining(max_batch_size=4, allowed_batch_sizes=(4,))
        assert asked(joined, call(1, 1, 2, signature="sum")) == {1: 3}
        assert joined.notes.runs == [("sum", 4), ("sum", 2)]

    def test_a_large_request_is_split_where_that_is_enabled_and_answered_whole(self) -> None:
        joined = joining(max_batch_size=8, enable_large_batch_splitting=True, max_execution_batch_size=3)
        assert asked(joined, call(1, 9), call(2, *range(8)), call(3, 7)) == {1: [18], 2: [2 * value for value in range(8)], 3: [14]}
        assert sorted(rows for _, rows in joined.notes.runs) == [1, 1, 2, 3, 3]

    def test_a_bad_row_in_one_of_its_parts_is_the_large_requests_error(self) -> None:
        joined = joining(max_batch_size=2, enable_large_batch_splitting=True)
        found = asked(joined, call(1, 1, 2, 3, -4, 5, signature="no_negatives"), call(2, 1, signature="no_negatives"))
        assert found == {1: (INVALID, "what is given must not be negative"), 2: [1]}

    def test_the_parts_of_a_large_request_have_allowed_sizes(self) -> None:
        joined = joining(max_batch_size=8, enable_large_batch_splitting=True, max_execution_batch_size=4, allowed_batch_sizes=(2, 4))
        assert asked(joined, call(1, *range(7))) == {1: [2 * value for value in range(7)]}
        assert [rows for _, rows in joined.notes.runs] == [4, 4]

    def test_a_large_request_to_a_signature_of_one_scalar_is_answered_or_refused(self) -> None:
        joined = joining(max_batch_size=2, enable_large_batch_splitting=True)
        found = asked(joined, call(1, 1, 2, 3, signature="sum"), call(2, 1))
        assert found[2] == [2]
        assert found[1] == 6 or isinstance(found[1], tuple)  # an error

    def test_a_large_request_to_a_signature_that_cannot_be_split_is_not_answered_wrongly(self) -> None:
        joined = joining(max_batch_size=2, enable_large_batch_splitting=True)
        found = asked(joined, call(1, 1, 2, 3, signature="first"))
        assert found[1] == [1] or isinstance(found[1], tuple)  # an error

    def test_inputs_of_different_lengths_are_joined_where_padding_is_enabled(self) -> None:
        joined = joining(pad_variable_length_inputs=True)
        found = asked(joined, call(1, array=np.ones((1, 1), np.float32)), call(2, array=np.ones((1, 3), np.float32)))
        assert found == {1: [[2, 0, 0]], 2: [[2, 2, 2]]}  # as the original answers
        assert joined.notes.runs == [(DEFAULT_SIGNATURE, 2)]


class TestManyThreads:
    def test_the_longest_run_under_way_is_known_and_forgotten_when_it_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begun, end = threading.Barrier(3), threading.Event()

        def wait(x: Array) -> dict[str, Array]:
            begun.wait(10)
            end.wait(10)
            return {"y": x}

        monkeypatch.setitem(FUNCTIONS, "other", wait)
        runner = joining().runner
        assert runner.longest()[0] == 0.0
        threads = [threading.Thread(target=runner.answers, args=([call(number, 1, signature="other")],)) for number in range(2)]
        for thread in threads:
            thread.start()
        begun.wait(10)
        first = runner.longest()[0]
        time.sleep(0.02)
        assert runner.longest()[0] >= first + 0.02 > 0.0
        runner.answers([call(1, 1), call(2, 1, signature="unforeseen")])
        assert runner.longest()[0] >= first + 0.02  # what began and ended meanwhile changes nothing
        end.set()
        for thread in threads:
            thread.join()
        assert runner.longest()[0] == 0.0

    def test_threads_that_answer_at_once_do_not_mix_their_answers(self) -> None:
        runner = joining(BatchingParameters()).runner
        wrong: list[Any] = []

        def ask(base: int) -> None:
            for number in range(50):
                calls = [call(base + number + offset, base + number + offset, signature=("", "sum")[offset % 2]) for offset in range(4)]
                for answer in runner.answers(calls):
                    expected = [2.0 * answer.number] if (answer.number - base - number) % 2 == 0 else float(answer.number)
                    if values(answer) != expected:
                        wrong.append((answer, expected))

        threads = [threading.Thread(target=ask, args=(1000 * number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_a_refusal_keeps_its_code_and_its_words() -> None:
    assert (str(Refusal(grpc.StatusCode.ABORTED, "words")), Refusal(grpc.StatusCode.ABORTED, "words").http_status) == ("words", 409)
