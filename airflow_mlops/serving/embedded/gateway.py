"""From a request of either interface to the process that answers it: which version, how long it took, and what is counted."""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple

import grpc

from airflow_mlops.serving import protos
from airflow_mlops.serving.embedded.frames import Kind
from airflow_mlops.serving.embedded.metrics import Metrics
from airflow_mlops.serving.embedded.model_process import Crashed, ModelProcess, Result
from airflow_mlops.serving.embedded.refusal import Refusal, invalid
from airflow_mlops.serving.embedded.suspects import Asked, Suspects
from airflow_mlops.serving.embedded.versions import Versions

_ENTRYPOINTS = {
    Kind.PREDICT: ("Predict", "GRPC"),
    Kind.CLASSIFY: ("Classify", "GRPC"),
    Kind.REGRESS: ("Regress", "GRPC"),
    Kind.MULTI_INFERENCE: ("MultiInference", "GRPC"),
    Kind.REST_PREDICT: ("predict", "REST"),
    Kind.REST_CLASSIFY: ("classify", "REST"),
    Kind.REST_REGRESS: ("regress", "REST"),
}


class Target(NamedTuple):
    """What a request asks for: at most one of `version` and `label`; neither is the latest loaded version."""

    name: str
    version: int | None = None
    label: str | None = None


class Gateway:
    """Sends requests to the processes of the versions they are for."""

    def __init__(self, versions: Versions[ModelProcess], metrics: Metrics) -> None:
        self._versions = versions
        self._metrics = metrics
        self._suspects = Suspects()

    async def ask(self, kind: Kind, target: Target, payload: bytes, seconds: float | None) -> bytes:
        """Return the answer to a client's bytes; raise `Refusal`. Nobody waits for it after `seconds` (None: for ever): it need not be made then."""
        began = time.monotonic()
        version, code, micros = None, grpc.StatusCode.OK, 0
        try:
            version, process = self._versions.resolve(*target)
            asked = Asked(target.name, version, kind, payload)
            result = await self._ask(process, asked, 0.0 if seconds is None else began + seconds)
            micros = result.run_micros
            return result.payload
        except Refusal as refusal:
            code = refusal.code
            raise
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        finally:
            # Names that are no model's are not noted: clients could fill the memory with them.
            name = target.name if self._versions.config.get(target.name) else ""
            self._metrics.count(name, version, code, *_ENTRYPOINTS[kind], (time.monotonic() - began) * 1e6, micros)

    async def _ask(self, process: ModelProcess, asked: Asked, deadline: float) -> Result:
        """Ask a process, unless this very request has ended it twice."""
        suspect = self._suspects.is_one(asked, time.monotonic())
        try:
            result = await process.ask(asked.kind, asked.payload, deadline, alone=suspect)
        except Crashed:
            self._suspects.note(asked, time.monotonic())
            raise
        except Refusal as refusal:
            if suspect and refusal.code is not grpc.StatusCode.UNAVAILABLE:
                self._suspects.clear(asked)
            raise
        if suspect:
            self._suspects.clear(asked)
        return result

    def signatures(self, target: Target) -> tuple[int, Any]:
        """Return the version number a request is for and its `SignatureDefMap`; raise `Refusal`."""
        version, process = self._versions.resolve(*target)
        return version, protos.get_model_metadata_pb2.SignatureDefMap.FromString(process.ready.result())

    def status(self, name: str, version: int | None) -> Any:
        """Return the `GetModelStatusResponse` of a model or of one version; raise `Refusal` if there is none."""
        response = protos.get_model_status_pb2.GetModelStatusResponse()
        for number, state, error in self._versions.states(name, version):
            entry = response.model_version_status.add(version=number, state=state)
            entry.status.error_message = error
            entry.status.error_code = 2 if error else 0  # UNKNOWN, or OK
        return response


def target_of(spec: Any) -> Target:
    """Return what a `ModelSpec` asks for; raise `Refusal` if it names no model."""
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")
    version = spec.version.value if spec.HasField("version") else None
    return Target(spec.name, version, spec.version_label if spec.HasField("version_label") else None)
