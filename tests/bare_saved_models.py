"""SavedModels of messages and arbitrary bytes: what publishing reads of one is right, though no server could load it; made in no time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow_mlops.serving import protos

ROWS = [[1.0, 2.0, 3.0, 4.0], [0.5, 0.0, -1.0, 0.1]]


def tensor(dtype: str = "DT_FLOAT", shape: Sequence[int] | None = (-1, 4)) -> Any:
    """Return a `TensorInfo`; shape None leaves even the number of dimensions open."""
    info = protos.meta_graph_pb2.TensorInfo(name="t:0", dtype=protos.types_pb2.DataType.Value(dtype))
    info.tensor_shape.unknown_rank = shape is None
    for size in shape or ():
        info.tensor_shape.dim.add(size=size)
    return info


def signature(inputs: Mapping[str, Any] | None = None, outputs: Mapping[str, Any] | None = None, defaults: Sequence[str] = ()) -> Any:
    """Return a `SignatureDef` of tensors by name; ``x`` and ``y`` if nothing else is said."""
    found = protos.meta_graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
    for name, info in (inputs or {"x": tensor()}).items():
        found.inputs[name].CopyFrom(info)
    for name, info in (outputs or {"y": tensor(shape=(-1, 2))}).items():
        found.outputs[name].CopyFrom(info)
    for name in defaults:
        found.defaults[name].SetInParent()
    return found


def graph(signatures: Mapping[str, Any] | None = None, tags: Sequence[str] = ("serve",)) -> bytes:
    """Return the bytes of a ``saved_model.pb``."""
    saved = protos.saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta = saved.meta_graphs.add()
    meta.meta_info_def.tags.extend(tags)
    for name, one in ({"serving_default": signature()} if signatures is None else signatures).items():
        meta.signature_def[name].CopyFrom(one)
    return bytes(saved.SerializeToString(deterministic=True))


def saved_model(directory: Path, signatures: Mapping[str, Any] | None = None, weights: bytes = b"weights") -> Path:
    """Write a SavedModel and return its directory."""
    (directory / "variables").mkdir(parents=True)
    (directory / "assets").mkdir()
    (directory / "saved_model.pb").write_bytes(graph(signatures))
    (directory / "variables" / "variables.index").write_bytes(b"index of " + weights[:7])
    (directory / "variables" / "variables.data-00000-of-00001").write_bytes(weights)
    return directory


def golden(path: Path, rows: Any = ROWS) -> Path:
    """Write golden answers to `rows` and return the file."""
    path.write_text(json.dumps({"inputs": rows, "outputs": [[0.0, 0.0] for _ in rows]}))
    return path
