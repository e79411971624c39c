"""Real SavedModels: those that only compute, and those that reach for Python, files or the network, however deep they hide it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from airflow_mlops.exceptions import UnsafeModel
from airflow_mlops.inspection import FILES, NETWORK, PYTHON, RESTORING, SAVING, inspect_graph

Body = Callable[[Any], Any]


def read(directory: Path) -> Any:
    return saved_model_pb2.SavedModel.FromString((directory / "saved_model.pb").read_bytes())


def saved(directory: Path, body: Body, module: tf.Module | None = None) -> Any:
    """Return the SavedModel message of a function of x[?]."""
    call = tf.function(body, input_signature=[tf.TensorSpec((None,), tf.float32, "x")])
    module = module or tf.Module()
    tf.saved_model.save(module, str(directory), signatures={"serving_default": call.get_concrete_function()})
    return read(directory)


def answered(y: Any) -> dict[str, Any]:
    return {"y": y}


def looked_up(directory: Path) -> Any:
    """Return a model with a table that is filled from a file among its assets."""
    directory.mkdir()
    (directory / "words.txt").write_text("one\ntwo\n")
    module = tf.Module()
    words = tf.lookup.TextFileInitializer(
        str(directory / "words.txt"), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
    )
    module.table = tf.lookup.StaticHashTable(words, -1)
    return saved(directory / "model", lambda x: answered(module.table.lookup(tf.strings.as_string(x))), module)


def text(directory: Path) -> Any:
    layer = keras.layers.TextVectorization(output_sequence_length=4)
    layer.adapt(["one two", "two three"])
    model = keras.Sequential([keras.Input((1,), dtype="string"), layer, keras.layers.Embedding(10, 2), keras.layers.LSTM(2)])
    model.export(directory, verbose=False)
    return read(directory)


def pictures(directory: Path) -> Any:
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(2, 3), keras.layers.BatchNormalization(), keras.layers.GlobalMaxPooling2D()]
    keras.Sequential([keras.Input((8, 8, 1)), *layers]).export(directory, verbose=False)
    return read(directory)


def first_generation(directory: Path) -> Any:
    """Return a model as TensorFlow 1 writes it, whose variables are saved and restored by nodes of the graph itself."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, (None,), "x")
        y = x * tf.compat.v1.get_variable("w", (), initializer=tf.compat.v1.ones_initializer())
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(directory), {"x": x}, {"y": y})
    return read(directory)


def printing(directory: Path) -> Any:
    def body(x: Any) -> Any:
        tf.print("asked for", x)
        tf.debugging.assert_all_finite(x, "not finite")
        return answered(x)

    return saved(directory, body)


@pytest.mark.parametrize("model", [looked_up, text, pictures, first_generation, printing])
def test_a_model_that_only_computes_passes_and_was_looked_at(tmp_path: Path, model: Callable[[Path], Any]) -> None:
    message = model(tmp_path / "model")
    inspect_graph(message)
    graph = message.meta_graphs[0].graph_def
    # The innermost function that the answer is computed by, or the graph itself where there is none, reads a file from now on.
    inner = [node for function in graph.library.function for node in function.node_def if "serving_default" in function.signature.name]
    (inner or list(graph.node))[-1].op = "ReadFile"
    with pytest.raises(UnsafeModel, match="ReadFile"):
        inspect_graph(message)


def conditional(x: Any) -> Any:
    return answered(tf.cond(tf.reduce_sum(x) > 0, lambda: tf.strings.length(tf.io.read_file("/etc/passwd")), lambda: tf.constant(0)))


def in_a_loop(x: Any) -> Any:
    return answered(tf.map_fn(lambda row: tf.strings.to_number(tf.io.read_file(tf.strings.as_string(row))), x))


def writing(x: Any) -> Any:
    tf.io.write_file("/tmp/stolen", tf.strings.reduce_join(tf.strings.as_string(x)))
    return answered(x)


def printing_to_a_file(x: Any) -> Any:
    tf.print(x, output_stream="file:///tmp/stolen")
    return answered(x)


def saving(x: Any) -> Any:
    with tf.control_dependencies([tf.raw_ops.SaveV2(prefix="/tmp/stolen", tensor_names=["x"], shape_and_slices=[""], tensors=[x])]):
        return answered(tf.identity(x))


def restoring(_: Any) -> Any:
    (found,) = tf.raw_ops.RestoreV2(prefix="/models/other/1/variables", tensor_names=["w"], shape_and_slices=[""], dtypes=[tf.float32])
    return answered(found)


def from_a_dataset(x: Any) -> Any:
    return answered(tf.data.TextLineDataset("/etc/passwd").reduce(tf.constant(""), lambda a, b: a + b) + tf.strings.as_string(x[0]))


BAD: dict[str, tuple[Body, str]] = {
    "python": (lambda x: answered(tf.py_function(lambda v: v, [x], tf.float32)), "EagerPyFunc"),
    "numpy": (lambda x: answered(tf.numpy_function(lambda v: np.asarray(v), [x], tf.float32)), "PyFunc"),
    "a branch": (conditional, "ReadFile"),
    "a loop": (in_a_loop, "ReadFile"),
    "writing": (writing, "WriteFile"),
    "listing": (lambda x: answered(tf.strings.length(tf.io.matching_files("/home/*")) + tf.cast(x[0], tf.int32)), "MatchingFiles"),
    "printing to a file": (printing_to_a_file, "PrintV2"),
    "saving": (saving, "SaveV2"),
    "restoring another model's variables": (restoring, "RestoreV2"),
    "a dataset": (from_a_dataset, "TextLineDataset"),
}


@pytest.mark.parametrize(("body", "operation"), BAD.values(), ids=BAD)
def test_a_model_that_reaches_out_is_refused_with_the_operation_s_name(tmp_path: Path, body: Body, operation: str) -> None:
    message = saved(tmp_path / "model", body)
    with pytest.raises(UnsafeModel, match=rf"reach files or the network wherever it is served: (.*, )?{operation} \(.*set unsafe_models_allowed"):
        inspect_graph(message)


def test_saving_is_found_where_the_loader_would_run_it(tmp_path: Path) -> None:
    """The signature answers nothing bad; but what restores the variables, or initializes them, writes a file."""
    message = saved(tmp_path / "model", saving)
    meta = message.meta_graphs[0]
    (asked,) = {info.name for info in meta.signature_def["serving_default"].outputs.values()}
    del meta.signature_def["serving_default"]
    inspect_graph(message)
    node = asked.partition(":")[0]
    meta.saver_def.restore_op_name = node
    with pytest.raises(UnsafeModel, match="SaveV2"):
        inspect_graph(message)
    meta.saver_def.restore_op_name = ""
    meta.collection_def["saved_model_main_op"].node_list.value.append(node)
    with pytest.raises(UnsafeModel, match="SaveV2"):
        inspect_graph(message)


def test_every_operation_on_the_lists_is_one_of_tensorflow() -> None:
    assert [name for name in (*PYTHON, *FILES, *NETWORK, *SAVING, *RESTORING) if op_def_registry.get(name) is None] == []


def test_every_operation_of_tensorflow_that_is_given_a_file_or_an_address_is_on_the_lists_or_known_to_be_harmless() -> None:
    words = re.compile(r"(?<!is_)file|(?<!top_)path|url|address|protocol|descriptor_source")
    operations = [operation for name in dir(tf.raw_ops) if (operation := op_def_registry.get(name))]
    assert len(operations) > 1_000
    given = {op.name for op in operations if any(words.search(part.name) for part in (*op.input_arg, *op.attr))}
    assert len(given) > 40
    # Tables are filled from the model's own assets.
    assert given - {*PYTHON, *FILES, *NETWORK, *SAVING, *RESTORING} == {"InitializeTableFromTextFile", "InitializeTableFromTextFileV2"}
