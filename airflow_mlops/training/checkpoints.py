"""Checkpoints that are whole or not there: a training that is interrupted goes on from the last one whose digest holds.

A checkpoint is one safetensors file with weights, optimizer variables, and the seeds of dropout and its like. It exists once its *marker* does, a
small JSON file that is written last and holds the file's digest. NumPy is enough to write one; Keras' models and optimizers are only asked for
their variables.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from airflow_mlops.artifacts import abandoned, canonical_json, file_digest, write_atomically, writer
from airflow_mlops.exceptions import CheckpointError, CheckpointMismatch

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

KEPT = 2  # the second is for the day on which the newest is torn
MARKERS = "step-*.safetensors.json"
CHUNK = 1 << 24  # bytes
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
MODEL, EXTRA = "model/", "extra/"
SHOWN_DIFFERENCES = 3

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after `step` batches: `state` as it was given to `save`, `arrays` its further arrays."""

    path: Path
    step: int
    state: Mapping[str, Any]
    arrays: Arrays


@dataclass
class CheckpointManager:
    """Writes and finds the checkpoints of one training in the directory `place`, which all its tries and attempts share.

    * `identity`: names the request; a checkpoint that another request left is refused.
    * `every_seconds`: how long a training may go on without a checkpoint: what an interruption may cost.
    * `resumed_from`: the checkpoint that `restore` took, or None; `spoiled`: names of the files that were not as they were written.

    To measure it: ``CheckpointManager(place, "bench").save(model, step)`` writes ``sum(v.nbytes for v in model.variables)`` bytes and the
    optimizer's; compare it with writing and fsyncing as many.
    """

    place: Path
    identity: str
    every_seconds: float = 60.0
    resumed_from: Checkpoint | None = field(default=None, init=False)
    spoiled: list[str] = field(default_factory=list, init=False)

    def save(self, model: keras.Model, step: int, arrays: Arrays | None = None, **state: Any) -> Path:
        """Keep `model`, its optimizer, further `arrays` and the JSON `state` after `step` batches; return the file.

        :raises CheckpointError: the disk is full, or may not be written; what was saved before stays.
        """
        tensors = {**_tensors(model), **{f"{EXTRA}{name}": value for name, value in (arrays or {}).items()}}
        path = self.place / f"step-{step:012d}.safetensors"
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            digest, size = _write(path, tensors, json.dumps(state))
            write_atomically(_marker(path), canonical_json({"digest": digest, "size": size, "step": step, "identity": self.identity}))
        except OSError as error:
            raise CheckpointError(
                f"The checkpoint {path} cannot be written: {error}. What was saved before it stays. Make room or give a writable directory, and "
                "run the stage again: it goes on from there."
            ) from error
        self._keep_newest()
        return path

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose digest holds, or None; what does not hold is put aside as ``.quarantined``.

        :raises CheckpointMismatch: it is another request's.
        """
        for marker in self._markers():
            path = marker.with_suffix("")
            try:
                note = json.loads(marker.read_bytes())
                found = path.stat().st_size, file_digest(path)
                whole = found == (note["size"], note["digest"])
                identity = note["identity"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                whole, found = False, (0, str(error))
            if not whole:
                self._quarantine(path, found)
                continue
            if identity != self.identity:
                raise CheckpointMismatch(
                    f"The checkpoint {path} is of another request: {identity}, this one is {self.identity}. Its dataset, code, parameters or seed "
                    "differ. Give another directory, or remove this one to begin anew."
                )
            return _read(path, int(note["step"]))
        return None

    def restore(self, model: keras.Model) -> Checkpoint | None:
        """Set `model` and its optimizer to the newest checkpoint and return that, or None where there is none.

        :raises CheckpointMismatch: it is another request's or another model's; the message says what differs.
        """
        checkpoint = self.latest()
        if checkpoint is None:
            return None
        from safetensors import safe_open

        variables = dict(_variables(model))
        with safe_open(checkpoint.path, framework="numpy") as stored:
            there = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys() if name.startswith(MODEL)}  # noqa: SIM118
            _check_same(checkpoint.path, there, {name: tuple(variable.shape) for name, variable in variables.items()})
            values = {name: stored.get_tensor(name) for name in there}
        _check_same(
            checkpoint.path,
            {name: value.dtype.name for name, value in values.items()},
            {name: str(variable.dtype) for name, variable in variables.items()},
        )
        for name, variable in variables.items():
            variable.assign(values[name])
        self.resumed_from = checkpoint
        log.info("Going on from step %d, saved in %s.", checkpoint.step, checkpoint.path)
        return checkpoint

    def clear(self) -> None:
        """Remove every checkpoint: their training is done."""
        for marker in self._markers():
            _remove(marker)

    def _markers(self) -> list[Path]:
        return sorted(self.place.glob(MARKERS), reverse=True)

    def _keep_newest(self) -> None:
        for marker in self._markers()[KEPT:]:
            _remove(marker)
        for left in self.place.glob(".step-*"):
            with contextlib.suppress(FileNotFoundError):  # another attempt tidies too
                if abandoned(left):
                    left.unlink()

    def _quarantine(self, path: Path, found: tuple[int, str]) -> None:
        log.warning("The checkpoint %s is not as it was written (%d bytes, %s): it is put aside, and the one before it is used.", path, *found)
        self.spoiled.append(path.name)
        for left in (_marker(path), path):  # the marker first: without it nobody takes the file for a checkpoint
            if left.exists():
                left.replace(left.with_name(f"{left.name}.quarantined"))


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _remove(marker: Path) -> None:
    marker.unlink(missing_ok=True)
    marker.with_suffix("").unlink(missing_ok=True)


def _variables(model: keras.Model) -> Iterator[tuple[str, Any]]:
    """Yield every variable that a training changes by a name that is the same in another process."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
    for number, variable in enumerate([*model.variables, *(optimizer.variables if optimizer is not None else ())]):
        # Keras counts the layers of a process: dense_7 here is dense_3 there.
        yield f"{MODEL}{number:05d}/{re.sub(r'_[0-9]+(?=[/_]|$)', '', variable.path)}", variable


def _tensors(model: keras.Model) -> dict[str, NDArray[Any]]:
    return {name: _memory(variable) for name, variable in _variables(model)}


def _memory(variable: Any) -> NDArray[Any]:
    """Return a variable's values; those in the machine's own memory are not copied, which would cost as much as writing them."""
    tensor = variable.value.read_value()
    try:
        return np.asarray(memoryview(tensor))
    except ValueError:  # Python has no name for bfloat16 in a buffer
        return np.asarray(tensor.numpy())


def _write(path: Path, tensors: Arrays, state: str) -> tuple[str, int]:
    """Write a safetensors file that nobody sees before it is whole; return its digest and size in bytes. The digest is taken beside the writing."""
    header: dict[str, Any] = {"__metadata__": {"state": state}}
    parts, offset = [], 0
    for name, value in tensors.items():
        header[name] = {"dtype": DTYPES[value.dtype.name], "shape": list(value.shape), "data_offsets": [offset, offset + value.nbytes]}
        parts.append(memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data))
        offset += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors aligned
    parts.insert(0, memoryview(len(text).to_bytes(8, "little") + text))
    unfinished = path.with_name(f".{path.name}.{writer()}.tmp")
    digest = hashlib.sha256()
    try:
        with ThreadPoolExecutor(1) as beside, unfinished.open("wb", buffering=0) as stream:
            for part in parts:
                for start in range(0, len(part), CHUNK):
                    chunk = part[start : start + CHUNK]
                    beside.submit(digest.update, chunk)
                    _write_all(stream.fileno(), chunk)
            os.fsync(stream.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return f"sha256:{digest.hexdigest()}", sum(map(len, parts))


def _write_all(descriptor: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(descriptor, chunk) :]


def _read(path: Path, step: int) -> Checkpoint:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as stored:
        arrays = {name.removeprefix(EXTRA): stored.get_tensor(name) for name in stored.keys() if name.startswith(EXTRA)}  # noqa: SIM118
        return Checkpoint(path, step, json.loads(stored.metadata()["state"]), arrays)


def _check_same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    names = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    differences = [f"{name.removeprefix(MODEL)} {there.get(name, 'absent')} there, {here.get(name, 'absent')} here" for name in names]
    if differences:
        shown = "; ".join(differences[:SHOWN_DIFFERENCES])
        more = f"; and {len(differences) - SHOWN_DIFFERENCES} more" if len(differences) > SHOWN_DIFFERENCES else ""
        raise CheckpointMismatch(
            f"The checkpoint {path} is of another model: {shown}{more}. Give another directory, or remove this one to begin anew."
        )
