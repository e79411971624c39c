"""Object storage between a worker and its pod, where they share no volume: the request goes down with all it refers to, the result comes up.

Nothing is believed because it lies there: what is fetched has the digest it was sent under, a request or a result is written after everything
that it names, and a result that does not hold is set aside. Names are those of pods: whoever sends the same again writes the same.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from airflow_mlops.artifacts import Artifact, artifacts, canonical_json
from airflow_mlops.exceptions import ResultInvalid, SpecError
from airflow_mlops.records import Record, ResultRef, load, read_any
from airflow_mlops.results import STRICT, DatasetVersion, from_data, to_data
from airflow_mlops.stages import stage
from airflow_mlops.stages.objects import FOLDER, FRESH_SECONDS, PAUSES, Objects
from airflow_mlops.stages.runner import spec_data
from airflow_mlops.training.code_copy import code_files, write_origin
from airflow_mlops.training.function import code_authors, code_version

T = TypeVar("T")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_FILES = ("suite",)  # the fields of specs that hold the path of a file
_CODE = "code_path"
_OBJECT = re.compile(r"sha256:([0-9a-f]{64})")
_TREE = re.compile(r'"digest":"sha256:([0-9a-f]{64})","directory":true')  # as canonical JSON has it


@STRICT
@dataclass(frozen=True)
class Item:
    """A file, or a directory, that lies at the absolute `path` on both sides."""

    path: str
    digest: str
    directory: bool


@STRICT
@dataclass(frozen=True)
class Code:
    """A copy of the user's code, and what the worker's Git says of it."""

    item: Item
    version: str
    authors: tuple[str, ...]


@STRICT
@dataclass(frozen=True)
class Request:
    """What a pod is asked for: a stage, its spec as JSON, and what the spec refers to."""

    stage: str
    spec: dict[str, Any]
    items: tuple[Item, ...]
    code: tuple[Code, ...] = ()


@STRICT
@dataclass(frozen=True)
class Delivery:
    """What a pod has done: its result record, and the artefacts that the record names."""

    record: Item
    items: tuple[Item, ...]


class Exchange:
    """The exchange at `url`, such as ``s3://bucket/exchange``; `storage_options` (endpoint, credentials) are fsspec's for such a store.

    Every call may raise `ExchangeUnavailable`, which a retry may help, and `StageError` where the store refuses.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None, pauses: Sequence[float] = PAUSES) -> None:
        self.objects = Objects(url.rstrip("/"), storage_options or {}, pauses)

    def send_request(self, name: str, stage_name: str, spec: Any) -> None:
        """Upload what the typed `spec` refers to, then the request: records with their artefacts, dataset versions, the user's code.

        :raises ResultInvalid: a record or an artefact that it refers to changed.
        :raises SpecError: it refers to what a pod cannot reach, or sends more code than any code is.
        """
        path = _named("requests", name)
        _check_registry(spec)
        items = {item: self._put(Path(item)) for item in dict.fromkeys(_paths(spec))}
        code = tuple(self._put_code(Path(place)) for place in dict.fromkeys(_fields(spec, (_CODE,))))
        request = Request(stage_name, spec_data(spec), tuple(items.values()), code)
        self.objects.write(path, canonical_json(to_data(request)))

    def take_request(self, name: str) -> tuple[str, Any]:
        """Download what the request refers to, to where it lay on the worker; return the stage's name and its spec as JSON."""
        request = self._read(_named("requests", name), Request)
        if request is None:
            raise SpecError(f"{self.objects.url} holds no request {name!r}. It is written before its pod is made: correct the name, or the URL.")
        for item in (*request.items, *(code.item for code in request.code)):
            self._get(item)
        for code in request.code:
            place = Path(code.item.path)
            if (code_version(place), code_authors(place)) != (code.version, code.authors):
                write_origin(place, code.version, code.authors)
        return request.stage, request.spec

    def send_result(self, name: str, result_path: Path) -> None:
        """Upload the artefacts that the record at `result_path` names, then the record, then that it is there."""
        path = _named("results", name)
        items = tuple(self._put(Path(artifact.uri)) for artifact in _artifacts(read_any(result_path)))
        delivery = Delivery(self._put(result_path), items)
        self.objects.write(path, canonical_json(to_data(delivery)))

    def take_result(self, name: str, result_path: Path) -> bool:
        """Download the record to `result_path`, after every artefact that it names; return False if there is none (yet).

        :raises ResultInvalid: it does not hold, and is at ``results/<name>.quarantined.json`` now.
        """
        path = _named("results", name)
        try:
            delivery = self._read(path, Delivery)
            if delivery is None:
                return False
            _check(delivery, result_path)
            for item in delivery.items:
                self._get(item)
            self._get(delivery.record)
            for artifact in _artifacts(read_any(result_path)):
                artifact.verify()
        except ResultInvalid:
            self.objects.write(_named("results", name, ".quarantined"), self.objects.read(path) or b"")
            self.objects.remove(path)
            result_path.unlink(missing_ok=True)
            raise
        return True

    def clean(self, age_seconds: float, finished: Sequence[str] = (), limit: int = 10_000) -> int:
        """Delete what is older than `age_seconds` (two days or more), and the requests and results of `finished` names; return how many.

        Objects go when nothing refers to them any more and they are as old. At most `limit` are deleted; call it again for the rest.
        """
        if not age_seconds >= 2 * FRESH_SECONDS:  # also where it is NaN
            raise SpecError(f"The age is {age_seconds / FRESH_SECONDS:g} days; give at least 2: who sends relies on what is a day old.")
        ages = {name: age for folder in ("requests", "results", "checkpoints") for name, age in self.objects.ages(folder).items()}
        over = {_named(folder, name) for folder in ("requests", "results") for name in finished}
        gone = [name for name, age in ages.items() if age > age_seconds or name in over][:limit]
        for name in gone:
            self.objects.remove(name)
        used = self._used(sorted(name for name in ages.keys() - set(gone) if name.endswith(".json")))  # checkpoints themselves are no text
        old = [name for name, age in self.objects.ages().items() if age > age_seconds and name not in used]
        for name in old[: limit - len(gone)]:
            self.objects.remove(name)
        return len(gone) + len(old[: limit - len(gone)])

    def _used(self, names: Sequence[str]) -> set[str]:
        """Return the objects that requests, results and checkpoints refer to, in the listings of directories too."""
        found: set[str] = set()
        for text in (self.objects.read(name) or b"" for name in names):
            found |= set(_OBJECT.findall(text.decode()))
            for tree in _TREE.findall(text.decode()):
                found |= set(_OBJECT.findall((self.objects.read(f"{FOLDER}/{tree}") or b"").decode()))
        return {f"{FOLDER}/{digest}" for digest in found}

    def _put(self, path: Path) -> Item:
        directory = path.is_dir()
        return Item(str(path), self.objects.put_tree(path) if directory else self.objects.put(path), directory)

    def _put_code(self, path: Path) -> Code:
        return Code(Item(str(path), self.objects.put_tree(path, code_files(path)), True), code_version(path), code_authors(path))

    def _get(self, item: Item) -> None:
        get = self.objects.get_tree if item.directory else self.objects.get
        get(item.digest, Path(item.path))

    def _read(self, path: str, kind: type[T]) -> T | None:
        text = self.objects.read(path)
        if text is None:
            return None
        try:
            return from_data(kind, json.loads(text), what=f"text at {self.objects.url}/{path}")
        except ValueError as error:
            raise ResultInvalid(f"{self.objects.url}/{path} is no JSON ({error}): it was cut off or altered. Run the stage again.") from error


def _check(delivery: Delivery, result_path: Path) -> None:
    """Refuse a delivery that would write anywhere but beside the record: a pod is not believed where its files go."""
    if delivery.record.path != str(result_path) or delivery.record.directory:
        raise ResultInvalid(f"The result is {delivery.record.path}; expected {result_path}. It answers another request: run the stage again.")
    for item in delivery.items:
        if ".." in Path(item.path).parts or not Path(item.path).is_relative_to(result_path.parent):
            raise ResultInvalid(f"The result brings {item.path}; expected only what lies below {result_path.parent}. Do not trust this pod.")


def _check_registry(spec: Any) -> None:
    for uri in _fields(spec, ("tracking_uri",)):
        if uri != "databricks" and urlsplit(uri).scheme.partition("+")[0] in ("", "file", "sqlite"):
            raise SpecError(
                f"tracking_uri is {uri}: a place on the worker, which a pod with an exchange has not. Give a server, as http://mlflow:5000."
            )


def _named(folder: str, name: str, ending: str = "") -> str:
    if not _NAME.fullmatch(name):
        raise SpecError(f"{name!r} cannot name a request; expected what can name a pod: small letters, digits, dots and hyphens.")
    return f"{folder}/{name}{ending}.json"


def _artifacts(record: Record) -> Iterator[Artifact]:
    if record.result is not None:
        yield from artifacts(from_data(stage(record.stage).Result, record.result, what=f"result of stage {record.stage!r}"))


def _paths(value: Any) -> Iterator[str]:
    """Yield the path of everything but code that a spec refers to; records and their artefacts are verified before."""
    yield from _fields(value, _FILES)
    for part in _walk(value):
        if isinstance(part, DatasetVersion | Artifact):
            yield part.uri
        elif isinstance(part, ResultRef):
            yield part.uri
            yield from _paths(load(part, stage(part.stage).Result))


def _fields(value: Any, names: Sequence[str]) -> Iterator[str]:
    """Yield what stands in the fields of these names, in nested specs too."""
    for part in _walk(value):
        if hasattr(part, "_asdict"):
            yield from (str(text) for name, text in part._asdict().items() if name in names and text)


def _walk(value: Any) -> Iterator[Any]:
    yield value
    parts: Iterable[Any] = ()
    if dataclasses.is_dataclass(value):
        parts = (getattr(value, item.name) for item in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, tuple | list):
        parts = value
    for part in parts:
        yield from _walk(part)
