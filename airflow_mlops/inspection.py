"""What a model's files would do is found out before anything that could do it reads them.

Loading a model can run code: Keras archives hold Python functions as bytes (``Lambda`` layers) and names of classes, and pickled files are
programs. Keras refuses much of that itself (``safe_mode``); here is what it leaves to others, and what must be known right after a training and
not at the next load. Only the standard library reads the files, and nothing is unpacked.

A SavedModel holds no Python, but its graph is a program too, and may do more than compute.

Source: https://keras.io/api/models/model_saving_apis/model_saving_and_loading (``safe_mode``), https://docs.python.org/3/library/pickle.html,
https://github.com/tensorflow/tensorflow/blob/master/SECURITY.md.
"""

from __future__ import annotations

import json
import pickletools
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
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

# Operations that reach out of the graph. A graph is a program: "TensorFlow may read and write files, send and receive data over the network, and
# even spawn additional processes" (TensorFlow's SECURITY.md). Not among them: what fills lookup tables from the model's own assets
# (InitializeTableFromTextFile), and printing to the server's log, which ordinary models do.
PYTHON = ("EagerPyFunc", "PyFunc", "PyFuncStateless")
FILES = (
    *("DecodeProtoV2", "EncodeProto", "FileSystemSetConfiguration", "FixedUnigramCandidateSampler", "GenerateVocabRemapping"),
    *("ImmutableConst", "LoadAndRemapMatrix", "MatchingFiles"),
    *("ReadFile", "RecordInput", "WriteFile", "CreateSummaryDbWriter", "CreateSummaryFileWriter"),
    *("FixedLengthRecordReader", "FixedLengthRecordReaderV2", "LMDBReader", "TFRecordReader", "TFRecordReaderV2", "TextLineReader"),
    *("TextLineReaderV2", "WholeFileReader", "WholeFileReaderV2"),
    *("CSVDataset", "CSVDatasetV2", "CacheDataset", "CacheDatasetV2", "DatasetToTFRecord", "DistributedSave", "ExperimentalCSVDataset"),
    *("ExperimentalDatasetToTFRecord", "ExperimentalLMDBDataset", "ExperimentalMatchingFilesDataset", "ExperimentalSqlDataset"),
    *("FixedLengthRecordDataset", "FixedLengthRecordDatasetV2", "LMDBDataset", "ListSnapshotChunksDataset", "LoadDataset", "MatchingFilesDataset"),
    *("SaveDataset", "SaveDatasetV2", "SnapshotChunkDataset", "SnapshotDataset", "SnapshotDatasetReader", "SnapshotDatasetV2"),
    *("SnapshotNestedDatasetReader", "SqlDataset", "TFRecordDataset", "TFRecordDatasetV2", "TextLineDataset"),
)
NETWORK = (
    *("CollectiveBcastRecv", "CollectiveBcastRecvV2", "CollectiveBcastSend", "CollectiveBcastSendV2", "Recv", "Send"),
    *("DataServiceDataset", "DataServiceDatasetV2", "DataServiceDatasetV3", "DataServiceDatasetV4", "RegisterDataset", "RegisterDatasetV2"),
    *("DebugIdentity", "DebugIdentityV2", "DebugIdentityV3", "DebugNanCount", "DebugNumericSummary", "DebugNumericSummaryV2"),  # to any URL
)
# Every SavedModel has these, and its loader alone runs them, on the model's own variables.
SAVING = ("DistributedSave", "MergeV2Checkpoints", "Save", "SaveSlices", "SaveV2")
RESTORING = ("Restore", "RestoreSlice", "RestoreV2")
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


def inspect_graph(saved: Any) -> None:
    """Raise `UnsafeModel` if a ``SavedModel`` message has operations that run Python or reach files or the network.

    Saving and restoring variables is the loader's work alone: what signatures and initializers reach must do neither, what restores must not save.
    """
    found = set()
    for meta in saved.meta_graphs:
        graph = meta.graph_def
        everything = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        asked = [name for signature in meta.signature_def.values() for info in signature.outputs.values() for name in _tensors(info)]
        started = [name for collection in meta.collection_def.values() for name in collection.node_list.value]
        found |= _named(everything, {*PYTHON, *FILES, *NETWORK}) | {f"PrintV2 ({node.name})" for node in everything if _prints_to_a_file(node)}
        found |= _named(_reached(graph, [*asked, *started]), {*SAVING, *RESTORING})
        found |= _named(_reached(graph, [meta.saver_def.restore_op_name]), SAVING)
    if found:
        raise UnsafeModel(
            "The SavedModel has operations that run Python or reach files or the network wherever it is served: "
            f"{', '.join(sorted(found))}. Compose it of others, or set unsafe_models_allowed of the model server's connection and of the pipeline."
        )


def _named(nodes: Iterable[Any], operations: Collection[str]) -> set[str]:
    return {f"{node.op} ({node.name})" for node in nodes if node.op in operations}


def _prints_to_a_file(node: Any) -> bool:
    return node.op == "PrintV2" and bool(node.attr["output_stream"].s.startswith(b"file:"))


def _tensors(info: Any) -> list[str]:
    """Return the names of the tensors that a `TensorInfo` stands for."""
    sparse = info.coo_sparse
    parts = [info.name, sparse.values_tensor_name, sparse.indices_tensor_name, sparse.dense_shape_tensor_name]
    return parts + [name for component in info.composite_tensor.components for name in _tensors(component)]


def _reached(graph: Any, roots: Iterable[str]) -> list[Any]:
    """Return every node that is computed for the tensors or nodes `roots`, with all nodes of the functions that are called for them."""
    nodes = {node.name: node for node in graph.node}
    functions = {function.signature.name: function.node_def for function in graph.library.function}
    waiting, names = list(roots), set()
    while waiting:
        name = waiting.pop().removeprefix("^").partition(":")[0]  # ^node for a control input, node:number for an output
        if name in nodes and name not in names:
            names.add(name)
            waiting += nodes[name].input
    reached = [nodes[name] for name in sorted(names)]
    called: set[str] = set()
    for node in reached:  # which grows meanwhile
        new = ({node.op, *_functions(node.attr)} & functions.keys()) - called
        called |= new
        reached += [inner for name in sorted(new) for inner in functions[name]]
    return reached


def _functions(attributes: Mapping[str, Any]) -> Iterator[str]:
    for value in attributes.values():
        for function in (value.func, *value.list.func):
            yield function.name
            yield from _functions(function.attr)


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
