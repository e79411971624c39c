"""Small SavedModels for all tests of serving: good ones of every kind, and every kind of bad one.

They are built by a process of their own, ``python -m tests.serving_models DIRECTORY``, once for all processes of a test session, so that no test
process imports TensorFlow for them. What each of them answers is written beside its builder. `publish` puts one where a server looks for it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf

PACKAGE = Path(__file__).parents[1]
ROW = [1.0, 2.0, 3.0, 4.0]  # linear/1 answers [4, 5], linear/2 answers [5, 6]
LABELS = [b"no", b"yes"]
NUMBERS = ("float32", "float64", "half", "bfloat16", "complex64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = (*NUMBERS, "bool", "string")
COMPLETE = "complete"


def start_building(home: Path) -> subprocess.Popen[bytes]:
    """Start the process that builds all models in `home`; whoever comes second waits for the first."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "build.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "tests.serving_models", str(home)], cwd=PACKAGE, stdout=log, stderr=log)


def publish(model: Path, base_path: Path, version: int | str) -> Path:
    """Put a model under a base path as a publisher does, whole or not at all; its files are shared where the disk allows it."""
    base_path.mkdir(parents=True, exist_ok=True)
    staged = base_path / f".{version}.staged"
    shutil.copytree(model, staged, copy_function=_link)
    return staged.rename(base_path / str(version))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


# ---------------------------------------------------------------------------------------------------------------------- models of TF 2


def _save(home: Path, name: str, module: Any, signatures: dict[str, Any]) -> None:
    import tensorflow as tf

    tf.saved_model.save(module, str(home / name), signatures=signatures)


def _linear(home: Path) -> None:
    """``linear1`` and ``linear2``: ``output_0 = x @ W`` and ``x @ W + 1`` for x[?, 4]."""
    import tensorflow as tf

    for number in (1, 2):
        module = tf.Module()
        module.weights = tf.Variable(tf.reshape(tf.range(8, dtype=tf.float32), (4, 2)) / 10)
        module.bias = tf.Variable(tf.fill((2,), number - 1.0))

        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, "x")])
        def call(x: tf.Tensor, module: Any = module) -> dict[str, tf.Tensor]:
            return {"output_0": x @ module.weights + module.bias}

        _save(home, f"linear{number}", module, {"serving_default": call.get_concrete_function()})


def _two(home: Path) -> None:
    """``two``: of left[?, 2] and right[?, 1] both[?, 3] and right."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32, "left"), tf.TensorSpec((None, 1), tf.float32, "right")])
    def call(left: tf.Tensor, right: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"both": tf.concat([left, right], 1), "right": tf.identity(right)}

    _save(home, "two", tf.Module(), {"serving_default": call.get_concrete_function()})


def _echo(dtype: Any) -> Any:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec(None, dtype, "x")])
    def call(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.identity(x)}

    return call.get_concrete_function()


def _many(home: Path) -> None:
    """``many``: one signature for everything that is not a plain float; ``serving_default`` answers what it is given."""
    import tensorflow as tf

    def of(dtype: Any, name: str = "x", shape: Any = None) -> Callable[[Any], Any]:
        return lambda body: tf.function(body, input_signature=[tf.TensorSpec(shape, dtype, name)]).get_concrete_function()

    module = tf.Module()
    module.calls = tf.Variable(0, dtype=tf.int64)

    def count(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"calls": tf.fill(tf.shape(x)[:1], module.calls.assign_add(1))}

    def unusual(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.stack([x / 0.0, -x / 0.0, x * 0.0 / 0.0, x], 1)}

    def refuse(x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, "what is given must not be negative")]):
            return {"y": tf.identity(x)}

    signatures = {
        "serving_default": _echo(tf.float32),
        "text": of(tf.string, "text")(lambda text: {"upper": tf.strings.upper(text), "raw_bytes": tf.identity(text)}),
        "picture": of(tf.string, "picture_bytes")(lambda picture_bytes: {"picture_bytes": tf.identity(picture_bytes)}),
        "scalar": of(tf.float32)(lambda x: {"loss": tf.reduce_sum(x)}),
        "scalar_and_rows": of(tf.float32)(lambda x: {"loss": tf.reduce_sum(x), "y": tf.identity(x)}),
        "unequal": of(tf.float32)(lambda x: {"a": x[:1], "b": x[:2]}),
        "unusual": of(tf.float32, shape=(None,))(unusual),
        "zeros": of(tf.int64, "n", ())(lambda n: {"y": tf.zeros([n])}),
        "refuse": of(tf.float32)(refuse),
        "count": of(tf.float32)(count),
        "empty": of(tf.float32)(lambda x: {"y": x[:0]}),
        "half_plus_two": of(tf.float32, shape=(None, 1))(lambda x: {"y": x * 0.5 + 2.0}),
        "narrow": of(tf.float32, shape=(None, 2))(lambda x: {"y": tf.identity(x)}),
        **{f"echo_{name}": _echo(getattr(tf, name)) for name in DTYPES},
    }
    _save(home, "many", module, signatures)


def _conv(home: Path) -> None:
    """``conv``: a convolution of x[?, 8, 8, 1] to one of 3 classes, ``scores[?, 3]``; other shapes than that end TensorFlow's process.

    Signature ``open`` is the same, but leaves the shape of x open, so that only the run can tell; ``pair`` takes a[?, 2] and b[?, 2].
    """
    import tensorflow as tf

    module = tf.Module()
    module.kernel = tf.Variable(tf.reshape(tf.range(9, dtype=tf.float32), (3, 3, 1, 1)) / 10)
    module.dense = tf.Variable(tf.reshape(tf.range(108, dtype=tf.float32), (36, 3)) / 100)

    def scores(x: tf.Tensor) -> dict[str, tf.Tensor]:
        found = tf.nn.relu(tf.nn.conv2d(x, module.kernel, 1, "VALID"))
        return {"scores": tf.reshape(found, (-1, 36)) @ module.dense}

    pair = tf.function(lambda a, b: {"sum": a + b}, input_signature=[tf.TensorSpec((None, 2), tf.float32, name) for name in ("a", "b")])
    signatures = {
        name: tf.function(scores, input_signature=[tf.TensorSpec(shape, tf.float32, "x")]).get_concrete_function()
        for name, shape in (("serving_default", (None, 8, 8, 1)), ("open", None))
    }
    _save(home, "conv", module, {**signatures, "pair": pair.get_concrete_function()})


def _trouble(home: Path) -> None:
    """``trouble``: answers what it is given; signature ``crash`` kills its process, ``hang`` never ends, ``slow`` takes x[0] seconds."""
    import tensorflow as tf

    signature = [tf.TensorSpec((None,), tf.float32, "x")]

    @tf.function(input_signature=signature)
    def crash(x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.raw_ops.Abort(error_msg="the test asked for it")]):
            return {"y": tf.identity(x)}

    @tf.function(input_signature=signature)
    def hang(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.while_loop(lambda y: tf.reduce_all(y > -1.0), lambda y: [tf.abs(y)], [x * 0.0])[0]}

    @tf.function(input_signature=signature)
    def slow(x: tf.Tensor) -> dict[str, tf.Tensor]:
        end = tf.timestamp() + tf.cast(x[0], tf.float64)
        last = tf.while_loop(lambda now: now < end, lambda now: [tf.timestamp()], [tf.timestamp()], parallel_iterations=1)[0]
        with tf.control_dependencies([last]):
            return {"y": tf.identity(x)}

    functions = {"crash": crash, "hang": hang, "slow": slow}
    _save(
        home,
        "trouble",
        tf.Module(),
        {"serving_default": _echo(tf.float32), **{name: call.get_concrete_function() for name, call in functions.items()}},
    )


def _examples2(home: Path) -> None:
    """``examples2``: the TF 2 way to be asked by Classify and Regress, whose signatures all have the method name of predict."""
    import tensorflow as tf

    signature = [tf.TensorSpec((None,), tf.string, "inputs")]

    def x_of(inputs: tf.Tensor) -> tf.Tensor:
        return tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature((1,), tf.float32)})["x"]

    @tf.function(input_signature=signature)
    def classify(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        x = x_of(inputs)
        return {"scores": tf.concat([1.0 - x, x], 1), "classes": tf.tile(tf.constant([LABELS]), [tf.shape(x)[0], 1])}

    @tf.function(input_signature=signature)
    def regress(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"outputs": x_of(inputs) * 2.0}

    _save(home, "examples2", tf.Module(), {"serving_default": classify.get_concrete_function(), "regress": regress.get_concrete_function()})


# ---------------------------------------------------------------------------------------------------------------------- models of TF 1


def _save_1(
    home: Path, name: str, session: Any, signatures: dict[str, Any], *, tags: tuple[str, ...] = ("serve",), main_op: Any = None, assets: Any = None
) -> None:
    import tensorflow as tf

    builder = tf.compat.v1.saved_model.Builder(str(home / name))
    builder.add_meta_graph_and_variables(session, list(tags), signature_def_map=signatures, main_op=main_op, assets_collection=assets)
    builder.save()


def _signature(inputs: dict[str, Any], outputs: dict[str, Any], method: str = "predict") -> Any:
    import tensorflow as tf

    info = tf.compat.v1.saved_model.build_tensor_info
    return tf.compat.v1.saved_model.build_signature_def(
        {name: info(tensor) for name, tensor in inputs.items()},
        {name: info(tensor) for name, tensor in outputs.items()},
        f"tensorflow/serving/{method}",
    )


def _examples1(home: Path) -> None:
    """``examples1``: a TF 1 model with a variable, and an asset that a table is filled from when it is loaded.

    Examples have a number ``x`` and perhaps a ``word`` (good: 1, bad: 0, none or another: -1). Regress answers ``2 * x + index of word``,
    classify the labels with scores ``1 - x`` and ``x``. The other signatures are wrong, each in one way.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    (home / "words.txt").write_text("bad\ngood\n")
    with tf.Graph().as_default(), v1.Session() as session:
        inputs = v1.placeholder(tf.string, (None,), "inputs")
        wanted = {"x": v1.FixedLenFeature((1,), tf.float32), "word": v1.FixedLenFeature((1,), tf.string, "")}
        parsed = v1.io.parse_example(inputs, wanted)
        asset = tf.constant(str(home / "words.txt"), name="words")
        words = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(asset, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER), -1
        )
        factor = v1.get_variable("factor", initializer=2.0, use_resource=False)
        outputs = parsed["x"] * factor + tf.cast(words.lookup(parsed["word"]), tf.float32)
        scores = tf.concat([1.0 - parsed["x"], parsed["x"]], 1, name="scores")
        classes = tf.tile(tf.constant([LABELS]), [tf.shape(scores)[0], 1], name="classes")
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        given = {"inputs": inputs}
        signatures = {
            "serving_default": _signature(given, {"scores": scores, "classes": classes}, "classify"),
            "regress": _signature(given, {"outputs": outputs}, "regress"),
            "regress_flat": _signature(given, {"outputs": outputs[:, 0]}, "regress"),
            "predict": _signature(given, {"y": outputs}),
            "scores": _signature(given, {"scores": scores}, "classify"),
            "classes": _signature(given, {"classes": classes}, "classify"),
            "other_input": _signature({"x": inputs}, {"scores": scores, "outputs": outputs}),
            "other_output": _signature(given, {"y": scores}),
            "three_outputs": _signature(given, {"scores": scores, "classes": classes, "more": outputs}),
            "flat_scores": _signature(given, {"scores": scores[:, 0]}),
            "double_scores": _signature(given, {"scores": tf.cast(scores, tf.float64)}),
            "number_classes": _signature(given, {"classes": tf.cast(scores, tf.int64)}),
            "one_class_too_few": _signature(given, {"scores": scores, "classes": classes[:, :1]}),
            "one_row_too_few": _signature(given, {"scores": scores[1:], "classes": classes}),
            "wide_outputs": _signature(given, {"outputs": scores}),
            "double_outputs": _signature(given, {"outputs": tf.cast(outputs, tf.float64)}),
            "one_output_too_few": _signature(given, {"outputs": outputs[1:]}),
        }
        assets = v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS)
        _save_1(home, "examples1", session, signatures, main_op=v1.tables_initializer(), assets=assets)
    (home / "words.txt").unlink()  # so that only the asset inside of the model can fill the table


def _at_load(home: Path) -> None:
    """``crash_at_load`` kills the process that loads it, ``hang_at_load`` waits for ever.

    ``train_only`` has no graph tagged ``serve``, but one tagged ``train``; its signature ``count`` says how often it was run.
    """
    import tensorflow as tf

    v1 = tf.compat.v1

    def build(name: str, main_op: Callable[[], Any], tags: tuple[str, ...] = ("serve",)) -> None:
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, (None,), "x")
            calls = v1.get_variable("calls", initializer=tf.constant(0, tf.int64))
            session.run(v1.global_variables_initializer())
            signatures = {
                "serving_default": _signature({"x": x}, {"y": tf.identity(x)}),
                "count": _signature({"x": x}, {"calls": tf.fill(tf.shape(x), calls.assign_add(1, read_value=True))}),
            }
            _save_1(home, name, session, signatures, tags=tags, main_op=main_op())

    build("crash_at_load", lambda: tf.raw_ops.Abort(error_msg="the test asked for it"))
    build("hang_at_load", lambda: tf.group(tf.queue.FIFOQueue(1, [tf.float32]).dequeue()))
    build("train_only", tf.no_op, ("train",))


# ---------------------------------------------------------------------------------------------------------------------- broken ones


def _edit(home: Path, name: str, change: Callable[[Any], None], base: str = "linear1") -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    shutil.copytree(home / base, home / name)
    path = home / name / "saved_model.pb"
    message = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    change(message)
    path.write_bytes(message.SerializeToString())


def _broken(home: Path) -> None:
    """What can be wrong with the files; ``missing_tensor`` and ``missing_op_inside`` may be found only by a request."""

    def other_op(message: Any) -> None:
        next(node for node in message.meta_graphs[0].graph_def.node if node.op == "ConcatV2").op = "OpOfANewerTensorFlow"

    def other_op_inside(message: Any) -> None:
        nodes = [node for function in message.meta_graphs[0].graph_def.library.function for node in function.node_def]
        next(node for node in nodes if node.op == "MatMul").op = "OpOfANewerTensorFlow"

    def other_tensor(message: Any) -> None:
        message.meta_graphs[0].signature_def["serving_default"].outputs["output_0"].name = "nowhere:0"

    _edit(home, "missing_op", other_op, "examples1")
    _edit(home, "missing_op_inside", other_op_inside)
    _edit(home, "missing_tensor", other_tensor)
    for name in ("broken_pb", "cut_pb", "no_pb", "no_variables", "cut_variables"):
        shutil.copytree(home / "linear1", home / name)
    (home / "broken_pb" / "saved_model.pb").write_bytes(b"not a graph")
    whole = (home / "linear1" / "saved_model.pb").read_bytes()
    (home / "cut_pb" / "saved_model.pb").write_bytes(whole[: len(whole) // 2])
    (home / "no_pb" / "saved_model.pb").unlink()
    shutil.rmtree(home / "no_variables" / "variables")
    (data,) = (home / "cut_variables" / "variables").glob("*.data-*")
    data.write_bytes(data.read_bytes()[:5])
    (home / "empty").mkdir()


# ---------------------------------------------------------------------------------------------------------------------- warm-up


def _warmed(home: Path) -> None:
    """``warmed`` is ``many`` with 3 requests to ``count``, ``warmed_examples`` is ``examples2`` with one request of each other kind.

    ``conv_cold`` is ``conv`` with a request of another shape.
    ``cold`` is ``linear1`` with a request that it cannot answer, ``train_cold`` the same of ``train_only``; the warm-up file of
    ``warm_garbage`` is no TFRecord, that of ``warm_too_much`` holds 1001 requests.
    """
    from airflow_mlops.serving import protos

    def logged(kind: str, request: Any) -> bytes:
        log = protos.prediction_log_pb2.PredictionLog()
        getattr(log, kind).request.CopyFrom(request)
        return bytes(log.SerializeToString())

    count = protos.predict_pb2.PredictRequest()
    count.model_spec.name, count.model_spec.signature_name = "many", "count"
    count.inputs["x"].CopyFrom(protos.tensor_pb2.TensorProto(dtype=protos.types_pb2.DT_FLOAT, float_val=[1.0]))
    count.inputs["x"].tensor_shape.dim.add(size=1)
    wrong = protos.predict_pb2.PredictRequest()
    wrong.CopyFrom(count)
    wrong.model_spec.signature_name = "nothing"
    flat = protos.predict_pb2.PredictRequest()
    flat.CopyFrom(count)
    flat.model_spec.name, flat.model_spec.signature_name = "conv", ""
    classify, regress, multi = (
        protos.classification_pb2.ClassificationRequest(),
        protos.regression_pb2.RegressionRequest(),
        protos.inference_pb2.MultiInferenceRequest(),
    )
    for request in (classify, regress, multi):
        request.input.example_list.examples.add().features.feature["x"].float_list.value.append(0.5)
    regress.model_spec.signature_name = "regress"
    for signature, method in (("serving_default", "classify"), ("regress", "regress")):
        task = multi.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "examples2", signature
    _warm(home, "warmed", "many", [logged("predict_log", count)] * 3)
    _warm(
        home, "warmed_examples", "examples2", [logged("classify_log", classify), logged("regress_log", regress), logged("multi_inference_log", multi)]
    )
    _warm(home, "cold", "linear1", [logged("predict_log", wrong)])
    _warm(home, "conv_cold", "conv", [logged("predict_log", flat)])
    _warm(home, "warm_too_much", "many", [logged("predict_log", count)] * 1001)
    _warm(home, "train_cold", "train_only", [logged("predict_log", wrong)])
    _warm(home, "warm_garbage", "linear1", [])
    (home / "warm_garbage" / WARMUP).write_bytes(b"this is no record at all, but it is long enough")


WARMUP = "assets.extra/tf_serving_warmup_requests"


def _warm(home: Path, name: str, base: str, logs: list[bytes]) -> None:
    import tensorflow as tf

    shutil.copytree(home / base, home / name, copy_function=_link)
    (home / name / WARMUP).parent.mkdir()
    with tf.io.TFRecordWriter(str(home / name / WARMUP)) as writer:
        for log in logs:
            writer.write(log)


def build(home: Path) -> None:
    """Build all models in `home`, unless another process has."""
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / COMPLETE).exists():
            for builder in (_linear, _two, _many, _conv, _trouble, _examples2, _examples1, _at_load, _broken, _warmed):
                builder(home)
            (home / COMPLETE).touch()


if __name__ == "__main__":
    from airflow_mlops.serving import protos  # noqa: F401  # before TensorFlow, as its docstring asks for

    build(Path(sys.argv[1]))
