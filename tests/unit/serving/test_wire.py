"""The few bytes that the front reads of a request, held against what protocol buffers themselves read."""

from __future__ import annotations

import time
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded import wire
from airflow_mlops.serving.embedded.refusal import Refusal

PredictRequest: Any = protos.predict_pb2.PredictRequest
MultiInferenceRequest: Any = protos.inference_pb2.MultiInferenceRequest
ModelSpec: Any = protos.model_pb2.ModelSpec
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def specs(draw: st.DrawFn) -> Any:
    spec = ModelSpec(name=draw(TEXT), signature_name=draw(TEXT))
    choice = draw(st.sampled_from(["version", "label", "neither"]))
    if choice == "version":
        spec.version.value = draw(st.integers(-(2**63), 2**63 - 1))
    elif choice == "label":
        spec.version_label = draw(TEXT)
    return spec


@st.composite
def requests(draw: st.DrawFn) -> Any:
    """Return a `PredictRequest` with tensors, filters, and perhaps no spec."""
    request = PredictRequest(output_filter=draw(st.lists(TEXT, max_size=2)))
    if draw(st.booleans()):
        request.model_spec.CopyFrom(draw(specs()))
    for name in draw(st.sets(TEXT, max_size=2)):
        tensor = request.inputs[name]
        tensor.dtype = draw(st.integers(0, 20))
        tensor.tensor_content = draw(st.binary(max_size=300))
        tensor.double_val.extend(draw(st.lists(st.floats(), max_size=2)))
        tensor.int64_val.extend(draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2)))
    return request


def seen(message: bytes) -> Any:
    """Return the `ModelSpec` that the front sees, None for none."""
    found = wire.field(message, 1)
    return None if found is None else ModelSpec.FromString(found)


def spec_of(request: Any) -> Any:
    return request.model_spec if request.HasField("model_spec") else None


@given(requests())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_the_front_sees_the_spec_that_the_whole_message_has(request: Any) -> None:
    assert seen(request.SerializeToString()) == spec_of(request)


@given(st.lists(requests(), min_size=2, max_size=4))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_specs_that_come_in_parts_are_merged_as_protocol_buffers_merge_them(parts: list[Any]) -> None:
    message = b"".join(part.SerializeToString() for part in parts)
    assert seen(message) == spec_of(PredictRequest.FromString(message))


@given(st.lists(specs(), max_size=3))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_every_task_is_found(tasks: list[Any]) -> None:
    request = MultiInferenceRequest()
    for spec in tasks:
        request.tasks.add(model_spec=spec, method_name="m")
    request.input.example_list.examples.add()
    found = wire.fields(request.SerializeToString(), 1)
    assert [seen(task) for task in found] == tasks


@given(requests(), st.data())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_message_that_was_cut_is_refused_wherever_protocol_buffers_refuse_it(request: Any, data: st.DataObject) -> None:
    whole = request.SerializeToString()
    message = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        expected = spec_of(PredictRequest.FromString(message))
    except DecodeError:
        with pytest.raises(Refusal):
            wire.parsed(PredictRequest, message)
        return
    assert seen(message) == expected


@given(st.binary(max_size=60) | st.lists(st.sampled_from([0x00, 0x08, 0x0A, 0x0D, 0x09, 0x7F, 0x80, 0xFF, 0x01, 0x02]), max_size=24).map(bytes))
@example(b"\x0a\x80")
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\xff" * 11)
@settings(max_examples=250, deadline=None, derandomize=True)
def test_garbage_is_refused_with_a_reason_or_read_and_nothing_else(message: bytes) -> None:
    for read in (wire.field, wire.fields):
        try:
            read(message, 1)  # type: ignore[operator]
        except Refusal as refused:
            assert refused.http_status == 400
            assert "protocol buffer" in str(refused)


@given(st.binary(max_size=60) | st.lists(st.sampled_from([0x08, 0x0A, 0x0D, 0x09, 0x00, 0x02, 0x61]), max_size=24).map(bytes))
@settings(max_examples=250, deadline=None, derandomize=True)
def test_garbage_that_is_a_message_by_chance_is_read_as_that_message(message: bytes) -> None:
    try:
        expected = spec_of(PredictRequest.FromString(message))
    except DecodeError:
        return
    try:
        found = wire.field(message, 1)
    except Refusal as refused:
        assert "wire type 3" in str(refused) or "wire type 4" in str(refused)  # groups, which no message of the protocol has
        return
    assert (None if found is None else ModelSpec.FromString(found)) == expected


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\x0a\x05abc", "2 bytes are missing"),
        (b"\x09abc", "5 bytes are missing"),
        (b"\x0dabc", "1 bytes are missing"),
        (b"\x0a", "no number ends"),
        (b"\x08\x80\x80", "no number ends"),
        (b"\x80" * 12, "no number ends"),
        (b"\x0b", "wire type 3"),
        (b"\x0f", "wire type 7"),
    ],
)
def test_what_is_wrong_with_a_message_is_said(message: bytes, words: str) -> None:
    with pytest.raises(Refusal, match=words):
        wire.field(message, 1)


def test_a_field_that_is_not_there_is_none_and_an_empty_one_is_empty() -> None:
    assert wire.field(b"", 1) is None
    assert wire.field(b"\x12\x01a", 1) is None
    assert wire.field(b"\x0a\x00", 1) == b""


def test_a_field_of_another_kind_is_passed_over() -> None:
    assert wire.field(b"\x08\x05\x09\0\0\0\0\0\0\0\0\x0d\0\0\0\0\x0a\x01a", 1) == b"a"


def test_numbers_of_more_than_one_byte_are_read() -> None:
    number, size = 2**29 - 1, 300
    tag = (number << 3) | 2
    assert wire.fields(varint(tag) + varint(size) + b"x" * size + b"\x0a\x01a", number) == [b"x" * size]


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_what_follows_64_megabytes_of_tensors_is_found_without_reading_them() -> None:
    message = b"\x12" + varint(1 << 26) + bytes(1 << 26) + b"\x0a\x01a"
    began = time.process_time()
    assert wire.field(message, 1) == b"a"
    assert time.process_time() - began < 1.0  # byte by byte would take ten


def test_a_payload_that_is_no_message_is_refused_by_the_messages_name() -> None:
    assert wire.parsed(ModelSpec, b"\x0a\x01m").name == "m"
    for payload in (b"\x0a\x05m", b"\x0a\x01\xff"):  # cut, and no UTF-8
        with pytest.raises(Refusal, match=r"The request is not a tensorflow\.serving\.ModelSpec") as refused:
            wire.parsed(ModelSpec, payload)
        assert refused.value.http_status == 400
