"""Write a trained model in the forms that others need, and offer none that answers differently.

The Keras file and the SavedModel are always written; further formats are converted from the SavedModel, so that each answers the same rows.
Imports Keras and TensorFlow at the top: import it inside a stage only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from airflow_mlops.artifacts import canonical_json, write_atomically
from airflow_mlops.exceptions import MlopsError, SpecError, TrainingError, unknown_name
from airflow_mlops.inspection import inspect_graph, inspect_keras
from airflow_mlops.training import keras_file as keras_files
from airflow_mlops.training.keras_file import Extensions
from airflow_mlops.training.served import SERVING, TOLERANCE, Golden, ServedModel, different, golden_answers, left_out, read
from airflow_mlops.training.served import write as write_served

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from airflow_mlops.training.features import Features

REQUIRED, OPTIONAL = "required", "optional"


class Format(NamedTuple):
    """A format beside Keras and SavedModel: its file, how a SavedModel is converted into it, and what the file answers to rows (N, ...)."""

    file: str
    convert: Callable[[Path, Path], None]
    answers: Callable[[Path, NDArray[np.float32]], NDArray[np.float32]]


class Exported(NamedTuple):
    """What was written: Keras file, SavedModel directory, golden answers, example request, signature, and the formats that passed, by name.

    `problems` says of each format that was asked for and is not offered why, `notes` what else of the model is not in what is served.
    """

    model: Path
    saved_model: Path
    golden: Path
    example: Path
    signature: Path
    formats: dict[str, Path]
    problems: dict[str, str]
    notes: tuple[str, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that was written."""
        return (*self[:5], *self.formats.values())


def save(
    model: keras.Model,
    sample_rows: NDArray[np.float32],
    out_dir: Path,
    *,
    features: Features | None = None,
    formats: Mapping[str, str] | None = None,
    code_allowed: bool = False,
    extensions: Extensions | None = None,
) -> Exported:
    """Write ``model.keras``, ``saved_model/``, ``golden.json``, ``input_example.json``, ``signature.json`` and each of `formats` below `out_dir`.

    `sample_rows` is (N, *input_shape), N >= 1, of what is served: the model, behind its `features` if there are any. The golden file holds up to 16
    rows as ``inputs``, the first ones and those nearest to the decision boundary, and as ``outputs`` what the reloaded SavedModel answers: what a
    server must answer too; the example is a request for them. `formats` says of names in `FORMATS` whether each is ``required`` or ``optional``: one
    that cannot be written, or that fails the parity check, ends the training or only leaves a sentence.

    Raises `TrainingError` if the model cannot be saved, if a form answers differently, also when it is asked again or a row alone, or if the next
    stages could not load it; `NonFiniteModel` if it answers NaN; `UnsafeModel` if its files bring code of their own, which is not `code_allowed`:
    whoever loads them next would refuse them. `SpecError` for an unknown format.
    """
    wanted, samples = checked_formats(formats or {}), np.asarray(sample_rows[:1], dtype=np.float32)
    if not len(samples):
        raise TrainingError("There is no sample row to ask the saved model about; give at least one.")
    served = features.before(model) if features else model
    paths = [out_dir / name for name in ("model.keras", "saved_model", "golden.json", "input_example.json", "signature.json")]
    keras_file, saved_model, golden_file, example, signature = paths
    out_dir.mkdir(parents=True, exist_ok=True)
    server = _saved(model, served, samples, keras_file, saved_model)
    inspect_keras(keras_file, code_allowed=code_allowed)
    if not code_allowed:
        inspect_graph(read(saved_model))
    golden = golden_answers(served, server, sample_rows)
    inner = golden._replace(inputs=features.of(golden.inputs)) if features else golden
    keras_files.check_loads(keras_file, inner, extensions, code_allowed=code_allowed)
    write_atomically(golden_file, canonical_json({"inputs": golden.inputs.tolist(), "outputs": golden.outputs.tolist()}))
    write_atomically(example, canonical_json({"signature_name": SERVING, "instances": golden.inputs.tolist()}))
    write_atomically(signature, canonical_json(_signature(saved_model)))
    written, problems = _convert(saved_model, golden, wanted)
    return Exported(keras_file, saved_model, golden_file, example, signature, written, problems, left_out(served))


def _saved(model: keras.Model, served: keras.Model, samples: NDArray[np.float32], keras_file: Path, saved_model: Path) -> ServedModel:
    """Write both files and return the SavedModel, loaded again and asked about a row."""
    try:
        keras_files.write(model, keras_file)
        write_served(served, saved_model)
        server = ServedModel(saved_model)
        server.predict(samples)
        served(samples, training=False)
    except MlopsError:
        raise
    except Exception as error:  # Keras and TensorFlow have no common error class
        raise TrainingError(
            f"Model {model.name!r} cannot be saved and loaded again as a SavedModel: {type(error).__name__}: {error}. "
            "Use serializable layers and one input and one output tensor."
        ) from error
    return server


def check_parity(name: str, expected: NDArray[Any], found: NDArray[Any]) -> None:
    """Raise `TrainingError`, naming format, row and difference, unless both answers (N, ...) are equal within `TOLERANCE` and choose the same."""
    if found.shape != expected.shape:
        raise TrainingError(f"Format {name!r} answers in shape {found.shape}; expected {expected.shape}, as the model does. Do not use it.")
    if (row := different(expected, found)) is not None:
        raise TrainingError(
            f"Format {name!r} answers row {row} differently than the model, by up to {np.abs(found[row] - expected[row]).max():.3g}: expected "
            f"at most {TOLERANCE:g} and the same choice. It is not offered; leave the format out, or use layers that its converter keeps."
        )


def _convert(saved_model: Path, golden: Golden, wanted: Mapping[str, str]) -> tuple[dict[str, Path], dict[str, str]]:
    written, problems = dict[str, Path](), dict[str, str]()
    for name, need in wanted.items():
        path = saved_model.parent / FORMATS[name].file
        try:
            _write(name, saved_model, path)
            check_parity(name, golden.outputs, FORMATS[name].answers(path, golden.inputs))
            written[name] = path
        except Exception as error:  # converters raise anything
            path.unlink(missing_ok=True)
            text = str(error) if isinstance(error, MlopsError) else f"{type(error).__name__}: {(str(error).strip() or 'no reason').splitlines()[0]}"
            problems[name] = f"The model cannot be offered as {name!r}. {text}"
            if need == REQUIRED:
                raise TrainingError(f"{problems[name]} Mend it, or call the format {OPTIONAL}.") from error
    return written, problems


def _write(name: str, saved_model: Path, path: Path) -> None:
    try:
        FORMATS[name].convert(saved_model, path)
    except ModuleNotFoundError as error:
        raise TrainingError(f"Package {error.name} is not installed; install airflow-mlops[formats].") from error


def checked_formats(formats: Mapping[str, str]) -> Mapping[str, str]:
    """Return `formats` if each is known and ``required`` or ``optional``; raise `SpecError` otherwise, best before anything is trained."""
    for name, need in formats.items():
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS)
        if need not in (REQUIRED, OPTIONAL):
            raise SpecError(f"formats says of {name!r} that it is {need!r}; expected {REQUIRED!r} or {OPTIONAL!r}.")
    return formats


def _signature(saved_model: Path) -> dict[str, Any]:
    """Return name, type and shape of every input and output, as JSON."""
    signature = read(saved_model).meta_graphs[0].signature_def[SERVING]
    sides = {"inputs": signature.inputs, "outputs": signature.outputs}
    return {side: {name: _tensor(info) for name, info in infos.items()} for side, infos in sides.items()}


def _tensor(info: Any) -> dict[str, Any]:
    return {"dtype": tf.as_dtype(info.dtype).name, "shape": [dim.size for dim in info.tensor_shape.dim]}


def _to_tflite(saved_model: Path, path: Path) -> None:
    write_atomically(path, tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=[SERVING]).convert())


def _tflite_answers(path: Path, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    runner = tf.lite.Interpreter(model_path=str(path)).get_signature_runner(SERVING)
    (name,) = runner.get_input_details()
    (outputs,) = runner(**{name: samples}).values()
    return np.asarray(outputs)


def _to_onnx(saved_model: Path, path: Path) -> None:
    import tf2onnx

    loaded = tf.saved_model.load(str(saved_model))  # held while its signature is converted: the signature alone does not keep the weights
    served = loaded.signatures[SERVING]
    frozen = convert_variables_to_constants_v2(served)  # also constants that features captured, which would be inputs else
    (taken,), (answer,) = frozen.inputs, frozen.outputs
    (taken_name,), (answer_name,) = served.structured_input_signature[1], served.structured_outputs
    names = {taken.name: taken_name, answer.name: answer_name}
    graph = frozen.graph.as_graph_def()
    tf2onnx.convert.from_graph_def(graph, input_names=[taken.name], output_names=[answer.name], tensors_to_rename=names, output_path=str(path))


def _onnx_answers(path: Path, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    (outputs,) = session.run(None, {taken.name: samples})
    return np.asarray(outputs)


FORMATS: dict[str, Format] = {
    "onnx": Format("model.onnx", _to_onnx, _onnx_answers),
    "tflite": Format("model.tflite", _to_tflite, _tflite_answers),
}
