"""Real Keras archives, and every way in which one could bring code of its own or hurt whoever opens it."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from airflow_mlops.exceptions import UnsafeModel
from airflow_mlops.inspection import inspect_files, inspect_keras

PACKAGE = Path(__file__).parents[2] / "airflow_mlops"
Members = dict[str, bytes]


class Shell:
    """What unpickling runs."""

    def __reduce__(self) -> Any:
        return eval, ("1 / 0",)


@keras.saving.register_keras_serializable("team")
class Twice(keras.layers.Layer):
    """A layer of the team's own."""

    def call(self, x: Any) -> Any:
        return x * 2


def sequential(*layers: Any, shape: tuple[int, ...] = (3,), dtype: str = "float32") -> keras.Model:
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers])


def functional() -> keras.Model:
    """Return a model of everything that Keras names in a configuration: operations, activations, losses, metrics, initializers."""
    inputs = keras.Input((3,))
    outputs = keras.activations.gelu(keras.ops.relu(inputs) + 1)
    dense = keras.layers.Dense(2, keras.activations.softmax, kernel_initializer=keras.initializers.Constant(0.1), kernel_regularizer="l2")
    model = keras.Model(inputs, dense(outputs))
    model.compile("adam", keras.losses.MeanSquaredError(), [keras.metrics.MeanAbsoluteError()])
    return model


def text() -> keras.Model:
    """Return a model with a vocabulary, which its archive holds as assets."""
    words = keras.layers.TextVectorization(output_sequence_length=4)
    words.adapt(["one two", "two three"])
    return sequential(words, keras.layers.Embedding(10, 2), keras.layers.Flatten(), keras.layers.Dense(2), shape=(1,), dtype="string")


ORDINARY = {
    "sequential": lambda: sequential(keras.layers.Dense(2)),
    "functional": functional,
    "text": text,
    "nested": lambda: sequential(sequential(keras.layers.Dense(4), keras.layers.BatchNormalization()), keras.layers.Dropout(0.5)),
    "recurrent": lambda: sequential(keras.layers.Bidirectional(keras.layers.LSTM(2)), shape=(5, 3)),
}


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    """The files of a good archive."""
    path = tmp_path_factory.mktemp("good") / "model.keras"
    sequential(keras.layers.Dense(2, name="last")).save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.keras"


def packed(path: Path, members: Members, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def edited(members: Members, edit: Callable[[dict[str, Any]], None]) -> Members:
    """Return the members with `edit` done to the configuration of the layer ``last``."""
    config = json.loads(members["config.json"])
    edit(config["config"]["layers"][-1])
    return {**members, "config.json": json.dumps(config).encode()}


def with_a_lambda(path: Path) -> Path:
    """Turn the innermost last layer of a saved model into one that brings code."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    layer = config
    while "layers" in layer["config"]:
        layer = layer["config"]["layers"][-1]
    layer["class_name"] = "Lambda"
    return packed(path, {**members, "config.json": json.dumps(config).encode()})


@pytest.mark.parametrize("model", ORDINARY.values(), ids=ORDINARY)
def test_what_keras_saves_of_its_own_layers_passes_and_was_looked_at(path: Path, model: Callable[[], keras.Model]) -> None:
    model().save(path)
    inspect_keras(path)
    with pytest.raises(UnsafeModel, match="Lambda"):
        inspect_keras(with_a_lambda(path))


@pytest.mark.parametrize("function", [lambda x: x * 2, keras.activations.relu], ids=["lambda", "named function"])
def test_a_lambda_layer_is_named_and_may_be_allowed(path: Path, function: Any) -> None:
    sequential(sequential(keras.layers.Lambda(function, name="doubled", output_shape=(3,)))).save(path)
    with pytest.raises(UnsafeModel, match=r"brings code with it .*Lambda 'doubled' .*set unsafe_models_allowed"):
        inspect_keras(path)
    inspect_keras(path, code_allowed=True)


def test_a_layer_of_one_s_own_is_named_and_may_be_allowed(path: Path) -> None:
    sequential(Twice(name="twice")).save(path)
    with pytest.raises(UnsafeModel, match=r"Twice 'twice' needs team>Twice of .*test_inspection, which is not Keras'"):
        inspect_keras(path)
    inspect_keras(path, code_allowed=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}, "needs system of os, which is not Keras'"),
        ({"module": "kerasx.layers"}, "needs Dense of kerasx.layers, which is not Keras'"),
        ({"module": "keras.layers", "registered_name": "evil>Dense"}, "needs evil>Dense of keras.layers"),
        ({"class_name": "TFSMLayer"}, "is a TFSMLayer layer"),
        ({"class_name": "TorchModuleWrapper"}, "is a TorchModuleWrapper layer"),
        ({"class_name": "StringLookup", "config": {"name": "last", "vocabulary": "/etc/passwd"}}, "reads the file '/etc/passwd'"),
        ({"build_config": {"x": [{"class_name": "__lambda__", "config": {"code": "4wEA"}}]}}, "Dense 'last' holds a Python function"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_configuration_that_names_foreign_code_is_refused(path: Path, members: Members, change: dict[str, Any], message: str) -> None:
    packed(path, edited(members, lambda layer: layer.update(change)))
    with pytest.raises(UnsafeModel, match=re.escape(message)):
        inspect_keras(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../home/.bashrc", "which leads out of the archive"),
        ("/etc/cron.d/job", "which leads out of the archive"),
        ("assets/../../x", "which leads out of the archive"),
        ("assets\\..\\x", "which leads out of the archive"),
        ("c:/x", "which leads out of the archive"),
        ("sitecustomize.py", "which Keras does not know"),
        ("model.weights.npz", "which Keras does not know"),
    ],
)
def test_an_archive_with_other_names_than_keras_writes_is_refused_whoever_is_trusted(path: Path, members: Members, name: str, message: str) -> None:
    packed(path, {**members, name: b"content"})
    with pytest.raises(UnsafeModel, match=message):
        inspect_keras(path, code_allowed=True)


def test_a_symbolic_link_in_an_archive_is_refused(path: Path, members: Members) -> None:
    packed(path, members)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("assets/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UnsafeModel, match="'assets/link', a symbolic link"):
        inspect_keras(path)


def test_a_file_that_unpacks_to_a_thousand_times_its_size_is_refused_before_it_is_unpacked(path: Path, members: Members) -> None:
    packed(path, {**members, "assets/bomb": bytes(40 << 20)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(UnsafeModel, match=r"'assets/bomb', which unpacks from \d+ to 41943040 bytes"):
        inspect_keras(path, code_allowed=True)


def test_files_that_lie_over_each_other_are_refused(path: Path, members: Members) -> None:
    packed(path, {**members, "assets/a": bytes(30_000)})
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("assets/b", "assets/c"):
            shared = zipfile.ZipInfo(name)
            origin = archive.getinfo("assets/a")
            shared.header_offset, shared.CRC = origin.header_offset, origin.CRC
            shared.file_size = shared.compress_size = origin.file_size
            archive.filelist.append(shared)
            archive.NameToInfo[name] = shared
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(UnsafeModel, match="lie over each other"):
        inspect_keras(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(path: Path, members: Members) -> None:
    packed(path, members)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(UnsafeModel, match=r"holds 'config\.json' twice"):
        inspect_keras(path)


def test_a_pickle_among_the_assets_is_refused_by_its_name_or_its_content(path: Path, members: Members) -> None:
    packed(path, {**members, "assets/table.joblib": b"anything", "assets/vocabulary.txt": pickle.dumps(Shell())})
    with pytest.raises(UnsafeModel, match=r"assets/table\.joblib is a pickle; assets/vocabulary\.txt is a pickle"):
        inspect_keras(path)


@pytest.mark.parametrize("content", ["pickle", "hdf5", "pickle before the archive", "cut off", "deep", "empty"])
def test_a_file_that_is_no_archive_of_keras_is_refused_whatever_its_name(path: Path, members: Members, content: str) -> None:
    packed(path, members)
    good = path.read_bytes()
    deep = packed(path, {**members, "config.json": b"[" * 100_000}).read_bytes()
    files = {
        "pickle": pickle.dumps(Shell()),
        "hdf5": members["model.weights.h5"],
        "pickle before the archive": pickle.dumps(Shell()) + good,
        "cut off": good[:-30],
        "deep": deep,
        "empty": b"",
    }
    path.write_bytes(files[content])
    with pytest.raises(UnsafeModel, match="is no Keras archive"):
        inspect_keras(path, code_allowed=True)


def test_an_archive_without_weights_or_with_others_than_hdf5_is_refused(path: Path, members: Members) -> None:
    packed(path, {name: content for name, content in members.items() if name != "model.weights.h5"})
    with pytest.raises(UnsafeModel, match=r"is no Keras archive: expected model\.weights\.h5 in it"):
        inspect_keras(path)
    packed(path, {**members, "model.weights.h5": pickle.dumps(Shell())})
    with pytest.raises(UnsafeModel, match=r"model\.weights\.h5 is no HDF5 file"):
        inspect_keras(path, code_allowed=True)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_any_protocol_with_a_mark_is_found_beside_a_model(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "notes.txt").write_bytes(pickle.dumps(Shell(), protocol))
    with pytest.raises(UnsafeModel, match=r"assets/notes\.txt is a pickle"):
        inspect_files({"assets/notes.txt": tmp_path / "notes.txt"})


def test_an_array_of_objects_is_found_and_one_of_numbers_or_text_is_not(tmp_path: Path) -> None:
    files = {}
    for name, array in {"objects": np.array([Shell()], dtype=object), "numbers": np.arange(3), "text": np.array(["a", "b"])}.items():
        np.save(tmp_path / f"{name}.npy", array)
        files[f"assets/{name}"] = tmp_path / f"{name}.npy"
    with pytest.raises(UnsafeModel) as caught:
        inspect_files(files)
    assert str(caught.value).count(" is a ") == 1
    assert "assets/objects is a NumPy array of pickled objects" in str(caught.value)


def test_weights_may_be_any_bytes_because_only_tensorflow_reads_them(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(pickle.dumps(Shell()))
    inspect_files({"variables/variables.data-00000-of-00001": tmp_path / "data"})
    with pytest.raises(UnsafeModel, match="is a pickle"):
        inspect_files({"assets/weights.txt": tmp_path / "data"})


def test_the_package_loads_no_array_with_pickled_objects_and_unpickles_only_what_its_own_processes_wrote() -> None:
    loads, unpickling = [], set()
    for module in PACKAGE.rglob("*.py"):
        source = module.read_text()
        loads += re.findall(r"np\.load\((?:[^()]|\([^()]*\))*\)", source)
        if re.search(r"\b(pickle\.loads?|joblib|dill|cloudpickle|allow_pickle=True)\b", source):
            unpickling.add(module.relative_to(PACKAGE).as_posix())
    assert len(loads) >= 4
    assert [call for call in loads if "allow_pickle=False" not in call] == []
    assert unpickling <= {"serving/embedded/zygote.py", "serving/embedded/processes.py", "inspection.py"}


def test_the_documented_tests_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (PACKAGE.parent / "docs" / "supply-chain.md").read_text()))
    written = "\n".join(path.read_text() for path in (PACKAGE.parent / "tests").rglob("*.py"))
    assert len(named) > 10
    assert [name for name in sorted(named) if f"def {name}(" not in written] == []


def test_numpy_itself_would_have_run_the_pickle() -> None:
    """What the refusals are about: not a fault of a file, but a program in it."""
    stream = io.BytesIO()
    np.save(stream, np.array([Shell()], dtype=object))
    stream.seek(0)
    with pytest.raises(ZeroDivisionError):
        np.load(stream, allow_pickle=True)
