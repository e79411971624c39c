"""What clients notice while a label moves between two versions of a model: for a test, a proof and a bench."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from airflow_mlops.serving import config, protos
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from tests.load import Query, Sample, in_process, once, open_loop
from tests.servers import EmbeddedServer, await_state


class Served(NamedTuple):
    """A running server of versions 1 and 2 of model `name`, label stable=1, and one request for it by gRPC and by REST."""

    server: EmbeddedServer
    name: str
    base_path: Path
    by_grpc: Query
    by_rest: Query

    def of(self, *, label: str | None = None, version: int | None = None) -> tuple[Query, Query]:
        """Return both queries for the version that a label serves, or for one version."""
        request = protos.predict_pb2.PredictRequest.FromString(self.by_grpc.payload)
        if label is not None:
            request.model_spec.version_label = label
        if version is not None:
            request.model_spec.version.value = version
        which = f"labels/{label}" if label else f"versions/{version}"
        url = self.by_rest.url.replace(":predict", f"/{which}:predict")
        return self.by_grpc._replace(payload=request.SerializeToString()), self.by_rest._replace(url=url)

    def config(self, label_on: int | None) -> ServerConfig:
        """Return the configuration with both versions and label ``stable`` on one of them."""
        return ServerConfig((ModelConfig(self.name, str(self.base_path), (1, 2), {} if label_on is None else {"stable": label_on}),))


@contextlib.contextmanager
def serving(name: str, base_path: Path, request: Any, body: bytes, *flags: str) -> Iterator[Served]:
    """Yield a server of versions 1 and 2 below `base_path`, asked with a `PredictRequest` and the JSON `body` of the same request."""
    with tempfile.TemporaryDirectory() as home:
        server = EmbeddedServer(Path(home) / "models.config", flags)
        rest = Query(f"{server.rest_url}/v1/models/{name}:predict", body)
        served = Served(server, name, base_path, Query(server.grpc_address, request.SerializeToString()), rest)
        config.write(server.config_file, served.config(1))
        server.start()
        try:
            with server.client() as client:
                for version in (1, 2):
                    await_state(client, name, version, "AVAILABLE")
            yield served
        finally:
            server.stop()


class Switched(NamedTuple):
    """What clients saw while a label moved again and again: seconds from each move to the first answer of the new version, by gRPC and REST."""

    num_requests: int
    failures: list[str]
    num_wrong: int
    moves: list[float]


def switch_under_load(served: Served, rate: float, num_switches: int, seconds: float) -> Switched:
    """Move label ``stable`` to and fro while it is asked `rate` times a second by gRPC and as often by REST."""
    queries = served.of(label="stable")
    moved: list[tuple[float, int]] = []
    with in_process() as load, served.server.client() as client:
        load.submit(time.time).result()  # the process is there
        asking: Future[list[list[Sample]]] = load.submit(open_loop, list(queries), rate, seconds)
        time.sleep(1.0)
        for number in range(num_switches):
            version = 2 - number % 2
            moved.append((time.monotonic(), version))
            client.reload(served.config(version))
            time.sleep(max(0.0, (seconds - 2.0) / num_switches - (time.monotonic() - moved[-1][0])))
        samples = asking.result()
        versions = {version: served.of(version=version) for version in (1, 2)}
        known = [{load.submit(once, versions[version][which]).result(): version for version in (1, 2)} for which in (0, 1)]
    everything = [sample for part in samples for sample in part]
    moves = [_first_answer(part, known[which], version, at) - at for at, version in moved for which, part in enumerate(samples)]
    return Switched(
        num_requests=len(everything),
        failures=[sample.error for sample in everything if sample.answer is None],
        num_wrong=sum(sample.answer not in known[which] for which, part in enumerate(samples) for sample in part if sample.answer is not None),
        moves=moves,
    )


def _first_answer(samples: list[Sample], known: dict[bytes, int], version: int, after: float) -> float:
    times = (sample.done for sample in samples if sample.answer is not None and known.get(sample.answer) == version and sample.done > after)
    return min(times, default=float("inf"))


def held_bytes(pid: int) -> float:
    """Return the bytes that a process and its descendants hold, what they share counted once (proportional set size)."""
    process = psutil.Process(pid)
    return float(sum(one.memory_full_info().pss for one in [process, *process.children(recursive=True)]))
