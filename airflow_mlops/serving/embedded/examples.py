"""Classify, Regress and MultiInference: requests of `tf.Example`, answers of labels, scores and values.

The rules are those of servables/tensorflow/classifier.cc, regressor.cc and multi_inference.cc. Method names of signatures are not checked, as
the original's default is, so a TF2 signature with the right names of inputs and outputs serves too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded import json_answers, json_examples, json_tensors, json_text
from airflow_mlops.serving.embedded.engine import Signature
from airflow_mlops.serving.embedded.refusal import Refusal, invalid
from airflow_mlops.serving.embedded.requests import Model, Outputs, Prepared, Run
from airflow_mlops.serving.embedded.wire import parsed
from airflow_mlops.serving.signatures import DEFAULT_SIGNATURE
from airflow_mlops.serving.tensors import CODES, DT_STRING, Array, type_name

_INPUTS, _CLASSES, _SCORES, _OUTPUTS = "inputs", "classes", "scores", "outputs"

_TYPES = {_CLASSES: np.dtype(object), _SCORES: np.dtype(np.float32)}


class Classes(NamedTuple):
    """Labels and scores, each (N, classes), or None where the signature has none."""

    labels: Array | None
    scores: Array | None

    def rows(self) -> list[list[tuple[str, float]]]:
        """Return per example its (label, score) pairs; a missing label is empty, a missing score 0."""
        known = self.labels if self.labels is not None else self.scores
        if known is None:
            return []
        labels = self.labels.tolist() if self.labels is not None else np.full(known.shape, b"", object).tolist()
        scores = json_answers.shortest(self.scores) if self.scores is not None else np.zeros(known.shape).tolist()
        pairs = [list(zip(names, values, strict=True)) for names, values in zip(labels, scores, strict=True)]
        return [[(name.decode(errors="replace"), value) for name, value in row] for row in pairs]


class Method(NamedTuple):
    """One kind of inference on examples: the outputs it needs, its result message, and where that goes in a MultiInference answer."""

    wanted: Callable[[Signature], tuple[str, ...]]
    result: Callable[[Outputs, int], Any]
    field: str


def classify(model: Model, payload: bytes) -> Prepared:
    """Prepare a serialized `ClassificationRequest`; raises `Refusal`."""
    return _by_grpc(model, payload, protos.classification_pb2, "Classification", _classification)


def regress(model: Model, payload: bytes) -> Prepared:
    """Prepare a serialized `RegressionRequest`; raises `Refusal`."""
    return _by_grpc(model, payload, protos.regression_pb2, "Regression", _regression)


def rest_classify(model: Model, payload: bytes) -> Prepared:
    """Prepare the JSON body of a ``:classify`` request; raises `Refusal`."""
    name, examples = _json_examples(payload)
    wanted = _classify_outputs(_signature(model, name))

    def answer(outputs: Sequence[Outputs]) -> bytes:
        found = _classes(outputs[0], len(examples))
        return json_answers.results(found.rows(), np.zeros(0) if found.scores is None else found.scores)

    return Prepared((Run(name, {_INPUTS: examples}, wanted),), answer)


def rest_regress(model: Model, payload: bytes) -> Prepared:
    """Prepare the JSON body of a ``:regress`` request; raises `Refusal`."""
    name, examples = _json_examples(payload)
    wanted = _regress_outputs(_signature(model, name))

    def answer(outputs: Sequence[Outputs]) -> bytes:
        values = _values(outputs[0], len(examples))
        return json_answers.results(json_answers.shortest(values), values)

    return Prepared((Run(name, {_INPUTS: examples}, wanted),), answer)


def multi_inference(model: Model, payload: bytes) -> Prepared:
    """Prepare a serialized `MultiInferenceRequest`: several signatures of one model on the same examples; raises `Refusal`."""
    request = parsed(protos.inference_pb2.MultiInferenceRequest, payload)
    wanted: dict[str, tuple[str, ...]] = {}
    for task in request.tasks:
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        if name in wanted:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if name not in model.servable.signatures:
            raise invalid(f"Requested signature not found in model graph: {name}")
        if task.method_name not in _METHODS:
            raise Refusal(grpc.StatusCode.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        wanted[name] = _METHODS[task.method_name].wanted(_signature(model, name))
    examples = _examples(request.input)
    runs = [Run(name, {_INPUTS: examples}, outputs) for name, outputs in wanted.items()]

    def answer(outputs: Sequence[Outputs]) -> bytes:
        response = protos.inference_pb2.MultiInferenceResponse()
        for task, run, found in zip(request.tasks, runs, outputs, strict=True):
            result = response.results.add(model_spec=model.spec(run.signature))
            method = _METHODS[task.method_name]
            getattr(result, method.field).CopyFrom(method.result(found, len(examples)))
        return bytes(response.SerializeToString())

    return Prepared(tuple(runs), answer)


def _by_grpc(model: Model, payload: bytes, module: Any, what: str, method: Method) -> Prepared:
    request = parsed(getattr(module, f"{what}Request"), payload)
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    wanted = method.wanted(_signature(model, name))
    examples = _examples(request.input)

    def answer(outputs: Sequence[Outputs]) -> bytes:
        response = getattr(module, f"{what}Response")(model_spec=model.spec(name), result=method.result(outputs[0], len(examples)))
        return bytes(response.SerializeToString())

    return Prepared((Run(name, {_INPUTS: examples}, wanted),), answer)


def _json_examples(payload: bytes) -> tuple[str, Array]:
    document = json_text.parse(payload)
    return json_tensors.signature_name(document) or DEFAULT_SIGNATURE, json_examples.examples_of(document)


def _examples(source: Any) -> Array:
    """Return an `Input`'s examples as serialized messages (bytes objects, shape (N,)), each merged into the shared context."""
    kind = source.WhichOneof("kind")
    listed = getattr(source, kind) if kind else None
    if listed is None or not listed.examples:
        raise invalid("Input is empty.")
    context = listed.context.SerializeToString() if kind == "example_list_with_context" else b""
    rows: Array = np.empty(len(listed.examples), object)
    rows[:] = [context + example.SerializeToString() for example in listed.examples]
    return rows


def _signature(model: Model, name: str) -> Signature:
    signature = model.servable.signatures.get(name)
    if signature is None:
        raise invalid(f"No signature was found with the name: {name}")
    if len(signature.inputs) != 1:
        raise invalid(f"Expected one input Tensor. Signature {name!r} has {len(signature.inputs)}")
    return signature


def _classify_outputs(signature: Signature) -> tuple[str, ...]:
    wanted = tuple(name for name in (_CLASSES, _SCORES) if name in signature.outputs)
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    _check_input(signature, "classification")
    if not wanted:
        words = f'Expected classification signature outputs to contain at least one of "{_CLASSES}" or "{_SCORES}"'
        raise invalid(f"{words}. Signature was: {sorted(signature.outputs)}")
    return wanted


def _regress_outputs(signature: Signature) -> tuple[str, ...]:
    if len(signature.outputs) != 1:
        raise invalid(f"Expected one output Tensor. The signature has {len(signature.outputs)}")
    _check_input(signature, "regression")
    if _OUTPUTS not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {sorted(signature.outputs)}")
    return (_OUTPUTS,)


def _check_input(signature: Signature, kind: str) -> None:
    if _INPUTS not in signature.inputs:
        raise invalid(f"No {kind} inputs found in SignatureDef: {sorted(signature.inputs)}")
    if signature.inputs[_INPUTS].code != DT_STRING:
        raise invalid(f"The signature has no string input {_INPUTS!r} for serialized examples; ask it by Predict")


def _classes(outputs: Outputs, num_examples: int) -> Classes:
    for name, array in outputs.items():
        if array.ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}: {name}")
        if array.dtype != _TYPES[name]:
            raise invalid(f"Expected {name} Tensor of {_type(_TYPES[name])}. Got: {_type(array.dtype)}")
        if array.shape[0] != num_examples:
            raise invalid(f"Expected {name} output batch size of {num_examples}. Got: {array.shape[0]}")
    sizes = [array.shape[1] for array in outputs.values()]
    if len(set(sizes)) > 1:
        raise invalid(f"Tensors class and score should match in dim_size(1). Got {' vs. '.join(map(str, sizes))}")
    return Classes(outputs.get(_CLASSES), outputs.get(_SCORES))


def _values(outputs: Outputs, num_examples: int) -> Array:
    array = outputs[_OUTPUTS]
    if array.ndim not in (1, 2) or array.shape[1:] not in ((), (1,)):
        raise invalid(f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(array)}")
    if array.shape[0] != num_examples:
        raise invalid(f"Input batch size did not match output batch size: {num_examples} vs. {array.shape[0]}")
    if array.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_type(array.dtype)}")
    return array.reshape(-1)


def _shape(array: Array) -> str:
    return f"[{','.join(map(str, array.shape))}]"


def _type(dtype: np.dtype[Any]) -> str:
    return type_name(CODES[dtype])


def _classification_result(outputs: Outputs, num_examples: int) -> Any:
    result = protos.classification_pb2.ClassificationResult()
    for row in _classes(outputs, num_examples).rows():
        entry = result.classifications.add()
        for label, score in row:
            entry.classes.add(label=label, score=score)
    return result


def _regression_result(outputs: Outputs, num_examples: int) -> Any:
    result = protos.regression_pb2.RegressionResult()
    for value in _values(outputs, num_examples).tolist():
        result.regressions.add(value=value)
    return result


_classification = Method(_classify_outputs, _classification_result, "classification_result")
_regression = Method(_regress_outputs, _regression_result, "regression_result")
_METHODS = {"tensorflow/serving/classify": _classification, "tensorflow/serving/regress": _regression}
