"""What clients rely on: the signatures of a SavedModel, read without TensorFlow, and what of them another version would break."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.message import DecodeError

from airflow_mlops.exceptions import PublishError
from airflow_mlops.serving import protos, tensors

DEFAULT_SIGNATURE = "serving_default"  # what a request asks that names no signature; so in TensorFlow Serving
_SERVED_TAGS = {"serve"}  # a server loads the graph that has exactly these tags
_INTERNAL = "__saved_model"  # how TensorFlow 2 notes its initializers, among the signatures
ADVICE = "Nothing was published; export the model again, with signatures for serving."


def message(graph: bytes, what: str) -> Any:
    """Return the ``SavedModel`` message of a ``saved_model.pb``; raise `PublishError` about `what` if it is none."""
    try:
        return protos.saved_model_pb2.SavedModel.FromString(graph)
    except DecodeError as error:
        raise PublishError(f"{what} is broken: expected a SavedModel message, found {len(graph)} other bytes. {ADVICE}") from error


def parse(graph: bytes, what: str) -> dict[str, Any]:
    """Return the `SignatureDef` messages by name of the graph in a ``saved_model.pb`` that a server loads: the one with the tag ``serve`` alone.

    Raises `PublishError` about `what` if there is no such graph, or nothing in it could be asked.
    """
    saved = message(graph, what)
    found = [meta for meta in saved.meta_graphs if set(meta.meta_info_def.tags) == _SERVED_TAGS]
    if not found:
        graphs = [", ".join(sorted(meta.meta_info_def.tags)) or "no tag" for meta in saved.meta_graphs]
        raise PublishError(
            f"{what} has no graph with the tag 'serve' and no other, which is the one that a server loads; it has "
            f"{'; '.join(f'one with {tags}' for tags in graphs) or 'no graph at all'}. {ADVICE}"
        )
    signatures = {name: signature for name, signature in found[0].signature_def.items() if not name.startswith(_INTERNAL)}
    if not signatures:
        raise PublishError(f"{what} has no signature, so nobody could ask it. {ADVICE}")
    return signatures


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what would break a client of the `old` signatures that asks the `new` ones, as sentences; `SignatureDef` messages by name.

    Nothing breaks where there is more than before: a new signature or output, an input with a default, an input that takes more shapes.
    """
    broken = [f"Signature {name!r} is gone." for name in sorted(old.keys() - new.keys())]
    for name in sorted(old.keys() & new.keys()):
        broken += _inputs(name, old[name], new[name])
        broken += _outputs(name, old[name], new[name])
    return broken


def dimensions(info: Any) -> tuple[int, ...] | None:
    """Return the shape of a `TensorInfo`, with -1 for any size; None if even the number of dimensions is open."""
    return None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)


def described(info: Any) -> str:
    """Return type and shape of a `TensorInfo` for a person, such as ``DT_FLOAT[-1, 4]``."""
    dims = dimensions(info)
    return f"{tensors.type_name(info.dtype)}{'[...]' if dims is None else list(dims)}"


def _inputs(name: str, old: Any, new: Any) -> Iterator[str]:
    for key in sorted(old.inputs.keys() - new.inputs.keys()):
        yield f"Input {key!r} of {name!r} is gone."
    for key in sorted(new.inputs.keys() - old.inputs.keys() - new.defaults.keys()):
        yield f"Input {key!r} of {name!r} is new, and no client sends it."
    for key in sorted(old.inputs.keys() & new.inputs.keys()):
        before, after = old.inputs[key], new.inputs[key]
        if before.dtype != after.dtype or not _takes(dimensions(after), dimensions(before)):
            yield f"Input {key!r} of {name!r} took {described(before)} and takes {described(after)}."
        elif key in old.defaults and key not in new.defaults:
            yield f"Input {key!r} of {name!r} has no default any more."


def _outputs(name: str, old: Any, new: Any) -> Iterator[str]:
    for key in sorted(old.outputs.keys() - new.outputs.keys()):
        yield f"Output {key!r} of {name!r} is gone."
    for key in sorted(old.outputs.keys() & new.outputs.keys()):
        if described(before := old.outputs[key]) != described(after := new.outputs[key]):
            yield f"Output {key!r} of {name!r} was {described(before)} and is {described(after)}."


def _takes(new: tuple[int, ...] | None, old: tuple[int, ...] | None) -> bool:
    """Return whether an input of shape `new` takes everything that one of shape `old` took."""
    if new is None:
        return True
    return old is not None and len(old) == len(new) and all(after in (-1, before) for before, after in zip(old, new, strict=True))
