"""Run one stage in this process and leave its result record: the body of ``airflow-mlops stage NAME --spec FILE --result FILE``."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from airflow_mlops.artifacts import bytes_digest, canonical_json, write_atomically
from airflow_mlops.exceptions import MlopsError, ResultInvalid, SpecError, StageError, StageStopped, WorkerLost
from airflow_mlops.records import SCHEMA_VERSION, Record, ResultRef, StageFailure
from airflow_mlops.results import DatasetVersion, from_data, to_data
from airflow_mlops.stages import stage
from airflow_mlops.stages.stop import EXIT_CODE
from airflow_mlops.stages.usage import measure
from airflow_mlops.stages.worker import LOST_CODE

log = logging.getLogger(__name__)


def spec_data(spec: Any) -> Any:
    """Return a spec, typed or as Airflow rendered it, as JSON-ready data: named tuples and records become objects."""
    if hasattr(spec, "_asdict"):
        return {name: spec_data(value) for name, value in spec._asdict().items()}
    if dataclasses.is_dataclass(spec):
        return to_data(spec)
    if isinstance(spec, Mapping):
        return {name: spec_data(value) for name, value in spec.items()}
    return [spec_data(value) for value in spec] if isinstance(spec, list | tuple) else spec


def spec_digest(spec: Any) -> str:
    """Return the digest by which a result record names the request it answers."""
    return bytes_digest(canonical_json(spec_data(spec)))


def parse_spec(name: str, data: Any) -> Any:
    """Return JSON `data` as the spec of stage `name`; raise `SpecError` with every field that does not fit."""
    try:
        spec = from_data(stage(name).Spec, data, what=f"spec of stage {name!r}")
    except ResultInvalid as error:
        raise SpecError(str(error)) from error
    try:
        canonical_json(spec_data(spec))
    except (TypeError, ValueError) as error:
        raise SpecError(f"The spec of stage {name!r} is no JSON: {error}. Give finite numbers, strings, lists and objects.") from error
    return spec


def run_stage(name: str, spec_path: Path, result_path: Path, *, image: str | None = None, gpus: int = 0) -> int:
    """Run stage `name` and write its record atomically; return 0, 1 when the record holds an error, 75 when that is `WorkerLost`, or 143 without a
    record when the stage was told to stop.

    `image` is kept in the record, and `gpus`, how many were asked for, with what was used. A `SpecError` about the request itself is raised, not
    recorded: without a spec there is nothing that a record could answer.
    """
    spec = parse_spec(name, _read_spec(spec_path))
    digest = spec_digest(spec)
    result_path.parent.mkdir(parents=True, exist_ok=True)
    inputs = {field: value for field, value in spec._asdict().items() if isinstance(value, ResultRef)}
    seconds_before = 0.0
    try:
        result = stage(name).run(spec, result_path.parent)
        data = to_data(from_data(type(result), to_data(result), what=f"result of stage {name!r}"))  # refuses NaN while it can be said
    except StageStopped as stopped:  # no record: what is not done is neither a result nor a failure
        log.warning("%s", stopped)
        return EXIT_CODE
    except Exception as error:  # every failure becomes a record, with its traceback in the log
        expected = isinstance(error, MlopsError)
        log.error("%s", error, exc_info=error if not expected or error.__cause__ is not None else None)
        record = Record(SCHEMA_VERSION, name, digest, error=StageFailure.of(error), inputs=inputs, image=image)
    else:
        log.info("%s", result.headline())
        seconds_before = getattr(result, "seconds_before", 0.0)  # only a training goes on from where another attempt was
        record = Record(SCHEMA_VERSION, name, digest, result=data, inputs=inputs, image=image)
    usage = dataclasses.replace(measure(seconds_before), num_gpus_asked=gpus)
    if usage.num_gpus < gpus and name == "train":
        log.warning(
            "%d GPUs were asked for, and TensorFlow sees %d: the training was as slow as without them. Look at image and driver.",
            gpus,
            usage.num_gpus,
        )
    record = dataclasses.replace(record, usage=usage)
    try:
        write_atomically(result_path, canonical_json(to_data(record)))
    except OSError as error:
        raise StageError(
            f"The record of stage {name!r} cannot be written to {result_path}: {error}. Nothing is believed without it: make room, and run the "
            "stage again."
        ) from error
    return 0 if record.error is None else LOST_CODE if record.error.type == WorkerLost.__name__ else 1


def references(spec: Any) -> Iterator[Any]:
    """Yield what a typed spec refers to, dataset versions and result records, as JSON data; those in one field of several as one list."""
    if isinstance(spec, ResultRef | DatasetVersion):
        yield to_data(spec)
    elif isinstance(spec, tuple) and spec and all(isinstance(one, ResultRef) for one in spec):
        yield [to_data(one) for one in spec]
    elif isinstance(spec, tuple | list | Mapping):
        for one in spec.values() if isinstance(spec, Mapping) else spec:
            yield from references(one)


def _read_spec(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise SpecError(f"The spec {path} cannot be read ({error.strerror}). Give a JSON file with --spec.") from error
    except ValueError as error:
        raise SpecError(f"The spec {path} is not JSON ({error}).") from error
