"""From a client's bytes to runs of the model and from their outputs to the answer's bytes: Predict by gRPC and by REST.

Nothing here runs the model: what is prepared may be joined with other requests first (`batching`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded import json_answers, json_chunks, json_tensors, json_text
from airflow_mlops.serving.embedded.engine import Servable, check_names
from airflow_mlops.serving.embedded.refusal import invalid, precondition
from airflow_mlops.serving.embedded.wire import parsed
from airflow_mlops.serving.signatures import DEFAULT_SIGNATURE
from airflow_mlops.serving.tensors import Array, to_array, to_proto

Outputs = Mapping[str, Array]


class Run(NamedTuple):
    """One run of the model: a signature, its inputs, and the outputs wanted."""

    signature: str
    inputs: Mapping[str, Array]
    wanted: tuple[str, ...]


class Prepared(NamedTuple):
    """A request: its runs, and what makes the answer's bytes of their outputs, in the same order."""

    runs: tuple[Run, ...]
    answer: Callable[[Sequence[Outputs]], bytes]


class Model(NamedTuple):
    """The model version that a process serves."""

    name: str
    version: int
    servable: Servable
    as_content: bool = False  # whether answers hold raw bytes instead of ``*_val`` fields (--enable_serialization_as_tensor_content)

    def spec(self, signature: str) -> Any:
        """Return the `ModelSpec` of an answer: the number of the version, however it was asked for."""
        spec = protos.model_pb2.ModelSpec(name=self.name, signature_name=signature)
        spec.version.value = self.version
        return spec


def predict(model: Model, payload: bytes) -> Prepared:
    """Prepare a serialized `PredictRequest`; raises `Refusal`."""
    request = parsed(protos.predict_pb2.PredictRequest, payload)
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = model.servable.signatures.get(name)
    if signature is None:
        raise precondition(f'Serving signature key "{name}" not found.')
    check_names(signature, request.inputs)  # before anything is made of them: a few bytes may stand for a large tensor
    inputs = {key: _array(key, tensor) for key, tensor in request.inputs.items()}
    run = Run(name, inputs, tuple(_wanted(request.output_filter, signature.outputs)))

    def answer(outputs: Sequence[Outputs]) -> bytes:
        response = protos.predict_pb2.PredictResponse(model_spec=model.spec(name))
        for key, array in outputs[0].items():
            response.outputs[key].CopyFrom(to_proto(array, as_content=model.as_content))
        return bytes(response.SerializeToString())

    return Prepared((run,), answer)


def rest_predict(model: Model, payload: bytes) -> Prepared:
    """Prepare the JSON body of a ``:predict`` request; raises `Refusal`."""
    name, inputs, as_rows = _json_inputs(model, payload)
    run = Run(name, inputs, tuple(model.servable.signatures[name].outputs))
    if not run.wanted:
        raise invalid(f"Cannot convert empty tensor map to JSON: signature {name!r} has no outputs")
    return Prepared((run,), lambda outputs: json_answers.predictions(outputs[0], as_rows=as_rows))


def _json_inputs(model: Model, payload: bytes) -> tuple[str, dict[str, Array], bool]:
    """Return the signature that a body is for, its inputs, and whether they came as rows."""
    rows = json_chunks.found(payload) if len(payload) > json_chunks.LARGE else None
    if rows is not None:
        name = rows.signature or DEFAULT_SIGNATURE
        if (read := json_chunks.inputs_of(rows, _json_types(model, name))) is not None:
            return name, *read
    document = json_text.parse(payload)
    name = json_tensors.signature_name(document) or DEFAULT_SIGNATURE
    return name, *json_tensors.inputs_of(document, _json_types(model, name))


def _json_types(model: Model, name: str) -> json_tensors.Types:
    if name not in model.servable.signatures:
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    return model.servable.input_types(name)


def _wanted(names: Iterable[str], outputs: Iterable[str]) -> list[str]:
    asked, known = list(names), list(outputs)
    for name in asked:
        if name not in known:
            raise invalid(f"output tensor alias not found in signature: {name} Outputs expected to be in the set {{{','.join(sorted(known))}}}.")
    if twice := next((name for name in asked if asked.count(name) > 1), None):
        raise invalid(f"duplicate output tensor alias: {twice}")
    return asked or known


def _array(name: str, tensor: Any) -> Array:
    try:
        return to_array(tensor)
    except ValueError as error:
        raise invalid(f"tensor parsing error: {name}: {error}") from error
