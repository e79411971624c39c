"""What a model's files would do is found out before anything that could do it reads them.

Loading a model can run code: Keras archives hold Python functions as bytes (``Lambda`` layers) and names of classes, and pickled files are
programs. Keras refuses much of that itself (``safe_mode``); here is what it leaves to others, and what must be known right after a training and
not at the next load. Only the standard library reads the files, and nothing is unpacked.

Source: https://keras.io/api/models/model_saving_apis/model_saving_and_loading (``safe_mode``), https://docs.python.org/3/library/pickle.html.
"""

from __future__ import annotations

import json
import pickletools
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from airflow_mlops.exceptions import UnsafeModel

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MEMBERS = (CONFIG, "metadata.json", WEIGHTS)  # and assets/: what `keras.Model.save` writes
HDF5 = b"\x89HDF\r\n\x1a\n"
MAX_EXPANSION, SMALL = 100, 1 << 24  # Keras does not compress at all; below 16 MiB nothing is worth a word

# Layers of Keras that run what is not Keras: Python functions kept as bytes, another framework's pickles, a SavedModel from any path.
CARRIERS = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
PICKLED = (".pkl", ".pickle", ".joblib", ".dill", ".pt", ".pth")
_HEAD = 10_000 + 12  # NumPy reads no longer header without being told that it may unpickle
_OPCODES = {ord(opcode.code) for opcode in pickletools.opcodes}
ADVICE = "Compose it of Keras' own layers and operations, or set unsafe_models_allowed where everybody who can write model files is trusted."


def inspect_keras(path: Path, *, code_allowed: bool = False) -> None:
    """Raise `UnsafeModel` unless `path` is an archive as Keras writes it that brings no code of its own; `code_allowed` leaves out the latter."""
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            stream.seek(0)
            if stream.read(4) != b"PK\x03\x04":
                raise zipfile.BadZipFile("something else stands before the archive")
            _check_members(path, archive)
            config = json.loads(archive.read(CONFIG))
            heads = {name: _head(archive, name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, EOFError) as error:
        raise UnsafeModel(f"{path} is no Keras archive ({error}): expected the ZIP file that Model.save writes. Save the model again.") from error
    if not heads[WEIGHTS].startswith(HDF5):
        raise UnsafeModel(f"{path} has no weights that Keras wrote: {WEIGHTS} is no HDF5 file. Save the model again.")
    if not code_allowed and (found := [*_code(config), *_pickles(heads)]):
        raise UnsafeModel(f"{path} brings code with it that would run wherever the model is loaded: {'; '.join(found)}. {ADVICE}")


def inspect_files(files: Mapping[str, Path]) -> None:
    """Raise `UnsafeModel` if one of a model's `files`, by relative path, is a pickle: nothing in a SavedModel is one."""
    heads = {}
    for name, path in files.items():
        with path.open("rb") as stream:
            heads[name] = stream.read(_HEAD)
    if found := list(_pickles(heads)):
        raise UnsafeModel(
            f"The model brings code with it that runs when Python unpickles it: {'; '.join(found)}. Take it out, or see to where it is from."
        )


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    for member in members:
        if wrong := _wrong(member):
            raise UnsafeModel(f"{path} holds {member.filename!r}, {wrong}: expected what Model.save writes. Do not use it; see to where it is from.")
    names = Counter(member.filename for member in members)
    if twice := [name for name, number in names.items() if number > 1]:
        raise UnsafeModel(f"{path} holds {twice[0]!r} twice, and every reader may choose another. Do not use it; see to where it is from.")
    if missing := {CONFIG, WEIGHTS} - names.keys():
        raise UnsafeModel(f"{path} is no Keras archive: expected {', '.join(sorted(missing))} in it. Save the model again.")
    if sum(member.compress_size for member in members) > path.stat().st_size:
        raise UnsafeModel(f"{path} holds files that lie over each other, as no archive does but one that unpacks to any size. Do not use it.")


def _wrong(member: zipfile.ZipInfo) -> str:
    """Return what is wrong with a member of a Keras archive, or nothing."""
    parts = PurePosixPath(member.filename).parts
    if member.filename.startswith("/") or ".." in parts or "\\" in member.filename or ":" in parts[:1][0]:
        return "which leads out of the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a symbolic link"
    if member.filename not in MEMBERS and parts[0] != "assets":
        return "which Keras does not know"
    if member.file_size > max(SMALL, MAX_EXPANSION * member.compress_size):
        return f"which unpacks from {member.compress_size} to {member.file_size} bytes"
    return ""


def _head(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as stream:
        return stream.read(_HEAD)


def _code(config: Any) -> Iterator[str]:
    """Yield what of a Keras configuration is code, or names code that is not Keras', with the layer it belongs to."""
    waiting: list[tuple[Any, str]] = [(config, "the model")]
    while waiting:
        value, owner = waiting.pop()
        if isinstance(value, dict):
            inner = value.get("config")
            if isinstance(inner, dict) and "class_name" in value:
                owner = f"{value['class_name']} {inner['name']!r}" if "name" in inner else owner
            if problem := _foreign(value):
                yield f"{owner} {problem}"
            waiting += [(child, owner) for child in reversed(value.values())]
        elif isinstance(value, list):
            waiting += [(child, owner) for child in reversed(value)]


def _foreign(node: Mapping[str, Any]) -> str:
    """Return what a node of a configuration brings that is not Keras, or nothing."""
    name, module = node.get("class_name"), node.get("module", "keras")
    if name is None:
        return ""
    if name == "__lambda__":
        return "holds a Python function"
    if name in CARRIERS:
        return f"is a {name} layer"
    own = module is None or (module != "builtins" and str(module).split(".")[0] != "keras") or ">" in str(node.get("registered_name"))
    inner = node.get("config")
    if own:
        return f"needs {node.get('registered_name') or name} of {module or 'a module of its own'}, which is not Keras'"
    if isinstance(inner, dict) and isinstance(inner.get("vocabulary"), str):
        return f"reads the file {inner['vocabulary']!r}"
    return ""


def _pickles(heads: Mapping[str, bytes]) -> Iterator[str]:
    """Yield which files, by name with their first bytes, Python would unpickle."""
    for name, head in heads.items():
        tensors = PurePosixPath(name).name.startswith("variables.data-")  # any bytes, read by TensorFlow and by nobody else
        if name.lower().endswith(PICKLED) or (not tensors and _is_pickle(head)):
            yield f"{name} is a pickle"
        elif head.startswith(b"\x93NUMPY") and b"'|O" in head:
            yield f"{name} is a NumPy array of pickled objects"


def _is_pickle(head: bytes) -> bool:
    return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and head[2:3] != b"" and head[2] in _OPCODES
