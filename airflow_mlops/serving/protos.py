"""The TensorFlow Serving messages without TensorFlow.

The generated modules import ``tensorflow.core...``, and importing a child first runs ``tensorflow/__init__``: 4-13 s and 700 MB in every
Airflow worker, for messages that need only protobuf. While the generated modules are imported, a bare ``tensorflow`` package that knows
only its directory stands in; afterwards all its modules are taken out of `sys.modules` again, so that a later real ``import tensorflow``
starts clean. The message classes stay the same ones, because protobuf keeps one class per descriptor. If TensorFlow is already imported,
nothing stands in. Import this module before starting a thread that imports TensorFlow.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from airflow_mlops.exceptions import SpecError


def _tensorflow_modules() -> list[str]:
    return [name for name in sys.modules if name == "tensorflow" or name.startswith("tensorflow.")]


@contextmanager
def _bare_tensorflow() -> Iterator[None]:
    """Let ``tensorflow.*`` be imported without running ``tensorflow/__init__``."""
    if "tensorflow" in sys.modules:
        yield
        return
    found = importlib.util.find_spec("tensorflow")
    if found is None or found.submodule_search_locations is None:
        raise SpecError("TensorFlow is not installed, and the model server's messages are part of it. Install airflow-mlops[serving].")
    bare = ModuleType("tensorflow")
    bare.__path__ = list(found.submodule_search_locations)
    sys.modules["tensorflow"] = bare
    try:
        yield
    finally:
        for name in _tensorflow_modules():
            del sys.modules[name]


def _load(name: str) -> Any:
    return importlib.import_module(name)


with _bare_tensorflow():
    classification_pb2 = _load("tensorflow_serving.apis.classification_pb2")
    get_model_metadata_pb2 = _load("tensorflow_serving.apis.get_model_metadata_pb2")
    get_model_status_pb2 = _load("tensorflow_serving.apis.get_model_status_pb2")
    inference_pb2 = _load("tensorflow_serving.apis.inference_pb2")
    input_pb2 = _load("tensorflow_serving.apis.input_pb2")
    model_management_pb2 = _load("tensorflow_serving.apis.model_management_pb2")
    model_pb2 = _load("tensorflow_serving.apis.model_pb2")
    model_service_pb2_grpc = _load("tensorflow_serving.apis.model_service_pb2_grpc")
    model_server_config_pb2 = _load("tensorflow_serving.config.model_server_config_pb2")
    predict_pb2 = _load("tensorflow_serving.apis.predict_pb2")
    prediction_log_pb2 = _load("tensorflow_serving.apis.prediction_log_pb2")
    prediction_service_pb2_grpc = _load("tensorflow_serving.apis.prediction_service_pb2_grpc")
    regression_pb2 = _load("tensorflow_serving.apis.regression_pb2")
    example_pb2 = _load("tensorflow.core.example.example_pb2")
    feature_pb2 = _load("tensorflow.core.example.feature_pb2")
    config_pb2 = _load("tensorflow.core.protobuf.config_pb2")
    meta_graph_pb2 = _load("tensorflow.core.protobuf.meta_graph_pb2")
    saved_model_pb2 = _load("tensorflow.core.protobuf.saved_model_pb2")
    tensor_pb2 = _load("tensorflow.core.framework.tensor_pb2")
    types_pb2 = _load("tensorflow.core.framework.types_pb2")
    json_format = _load("google.protobuf.json_format")
    text_format = _load("google.protobuf.text_format")
