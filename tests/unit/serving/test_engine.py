"""Real SavedModels in TensorFlow's library, in this very process; what each of them answers stands in `tests.serving_models`."""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded.engine import Servable
from airflow_mlops.serving.embedded.refusal import Refusal
from airflow_mlops.serving.embedded.tensorflow_c import Session, TensorFlowError, load_library
from airflow_mlops.serving.signatures import DEFAULT_SIGNATURE
from airflow_mlops.serving.tensors import Array, to_proto
from tests.serving_models import NUMBERS, ROW

CONFIG = protos.config_pb2.ConfigProto(device_count={"GPU": 0}).SerializeToString()
Load = Callable[[str], Servable]
CODE = {code.value[0]: code for code in grpc.StatusCode}


@pytest.fixture(scope="module")
def load(serving_models: Path) -> Load:
    """Return a model by its name; a session lives as long as its process, so each is loaded once."""
    return functools.cache(lambda name: Servable(serving_models / name, ("serve",), CONFIG))


@pytest.fixture(scope="module")
def many(load: Load) -> Servable:
    return load("many")


def floats(*values: Any) -> Array:
    return np.array(values, np.float32)


def strings(*values: Any) -> Array:
    return np.array(values, object)


def refused(servable: Servable, signature: str, inputs: dict[str, Array], wanted: tuple[str, ...] = ("y",)) -> Refusal:
    with pytest.raises(Refusal) as caught:
        servable.run(signature, inputs, wanted)
    return caught.value


def test_a_model_answers_by_its_signature(load: Load) -> None:
    assert load("linear1").run(DEFAULT_SIGNATURE, {"x": floats(ROW)}, ("output_0",))["output_0"].tolist() == [[4.0, 5.0]]
    found = load("two").run(DEFAULT_SIGNATURE, {"right": floats([3]), "left": floats([1, 2])}, ("right", "both"))
    assert {name: array.tolist() for name, array in found.items()} == {"right": [[3.0]], "both": [[1.0, 2.0, 3.0]]}


def test_only_the_outputs_that_are_wanted_are_fetched(load: Load) -> None:
    assert load("two").run(DEFAULT_SIGNATURE, {"left": floats([1, 2]), "right": floats([3])}, ("right",)).keys() == {"right"}


def test_a_model_of_tensorflow_1_fills_its_tables_from_its_own_assets(load: Load) -> None:
    def example(x: float, word: str) -> bytes:
        message = protos.example_pb2.Example()
        message.features.feature["x"].float_list.value.append(x)
        message.features.feature["word"].bytes_list.value.append(word.encode())
        return bytes(message.SerializeToString())

    found = load("examples1").run("regress", {"inputs": strings(example(1, "good"), example(2, "bad"), example(3, "other"))}, ("outputs",))
    assert found["outputs"].ravel().tolist() == [3.0, 4.0, 5.0]


@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 0, 3), (1, 2, 1, 2)], ids=str)
@pytest.mark.parametrize("name", [*NUMBERS, "bool"])
def test_arrays_of_every_type_and_shape_go_in_and_come_out(many: Servable, name: str, shape: tuple[int, ...]) -> None:
    special: dict[str, Any] = {"half": np.float16, "bfloat16": ml_dtypes.bfloat16, "bool": np.bool_}
    array = (np.arange(np.prod(shape)) % 2).reshape(shape).astype(special.get(name, name))
    found = many.run(f"echo_{name}", {"x": array}, ("y",))["y"]
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()


def test_strings_of_every_length_and_content_go_in_and_come_out(many: Servable) -> None:
    """22 bytes is where TensorFlow begins to put them elsewhere."""
    values = [b"", b"a", b"\x00\xff", "é".encode(), b"x" * 22, b"x" * 23, b"x" * 24, b"y" * 100_000]
    array = strings(*values, *values).reshape(2, len(values))
    assert many.run("echo_string", {"x": array}, ("y",))["y"].tolist() == [values, values]
    for shape in ((), (0,), (2, 0)):
        empty = np.full(shape, b"z", object)
        found = many.run("echo_string", {"x": empty}, ("y",))["y"]
        assert (found.shape, found.dtype, found.tolist()) == (shape, empty.dtype, empty.tolist())


def test_an_array_that_does_not_lie_in_one_piece_goes_in_in_its_order(many: Servable) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for view in (array.T, array[::2], array[:, ::-1], np.broadcast_to(array[0], (2, 4))):
        assert np.array_equal(many.run(DEFAULT_SIGNATURE, {"x": view}, ("y",))["y"], view)


def test_what_comes_out_stays_when_others_run(many: Servable) -> None:
    first = many.run(DEFAULT_SIGNATURE, {"x": floats(1, 2, 3)}, ("y",))["y"]
    for _ in range(50):
        many.run(DEFAULT_SIGNATURE, {"x": floats(7, 8, 9)}, ("y",))
    assert first.tolist() == [1, 2, 3]


def test_nan_and_infinity_come_out(many: Servable) -> None:
    found = many.run("unusual", {"x": floats(2)}, ("y",))["y"][0]
    assert (found[0], found[1], np.isnan(found[2]), found[3]) == (np.inf, -np.inf, True, 2.0)


class TestRefusals:
    @pytest.mark.parametrize(
        ("inputs", "words"),
        [
            ({}, "0!=2 len({}) != len({left,right}). Sent extra: {}. Missing but required: {left,right}."),
            ({"left": 1}, "1!=2 len({left}) != len({left,right}). Sent extra: {}. Missing but required: {right}."),
            (
                {"left": 1, "up": 1},
                "Signature input alias: right(feed name: serving_default_right:0) not found in request and no default value provided. "
                "Inputs expected to be in the request {left,up}, or default input alias set: ",
            ),
            ({"left": 1, "right": 1, "up": 1}, "3!=2"),
        ],
    )
    def test_other_inputs_than_the_signatures(self, load: Load, inputs: dict[str, Any], words: str) -> None:
        error = refused(load("two"), DEFAULT_SIGNATURE, dict.fromkeys(inputs, floats([1])), ("right",))
        assert (error.code, words in str(error)) == (grpc.StatusCode.INVALID_ARGUMENT, True), error

    @pytest.mark.parametrize(
        ("array", "words"),
        [
            (np.ones(1), "Expects arg[0] to be float but double is provided: input 'x'"),
            (strings(b"a"), "Expects arg[0] to be float but string is provided: input 'x'"),
            (np.ones(1, ml_dtypes.bfloat16), "Expects arg[0] to be float but bfloat16 is provided: input 'x'"),
        ],
    )
    def test_an_input_of_another_type(self, many: Servable, array: Array, words: str) -> None:
        error = refused(many, DEFAULT_SIGNATURE, {"x": array})
        assert (error.code, str(error)) == (grpc.StatusCode.INVALID_ARGUMENT, words)

    @pytest.mark.parametrize(
        "shape",
        [(), (1,), (0,), (1, 3), (1, 1, 1), (1, 8, 8), (1, 8, 8, 2), (1, 8, 8, 0), (1, 2, 2, 1), (1, 8, 9, 1), (8, 8, 1, 1), (1, 8, 8, 1, 1)],
        ids=str,
    )
    def test_an_input_of_another_shape_never_comes_to_tensorflow_which_would_end_this_process(self, load: Load, shape: tuple[int, ...]) -> None:
        error = refused(load("conv"), DEFAULT_SIGNATURE, {"x": np.ones(shape, np.float32)}, ("scores",))
        words = f"Input 'x' has shape {list(shape)}; the signature expects [-1, 8, 8, 1] (-1 is any size)."
        assert (error.code, str(error)) == (grpc.StatusCode.INVALID_ARGUMENT, words)

    @pytest.mark.parametrize("rows", [0, 1, 5])
    def test_a_size_that_is_open_may_be_any_also_none(self, load: Load, rows: int) -> None:
        found = load("conv").run(DEFAULT_SIGNATURE, {"x": np.ones((rows, 8, 8, 1), np.float32)}, ("scores",))
        assert found["scores"].shape == (rows, 3)

    def test_a_shape_that_the_signature_does_not_expect_is_refused_also_where_the_graph_takes_it(self, many: Servable) -> None:
        """Only the run can tell whether it would."""
        assert "has shape [1, 3]; the signature expects [-1, 2]" in str(refused(many, "narrow", {"x": floats([1, 2, 3])}))

    def test_a_single_number_that_more_than_elementwise_operations_read_is_held_to_its_shape_too(self, load: Load) -> None:
        error = refused(load("two"), DEFAULT_SIGNATURE, {"left": floats([1, 2]), "right": np.ones(1, np.float32)})
        assert "Input 'right' has shape [1]; the signature expects [-1, 1]" in str(error)

    def test_batches_of_different_sizes_are_left_to_the_graph(self, load: Load) -> None:
        """One input may well belong to all rows of another."""
        inputs = {"a": floats([1, 2], [3, 4]), "b": floats([10, 20])}
        assert load("conv").run("pair", inputs, ("sum",))["sum"].tolist() == [[11.0, 22.0], [13.0, 24.0]]
        assert refused(load("conv"), "pair", {**inputs, "b": np.ones((3, 2), np.float32)}, ("sum",)).code is grpc.StatusCode.INVALID_ARGUMENT

    def test_what_an_operation_says_is_passed_on(self, many: Servable) -> None:
        error = refused(many, "refuse", {"x": floats(-1)})
        assert (error.code, "what is given must not be negative" in str(error)) == (grpc.StatusCode.INVALID_ARGUMENT, True)

    def test_a_size_that_nothing_can_have(self, many: Servable) -> None:
        assert refused(many, "zeros", {"n": np.array(-1)}).code is grpc.StatusCode.INVALID_ARGUMENT
        assert many.run("zeros", {"n": np.array(3)}, ("y",))["y"].tolist() == [0, 0, 0]

    def test_no_output_at_all(self, many: Servable) -> None:
        assert refused(many, DEFAULT_SIGNATURE, {"x": floats(1)}, ()).code is grpc.StatusCode.INVALID_ARGUMENT


def test_many_threads_at_once_get_their_own_answers(many: Servable) -> None:
    wrong: list[Any] = []

    def ask(number: int) -> None:
        for _ in range(50):
            found = many.run("text", {"text": strings(*[b"%d" % number] * number)}, ("upper", "raw_bytes"))
            if {name: array.tolist() for name, array in found.items()} != dict.fromkeys(("upper", "raw_bytes"), [b"%d" % number] * number):
                wrong.append(found)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_runs_leave_no_memory_behind(many: Servable) -> None:
    def held() -> int:
        fields = Path("/proc/self/statm").read_text().split()
        return int(fields[1]) * 4096

    def ask(times: int) -> None:
        for _ in range(times):
            many.run("echo_string", {"x": strings(*[b"x" * 100_000] * 10)}, ("y",))
            many.run(DEFAULT_SIGNATURE, {"x": np.zeros(250_000, np.float32)}, ("y",))
            with pytest.raises(Refusal):
                many.run("refuse", {"x": np.full(250_000, -1, np.float32)}, ("y",))

    ask(20)
    before = held()
    ask(100)
    assert held() - before < 50 << 20  # a tenth of what went in


class TestLoading:
    @pytest.mark.parametrize(
        ("name", "code", "words"),
        [
            ("broken_pb", None, ""),  # the words are TensorFlow's, and change
            ("cut_pb", None, ""),
            ("no_pb", grpc.StatusCode.NOT_FOUND, "Could not find SavedModel .pb"),
            ("empty", grpc.StatusCode.NOT_FOUND, "Could not find SavedModel .pb"),
            ("no_variables", grpc.StatusCode.DATA_LOSS, "variables.index is missing"),
            ("cut_variables", None, ""),
            ("missing_op", grpc.StatusCode.NOT_FOUND, "OpOfANewerTensorFlow"),
            ("missing_tensor", grpc.StatusCode.NOT_FOUND, "The graph has no operation 'nowhere'"),
            ("train_only", grpc.StatusCode.NOT_FOUND, "{ serve }"),
        ],
    )
    def test_one_that_cannot_be_loaded_says_why(self, serving_models: Path, name: str, code: grpc.StatusCode | None, words: str) -> None:
        with pytest.raises(TensorFlowError) as error:
            Servable(serving_models / name, ("serve",), CONFIG)
        assert code in (None, CODE[error.value.code]), error.value
        assert words in str(error.value)

    def test_a_graph_is_found_by_exactly_its_tags(self, serving_models: Path) -> None:
        assert Servable(serving_models / "train_only", ("train",), CONFIG).signatures.keys() == {DEFAULT_SIGNATURE, "count"}
        with pytest.raises(TensorFlowError):
            Servable(serving_models / "linear1", ("serve", "gpu"), CONFIG)

    def test_a_configuration_that_is_none_is_refused(self, serving_models: Path) -> None:
        with pytest.raises(TensorFlowError):
            Session(serving_models / "linear1", ("serve",), b"\xff\xff")

    def test_a_library_that_is_none_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "op.so").write_bytes(b"no library")
        for path in (tmp_path / "op.so", tmp_path / "nothing.so"):
            with pytest.raises(TensorFlowError):
                load_library(str(path))


class TestDefaults:
    @pytest.fixture
    def optional(self, serving_models: Path, tmp_path: Path) -> Servable:
        """``two`` whose input ``right`` is 7 where a request does not name it."""
        shutil.copytree(serving_models / "two", tmp_path / "optional")
        path = tmp_path / "optional" / "saved_model.pb"
        message = protos.saved_model_pb2.SavedModel.FromString(path.read_bytes())
        message.meta_graphs[0].signature_def[DEFAULT_SIGNATURE].defaults["right"].CopyFrom(to_proto(floats([7])))
        path.write_bytes(message.SerializeToString())
        return Servable(tmp_path / "optional", ("serve",), CONFIG)

    def test_an_input_with_a_default_need_not_be_given(self, optional: Servable) -> None:
        assert optional.run(DEFAULT_SIGNATURE, {"left": floats([1, 2])}, ("both",))["both"].tolist() == [[1, 2, 7]]
        assert optional.run(DEFAULT_SIGNATURE, {"left": floats([1, 2]), "right": floats([3])}, ("both",))["both"].tolist() == [[1, 2, 3]]

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            ([], "Signature input alias: left(feed name: serving_default_left:0) not found in request and no default value provided."),
            (["right"], "Inputs expected to be in the request {right}, or default input alias set: right"),
            (["left", "up"], "Inputs contains invalid name. Used request inputs: left, request input: left,up"),
            (["left", "right", "up"], "input size does not match signature: 3!=2"),
        ],
    )
    def test_any_other_must_be(self, optional: Servable, names: list[str], words: str) -> None:
        assert words in str(refused(optional, DEFAULT_SIGNATURE, dict.fromkeys(names, floats([1])), ("both",)))


class TestWhatIsNotSupported:
    @pytest.fixture
    def edited(self, serving_models: Path, tmp_path: Path) -> Servable:
        """``linear1`` with further signatures: of a sparse input, of a composite output, and of a type that cannot be sent."""
        shutil.copytree(serving_models / "linear1", tmp_path / "edited")
        path = tmp_path / "edited" / "saved_model.pb"
        message = protos.saved_model_pb2.SavedModel.FromString(path.read_bytes())
        signatures = message.meta_graphs[0].signature_def
        for name in ("sparse_input", "sparse_output", "variant"):
            signatures[name].CopyFrom(signatures[DEFAULT_SIGNATURE])
        signatures["sparse_input"].inputs["x"].coo_sparse.values_tensor_name = "x:0"
        signatures["sparse_output"].outputs["output_0"].composite_tensor.SetInParent()
        signatures["variant"].inputs["x"].dtype = protos.types_pb2.DT_VARIANT
        path.write_bytes(message.SerializeToString())
        return Servable(tmp_path / "edited", ("serve",), CONFIG)

    @pytest.mark.parametrize(
        ("signature", "words"),
        [
            ("sparse_input", "Tensor 'x' is sparse or composite, which this server does not support."),
            ("sparse_output", "Tensor 'output_0' is sparse or composite, which this server does not support."),
            ("variant", "Input 'x' is of type DT_VARIANT, which this server does not support."),
        ],
    )
    def test_it_is_said_when_it_is_asked_for_and_its_neighbours_work(self, edited: Servable, signature: str, words: str) -> None:
        error = refused(edited, signature, {"x": floats(ROW)}, ("output_0",))
        assert (error.code, str(error)) == (grpc.StatusCode.UNIMPLEMENTED, words)
        assert edited.run(DEFAULT_SIGNATURE, {"x": floats(ROW)}, ("output_0",))["output_0"].tolist() == [[4.0, 5.0]]

    def test_its_types_are_refused_before_json_is_read(self, edited: Servable) -> None:
        assert edited.input_types(DEFAULT_SIGNATURE) == {"x": np.dtype(np.float32)}
        with pytest.raises(Refusal, match="DT_VARIANT"):
            edited.input_types("variant")
