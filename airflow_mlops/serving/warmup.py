"""Requests that the server answers before a version becomes available: it loads none that fails on them.

They lie beside the SavedModel as a TFRecord file of at most 1000 `PredictionLog` messages. Written here without TensorFlow: a record is its
length (8 bytes, little-endian), the length's checksum, the bytes and their checksum; checksums are CRC-32C, rotated and shifted by a constant.
Source: tensorflow/core/lib/io/record_writer.h, tensorflow_serving/servables/tensorflow/saved_model_warmup_util.cc.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError

from airflow_mlops.artifacts import write_atomically
from airflow_mlops.exceptions import PublishError, SpecError
from airflow_mlops.serving import protos, tensors
from airflow_mlops.serving.golden import inputs_of, read_golden
from airflow_mlops.serving.signatures import DEFAULT_SIGNATURE, dimensions

WARM_UP = "assets.extra/tf_serving_warmup_requests"  # where the server looks, below the version's directory
MAX_RECORDS = 1000  # the server refuses a version that brings more
MAX_ROWS = 32  # of one request: a usual batch, and no load worth mentioning
_HEADER, _CHECKSUM = struct.Struct("<QI"), struct.Struct("<I")


def write(path: Path, logs: Sequence[Any]) -> None:
    """Write up to 1000 `PredictionLog` messages, all of them or nothing; raise `SpecError` if there are more."""
    if len(logs) > MAX_RECORDS:
        raise SpecError(f"{len(logs)} warm-up requests are too many: the server takes {MAX_RECORDS}. Leave the others out.")
    records = (log.SerializeToString(deterministic=True) for log in logs)
    write_atomically(path, b"".join(_framed(record) for record in records))


def read(path: Path) -> list[Any]:
    """Return the `PredictionLog` messages of a warm-up file; raise `PublishError` naming the byte where it is no longer one."""
    data, start, logs = memoryview(path.read_bytes()), 0, []
    while start < len(data):
        record, end = _record(path, data, start)
        try:
            logs.append(protos.prediction_log_pb2.PredictionLog.FromString(bytes(record)))
        except DecodeError as error:
            raise _corrupt(path, start, "the record is no PredictionLog") from error
        start = end
        if len(logs) > MAX_RECORDS:
            raise _corrupt(path, start, f"there are more than the {MAX_RECORDS} records that the server takes")
    return logs


def from_golden(golden: Path, signature: Any, model: str) -> list[Any]:
    """Return requests to the default signature, a `SignatureDef`, made of the rows in a golden file: one of one row, one of up to 32.

    Raises `PublishError` if the signature does not take such rows.
    """
    rows = read_golden(golden, PublishError)["inputs"]
    try:
        columns = inputs_of(rows, signature)
    except ValueError as error:
        raise _unfit(golden, str(error)) from error
    sizes = {dims[0] for info in signature.inputs.values() if (dims := dimensions(info))} - {-1}
    if len(sizes) > 1:
        raise _unfit(golden, f"its inputs want {sorted(sizes)} rows at the same time")
    sizes = sizes or {1, min(len(rows), MAX_ROWS)}  # a signature of a fixed batch takes no other
    return [_request(model, {name: np.resize(column, (size, *column.shape[1:])) for name, column in columns.items()}) for size in sorted(sizes)]


def _request(model: str, inputs: Mapping[str, tensors.Array]) -> Any:
    log = protos.prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = model, DEFAULT_SIGNATURE
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(tensors.to_proto(array))
    return log


def _unfit(golden: Path, why: str) -> PublishError:
    return PublishError(
        f"No warm-up requests can be made of the golden answers {golden}: {why}. Expected rows that signature {DEFAULT_SIGNATURE!r} takes, as the "
        "training stage records them. Nothing was published; run that stage again."
    )


def _framed(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return b"".join((length, _CHECKSUM.pack(_masked(length)), record, _CHECKSUM.pack(_masked(record))))


def _record(path: Path, data: memoryview, start: int) -> tuple[memoryview, int]:
    """Return the record that begins at `start`, and where the next one does."""
    body = start + _HEADER.size
    if body > len(data):
        raise _corrupt(path, start, "the file ends within the length of a record")
    length, checksum = _HEADER.unpack(data[start:body])
    if checksum != _masked(data[start : start + 8]):
        raise _corrupt(path, start, "the length of a record does not fit its checksum")
    end = body + length + _CHECKSUM.size
    if end > len(data):
        raise _corrupt(path, body, f"the file ends within a record of {length} bytes")
    record = data[body : body + length]
    if _CHECKSUM.unpack(data[body + length : end])[0] != _masked(record):
        raise _corrupt(path, body, f"a record of {length} bytes does not fit its checksum")
    return record, end


def _masked(data: bytes | memoryview) -> int:
    checksum = int(google_crc32c.value(bytes(data)))
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _corrupt(path: Path, at: int, why: str) -> PublishError:
    return PublishError(f"{path} is no usable warm-up file: at byte {at} {why}. The server would load no version that brings it; write it again.")
