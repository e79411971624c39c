from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airflow_mlops.exceptions import PublishError, SpecError
from airflow_mlops.serving import protos, tensors, warmup
from tests.bare_saved_models import ROWS, golden, signature, tensor

# What tf.io.TFRecordWriter of TensorFlow 2.21 writes of an empty PredictionLog and of one request of one row.
TENSORFLOWS = bytes.fromhex(
    "000000000000000029039807d8ea82a2"
    "440000000000000043592e9a32420a400a190a066469676974731a0f73657276696e675f64656661756c7412230a0178121e08011208120208011202080422100000803f"
    "00000040000040400000804073b4ad4b"
)
SECOND = 16  # where the second of these two records begins
BODY = SECOND + 12  # and its bytes


def requests(path: Path, signature_def: Any, rows: Any = ROWS) -> list[dict[str, np.ndarray[Any, Any]]]:
    logs = warmup.from_golden(golden(path, rows), signature_def, "digits")
    return [{name: tensors.to_array(value) for name, value in log.predict_log.request.inputs.items()} for log in logs]


def test_what_is_written_is_what_tensorflow_writes_and_what_is_read_again(tmp_path: Path) -> None:
    one_row = warmup.from_golden(golden(tmp_path / "golden.json", ROWS[:1]), signature(), "digits")
    logs = [protos.prediction_log_pb2.PredictionLog(), *one_row]
    warmup.write(tmp_path / "requests", logs)
    assert (tmp_path / "requests").read_bytes() == TENSORFLOWS
    assert warmup.read(tmp_path / "requests") == logs


def test_a_file_without_requests_is_no_error(tmp_path: Path) -> None:
    warmup.write(tmp_path / "requests", [])
    assert warmup.read(tmp_path / "requests") == []


@pytest.mark.parametrize("at", range(len(TENSORFLOWS)))
def test_any_altered_byte_is_found(tmp_path: Path, at: int) -> None:
    data = bytearray(TENSORFLOWS)
    data[at] ^= 1
    (tmp_path / "requests").write_bytes(data)
    begin = SECOND if at >= SECOND else 0
    where = begin if at - begin < 12 else begin + 12
    with pytest.raises(PublishError, match=f"at byte {where} .*does not fit its checksum"):
        warmup.read(tmp_path / "requests")


@pytest.mark.parametrize(("length", "at"), [(1, 0), (SECOND - 1, 12), (SECOND + 5, SECOND), (BODY, BODY), (len(TENSORFLOWS) - 1, BODY)])
def test_a_file_that_ends_too_early_is_found(tmp_path: Path, length: int, at: int) -> None:
    (tmp_path / "requests").write_bytes(TENSORFLOWS[:length])
    with pytest.raises(PublishError, match=f"at byte {at} the file ends within"):
        warmup.read(tmp_path / "requests")


def test_a_record_of_another_kind_and_records_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(warmup._framed(b"no log"))
    with pytest.raises(PublishError, match="at byte 0 the record is no PredictionLog"):
        warmup.read(tmp_path / "other")
    (tmp_path / "many").write_bytes(TENSORFLOWS[:SECOND] * 1000)
    assert len(warmup.read(tmp_path / "many")) == 1000
    (tmp_path / "many").write_bytes(TENSORFLOWS[:SECOND] * 1001)
    with pytest.raises(PublishError, match="more than the 1000 records"):
        warmup.read(tmp_path / "many")
    with pytest.raises(SpecError, match="1001 warm-up requests are too many"):
        warmup.write(tmp_path / "written", [protos.prediction_log_pb2.PredictionLog()] * 1001)


def test_golden_rows_become_a_request_of_one_and_one_of_all(tmp_path: Path) -> None:
    one, all_ = requests(tmp_path / "golden.json", signature())
    np.testing.assert_array_equal(one["x"], np.array(ROWS[:1], np.float32))
    np.testing.assert_array_equal(all_["x"], np.array(ROWS, np.float32))
    (only,) = requests(tmp_path / "golden.json", signature(), ROWS[:1])
    assert only["x"].shape == (1, 4)
    assert [len(request["x"]) for request in requests(tmp_path / "golden.json", signature(), ROWS * 20)] == [1, 32]


@pytest.mark.parametrize("dtype", ["DT_DOUBLE", "DT_HALF", "DT_BFLOAT16", "DT_INT64", "DT_UINT8"])
def test_requests_have_the_type_of_the_signature(tmp_path: Path, dtype: str) -> None:
    (request, _) = requests(tmp_path / "golden.json", signature({"x": tensor(dtype)}), [[1.0, 2.0, 3.0, 4.0]] * 2)
    assert request["x"].dtype == tensors.DTYPES[protos.types_pb2.DataType.Value(dtype)]


def test_a_fixed_batch_is_asked_with_that_many_rows(tmp_path: Path) -> None:
    (request,) = requests(tmp_path / "golden.json", signature({"x": tensor(shape=(3, 4))}))
    np.testing.assert_array_equal(request["x"], np.array([*ROWS, ROWS[0]], np.float32))


def test_several_inputs_are_taken_by_their_names(tmp_path: Path) -> None:
    two = signature({"left": tensor(shape=(-1, 2)), "right": tensor("DT_INT32", (-1,))})
    one, all_ = requests(tmp_path / "golden.json", two, [{"left": [1.0, 2.0], "right": 3}, {"left": [4.0, 5.0], "right": 6}])
    assert {name: value.tolist() for name, value in one.items()} == {"left": [[1.0, 2.0]], "right": [3]}
    assert {name: value.tolist() for name, value in all_.items()} == {"left": [[1.0, 2.0], [4.0, 5.0]], "right": [3, 6]}
    assert requests(tmp_path / "golden.json", signature({"x": tensor(shape=(-1, 1))}), [{"x": [7.0]}])[0]["x"].tolist() == [[7.0]]


def test_texts_and_bytes_become_strings(tmp_path: Path) -> None:
    text = signature({"x": tensor("DT_STRING", (-1,))})
    assert requests(tmp_path / "golden.json", text, ["grün"])[0]["x"].tolist() == ["grün".encode()]
    assert requests(tmp_path / "golden.json", text, [{"b64": base64.b64encode(b"\xff").decode()}])[0]["x"].tolist() == [b"\xff"]


@pytest.mark.parametrize(
    ("inputs", "rows", "words"),
    [
        ({"x": tensor()}, [[1.0, 2.0]], r"its rows have shape \[2\], and input 'x' takes DT_FLOAT\[-1, 4\]"),
        ({"x": tensor()}, [1.0], r"its rows have shape \[\]"),
        ({"x": tensor(shape=())}, [1.0], r"its rows have shape \[\], and input 'x' takes DT_FLOAT\[\]"),
        ({"x": tensor()}, [[1.0, 2.0, 3.0, 4.0], [1.0]], "its rows give no DT_FLOAT for input 'x'"),
        ({"x": tensor()}, [["1", "2", "3", "4"]], "its rows give no DT_FLOAT for input 'x'"),
        ({"x": tensor()}, [[None, 1.0, 1.0, 1.0]], "its rows give no DT_FLOAT for input 'x'"),
        ({"x": tensor("DT_INT32")}, [[1.5, 0.0, 0.0, 0.0]], "its rows give no DT_INT32 for input 'x'"),
        ({"x": tensor("DT_UINT8")}, [[256, 0, 0, 0]], "its rows give no DT_UINT8 for input 'x'"),
        ({"x": tensor("DT_RESOURCE")}, [[1.0]], "its rows give no DT_RESOURCE for input 'x'"),
        ({"x": tensor("DT_STRING", (-1,))}, [{"b64": "%"}], "its rows give no DT_STRING for input 'x'"),
        ({"a": tensor(), "b": tensor()}, [[1.0]], "its rows are no objects by input name, and the signature has 2 inputs"),
        ({"a": tensor(), "b": tensor()}, [{"a": [1.0] * 4}], "its rows give no DT_FLOAT for input 'b'"),
        ({"a": tensor(shape=(2, 1)), "b": tensor(shape=(3, 1))}, [{"a": [1.0], "b": [1.0]}], r"its inputs want \[2, 3\] rows at the same time"),
        ({"x": tensor()}, [], r"golden\.json must be .* and not empty"),
    ],
)
def test_rows_that_the_signature_does_not_take_are_refused(tmp_path: Path, inputs: dict[str, Any], rows: Any, words: str) -> None:
    with pytest.raises(PublishError, match=words):
        requests(tmp_path / "golden.json", signature(inputs), rows)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"inputs": 3, "outputs": [3]}', '{"inputs": [3]}'])
def test_a_golden_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "golden.json").write_text(content)
    with pytest.raises(PublishError, match=r"The golden answers .*golden\.json (cannot be read: .*|must be .*)\. Run the training stage again"):
        warmup.from_golden(tmp_path / "golden.json", signature(), "digits")
