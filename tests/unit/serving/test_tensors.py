"""Tensors to arrays and back, in both forms, and as TensorFlow itself reads and writes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from airflow_mlops.exceptions import SpecError
from airflow_mlops.serving import protos, tensors
from airflow_mlops.serving.tensors import CODES, DT_STRING, DTYPES, Array, to_array, to_proto, type_name

TYPES = protos.types_pb2
NUMBERS = {code: dtype for code, dtype in DTYPES.items() if code != DT_STRING}
KNOWN_TO_NUMPY = [dtype for dtype in NUMBERS.values() if dtype.name != "bfloat16"]
FORMS = pytest.mark.parametrize("as_content", [True, False], ids=["as content", "as values"])
EVERY_NUMBER = pytest.mark.parametrize("code", NUMBERS, ids=type_name)
SHAPES = numpy_st.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
TensorProto: Any = protos.tensor_pb2.TensorProto


def tensor(code: int, *shape: int, **fields: Any) -> Any:
    message = TensorProto(dtype=code, **fields)
    message.tensor_shape.SetInParent()
    for size in shape:
        message.tensor_shape.dim.add(size=size)
    return message


def sample(dtype: np.dtype[Any], shape: tuple[int, ...] = (2, 3)) -> Array:
    """Return an array of bit patterns that differ, among them the type's largest and odd ones."""
    size = int(np.prod(shape)) * dtype.itemsize
    if dtype.kind == "b":
        return (np.arange(int(np.prod(shape))) % 2).astype(bool).reshape(shape)
    content = bytes((37 * number + 255) % 256 for number in range(size))
    return np.frombuffer(content, dtype).reshape(shape)


def same(left: Array, right: Array) -> None:
    assert (left.dtype, left.shape) == (right.dtype, right.shape)
    assert left.tobytes() == right.tobytes() if left.dtype.kind != "O" else left.tolist() == right.tolist()


@pytest.mark.parametrize("strings", [[], [b""], [b"a", b"", b"\x00\xff"], [b"x" * 127, b"y" * 128, b"z" * 20_000]])
def test_strings_may_come_as_tensorflow_packs_them(strings: list[bytes]) -> None:
    def varint(number: int) -> bytes:
        return bytes([number]) if number < 128 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)

    content = b"".join(varint(len(string)) for string in strings) + b"".join(strings)
    assert to_array(tensor(DT_STRING, len(strings), tensor_content=content)).tolist() == strings


@FORMS
@EVERY_NUMBER
def test_every_type_comes_back_bit_by_bit(code: int, as_content: bool) -> None:
    for shape in ((2, 3), (), (0,), (2, 0, 3), (1, 1, 1, 4)):
        array = sample(DTYPES[code], shape)
        message = to_proto(array, as_content=as_content)
        assert message.dtype == code
        assert bool(message.tensor_content) == (as_content and array.size > 0)
        same(to_array(TensorProto.FromString(message.SerializeToString())), array)


@FORMS
@pytest.mark.parametrize("code", [TYPES.DT_FLOAT, TYPES.DT_DOUBLE, TYPES.DT_HALF, TYPES.DT_BFLOAT16], ids=type_name)
def test_nan_and_infinity_come_back(code: int, as_content: bool) -> None:
    array = np.array([np.nan, np.inf, -np.inf, -0.0]).astype(DTYPES[code])
    same(to_array(to_proto(array, as_content=as_content)), array)


@given(st.sampled_from(KNOWN_TO_NUMPY).flatmap(lambda kind: numpy_st.arrays(kind, SHAPES)), st.booleans())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_array_comes_back(array: Array, as_content: bool) -> None:
    same(to_array(to_proto(array, as_content=as_content)), array)


@given(st.lists(st.binary(max_size=8), min_size=4, max_size=4))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_strings_come_back_as_bytes(values: list[bytes]) -> None:
    array: Array = np.empty(4, object)
    array[:] = values
    same(to_array(to_proto(array.reshape(2, 2))), array.reshape(2, 2))


def test_text_is_sent_as_utf8_from_every_kind_of_array() -> None:
    for array in (np.array(["é", "b"]), np.array(["é", "b"], object), np.array(["é".encode(), b"b"])):
        assert to_array(to_proto(array)).tolist() == ["é".encode(), b"b"]


@FORMS
def test_an_array_that_does_not_lie_in_one_piece_is_sent_in_its_order(as_content: bool) -> None:
    array = np.arange(12, dtype=np.int64).reshape(3, 4)
    for view in (array.T, array[::2], array[:, ::-1], np.asfortranarray(array), np.broadcast_to(array[0], (2, 4))):
        assert np.array_equal(to_array(to_proto(view, as_content=as_content)), view)


@pytest.mark.parametrize("dtype", [np.dtype("datetime64[s]"), np.dtype(">f4"), np.dtype(np.longdouble), np.dtype([("a", int)])], ids=str)
def test_an_array_that_tensorflow_has_no_type_for_is_refused(dtype: np.dtype[Any]) -> None:
    with pytest.raises(SpecError, match="cannot be sent to a model server"):
        to_proto(np.zeros(2, dtype))


class TestFewerValuesThanTheShapeHolds:
    """A TensorProto may leave values out: the last one is repeated, and none at all are zeros."""

    @EVERY_NUMBER
    def test_the_last_value_is_repeated(self, code: int) -> None:
        short = to_proto(sample(DTYPES[code], (2,)), as_content=False)
        short.tensor_shape.dim[0].size = 5
        expected = sample(DTYPES[code], (2,))[[0, 1, 1, 1, 1]]
        same(to_array(short), expected)

    @EVERY_NUMBER
    def test_none_at_all_are_zeros(self, code: int) -> None:
        same(to_array(tensor(code, 2, 2)), np.zeros((2, 2), DTYPES[code]))

    def test_strings_are_repeated_and_empty_too(self) -> None:
        assert to_array(tensor(DT_STRING, 3, string_val=[b"a", b"b"])).tolist() == [b"a", b"b", b"b"]
        assert to_array(tensor(DT_STRING, 2)).tolist() == [b"", b""]

    def test_a_scalar_takes_one_value_or_none(self) -> None:
        assert to_array(tensor(TYPES.DT_FLOAT, float_val=[1.5])).tolist() == 1.5
        assert to_array(tensor(TYPES.DT_FLOAT)).tolist() == 0.0

    def test_no_shape_at_all_is_a_scalar(self) -> None:
        assert to_array(TensorProto(dtype=TYPES.DT_INT32, int_val=[7])).shape == ()

    def test_few_bytes_do_not_stand_for_more_values_than_a_request_may_cost(self) -> None:
        most = tensors._MAX_REPEATED
        assert most * 16 <= 1 << 30  # bytes of the largest type
        assert to_array(tensor(TYPES.DT_BOOL, most, bool_val=[True])).size == most
        for shape in ((most + 1,), (1 << 40,), (1 << 31, 1 << 31)):
            with pytest.raises(ValueError, match="it has 1 values, its shape holds"):
                to_array(tensor(TYPES.DT_BOOL, *shape, bool_val=[True]))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (tensor(TYPES.DT_FLOAT, 2, float_val=[1, 2, 3]), r"it has 3 values, its shape \[2\] holds 2"),
        (tensor(TYPES.DT_FLOAT, 0, float_val=[1]), r"it has 1 values, its shape \[0\] holds 0"),
        (tensor(TYPES.DT_COMPLEX64, 1, scomplex_val=[1, 2, 3, 4]), "it has 2 values"),
        (tensor(TYPES.DT_STRING, 1, string_val=[b"a", b"b"]), "it has 2 values"),
        (tensor(TYPES.DT_FLOAT, 2, tensor_content=b"abc"), r"has 3 bytes, its shape \[2\] of float32 needs 8"),
        (tensor(TYPES.DT_FLOAT, 0, tensor_content=b"abcd"), "has 4 bytes"),
        (tensor(TYPES.DT_STRING, 2, tensor_content=b"\x01"), "holds 1 lengths of strings, its shape 2 strings"),
        (tensor(TYPES.DT_STRING, 1, tensor_content=b"\x80\x80\x80\x80\x80\x80"), "holds 0 lengths"),
        (tensor(TYPES.DT_STRING, 2, tensor_content=b"\x01\x02ab"), "has 2 bytes of strings, their lengths need 3"),
        (tensor(TYPES.DT_STRING, 1, tensor_content=b"\x01ab"), "has 2 bytes of strings, their lengths need 1"),
        (tensor(TYPES.DT_FLOAT, -1, float_val=[1]), r"its shape \[-1\] is not fully defined"),
        (tensor(TYPES.DT_FLOAT, 1 << 32, 1 << 32, float_val=[1]), "holds too many values"),
        (tensor(TYPES.DT_INVALID, 1), "its type DT_INVALID is not supported"),
        (tensor(TYPES.DT_VARIANT, 1), "its type DT_VARIANT is not supported"),
        (tensor(TYPES.DT_QINT8, 1), "its type DT_QINT8 is not supported"),
        (tensor(TYPES.DT_FLOAT_REF, 1), "its type DT_FLOAT_REF is not supported"),
        (tensor(999, 1), "its type 999 is not supported"),
    ],
)
def test_a_message_that_is_no_tensor_is_refused_with_a_reason(message: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_array(message)


def test_a_shape_of_unknown_rank_is_refused() -> None:
    message = TensorProto(dtype=TYPES.DT_FLOAT, float_val=[1])
    message.tensor_shape.unknown_rank = True
    with pytest.raises(ValueError, match="is not fully defined"):
        to_array(message)


@given(
    code=st.sampled_from([*DTYPES, 0, 21, 101, 999]),
    shape=st.lists(st.one_of(st.integers(-2, 4), st.sampled_from([2**31, 2**62, 2**63 - 1])), max_size=4),
    content=st.binary(max_size=20),
    values=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_message_is_an_array_of_its_shape_or_a_value_error(code: int, shape: list[int], content: bytes, values: list[int]) -> None:
    fields = dict.fromkeys(("float_val", "double_val", "int_val", "int64_val", "half_val", "scomplex_val", "dcomplex_val"), values)
    message = tensor(code, *shape, tensor_content=content, bool_val=map(bool, values), uint64_val=map(abs, values), **fields)
    try:
        array = to_array(message)
    except ValueError:
        return
    assert (array.dtype, array.shape) == (DTYPES[code], tuple(shape))


@pytest.mark.parametrize("dims", [33, 64, 65, 300])
def test_a_shape_of_many_dimensions_is_an_array_or_a_value_error(dims: int) -> None:
    message = tensor(TYPES.DT_FLOAT, *[1] * dims, float_val=[1])
    if dims <= 64:
        assert to_array(message).ndim == dims
    else:
        with pytest.raises(ValueError):
            to_array(message)


def test_small_integers_are_cut_to_what_they_hold() -> None:
    """Their field is wider than they are: TensorFlow casts."""
    assert to_array(tensor(TYPES.DT_INT8, 3, int_val=[127, 128, -129])).tolist() == [127, -128, 127]
    assert to_array(tensor(TYPES.DT_UINT8, 3, int_val=[255, 256, -1])).tolist() == [255, 0, 255]
    assert to_array(tensor(TYPES.DT_UINT16, 2, int_val=[65536, -1])).tolist() == [0, 65535]


def test_codes_and_types_are_each_others_inverse() -> None:
    assert {CODES[dtype]: dtype for dtype in CODES} == DTYPES
    assert type_name(TYPES.DT_BFLOAT16) == "DT_BFLOAT16"
    assert type_name(12345) == "12345"


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from airflow_mlops.serving import protos  # before TensorFlow, as its docstring asks for
import numpy as np
import tensorflow as tf
from airflow_mlops.serving import tensors

wrong, seen = [], 0
def check(what, got, expected):
    global seen
    seen += 1
    got, expected = np.asarray(got), np.asarray(expected)
    if (got.dtype, got.shape) != (expected.dtype, expected.shape) or got.tolist() != expected.tolist():
        wrong.append(f"{what}: {got!r} instead of {expected!r}")

for code, dtype in tensors.DTYPES.items():
    array = np.array([[1, 0, 1], [0, 1, 1]]).astype(dtype)
    if code == tensors.DT_STRING:
        array = np.array([[b"a", b""], [b"\\\\xff", b"long " * 9]], object)
    for as_content in (True, False):
        ours = tensors.to_proto(array, as_content=as_content)
        check(f"TensorFlow reads our {dtype}", tf.make_ndarray(ours), array)
        check(f"TensorFlow runs our {dtype}", tf.io.parse_tensor(ours.SerializeToString(), tf.as_dtype(code)).numpy(), array)
    check(f"we read TensorFlow's {dtype}", tensors.to_array(tf.make_tensor_proto(array, dtype=tf.as_dtype(code))), array)
    for count in (0, 1, 2):
        ours = tensors.to_proto(array.ravel()[:count], as_content=False)
        del ours.tensor_shape.dim[:]
        for size in (2, 3):
            ours.tensor_shape.dim.add(size=size)
        check(f"{count} of 6 {dtype}", tensors.to_array(ours), tf.io.parse_tensor(ours.SerializeToString(), tf.as_dtype(code)).numpy())
print(seen, "checks;", "; ".join(wrong) or "all right")
"""


def test_tensorflow_reads_ours_and_we_read_tensorflows(tmp_path: Path) -> None:
    """In a process of its own: TensorFlow is nothing that the processes of the tests need."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(Path(__file__).parents[3])], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == f"{8 * len(DTYPES)} checks; all right", done.stdout + done.stderr[-2000:]
