from __future__ import annotations

import subprocess
import sys

CHECK = """
import sys
from airflow_mlops.serving import client, config, protos, publish, rollout
early = protos.tensor_pb2.TensorProto
assert not [m for m in sys.modules if m == "tensorflow" or m.startswith(("tensorflow.", "keras", "pandas"))], "TensorFlow was imported"
import tensorflow as tf
tensor = tf.make_tensor_proto([1.0, 2.0])
request = protos.predict_pb2.PredictRequest()
request.inputs["x"].CopyFrom(tensor)
assert type(tensor) is early
assert tf.make_ndarray(request.inputs["x"]).tolist() == [1.0, 2.0]
print("whole")
"""


def test_the_messages_come_without_tensorflow_and_a_later_import_of_it_works() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, timeout=120)
    assert done.stdout == "whole\n", done.stderr


def test_the_messages_load_beside_an_imported_tensorflow() -> None:
    # A bare package stands in for the real one here: what counts is that a present `tensorflow` is neither replaced nor removed.
    code = (
        "import sys, types, importlib.util\n"
        "bare = types.ModuleType('tensorflow'); bare.__path__ = list(importlib.util.find_spec('tensorflow').submodule_search_locations)\n"
        "sys.modules['tensorflow'] = bare\n"
        "from airflow_mlops.serving import protos\n"
        "print(sys.modules['tensorflow'] is bare and 'tensorflow.core.framework.tensor_pb2' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr
