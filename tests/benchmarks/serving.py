"""What the embedded model server costs beside calling the model itself, and what its clients notice of switches and loads.

LeNet-5 with random weights, two versions of it. Server, load generator and the direct loop share the machine's cores; the loops are measured
in turn, several rounds, and the best of each counts, because others may use the machine.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

from airflow_mlops.serving import protos, tensors, warmup
from airflow_mlops.serving.config import ModelConfig, ServerConfig
from tests.benchmarks.row import Row
from tests.load import Query, Sample, closed_loop, in_process, open_loop
from tests.servers import EmbeddedServer, await_state
from tests.switching import Served, held_bytes, serving, switch_under_load

ROOT = Path(__file__).parents[2]
ROUNDS, SECONDS = 5, 2.0
LOAD = 0.4  # of the measured saturation
TABLE = 25_000_000  # float32 values of the large model's table: 100 MB
BODY = 100_000_000  # bytes of a large request


def rows() -> Iterator[Row]:
    """Yield the rows of serving."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        subprocess.run([sys.executable, "-m", "tests.benchmarks.serving", str(home)], cwd=ROOT, check=True, capture_output=True)
        yield from _rates(home)
        yield _start(home)
        yield from _switches(home)
        yield from _large(home)
        yield from _large_requests(home)
        yield from _memory(home)


@contextlib.contextmanager
def _lenet(home: Path, *flags: str) -> Iterator[Served]:
    """Yield a server of versions 1 and 2 of ``lenet``."""
    picture = json.loads((home / "picture.json").read_text())
    with serving("lenet", home / "lenet", _request(picture), json.dumps({"instances": picture}).encode(), *flags) as served:
        yield served


def _request(picture: list[Any]) -> Any:
    import numpy as np

    request = protos.predict_pb2.PredictRequest()
    request.model_spec.name = "lenet"
    request.inputs["picture"].CopyFrom(tensors.to_proto(np.array(picture, np.float32)))
    return request


def _rates(home: Path) -> Iterator[Row]:
    """Requests per second, ours against a loop that calls the loaded signature, all measured in turn."""
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(_lenet(home))
        batching = stack.enter_context(_lenet(home, "--enable_batching"))
        direct, load = stack.enter_context(in_process()), stack.enter_context(in_process())
        echo = stack.enter_context(_echo(plain.by_grpc.payload))
        calls = {
            "direct": partial(direct.submit, direct_rate, str(home / "lenet" / "1"), SECONDS),
            "gRPC, 1 client": partial(load.submit, closed_loop, plain.by_grpc, 1, SECONDS),
            "gRPC, 4 clients": partial(load.submit, closed_loop, plain.by_grpc, 4, SECONDS),
            "batching, 32 clients": partial(load.submit, closed_loop, batching.by_grpc, 32, SECONDS),
            "REST, 4 clients": partial(load.submit, closed_loop, plain.by_rest, 4, SECONDS),
            "REST, batching, 32 clients": partial(load.submit, closed_loop, batching.by_rest, 32, SECONDS),
            "echo, 1 client": partial(load.submit, closed_loop, echo, 1, SECONDS),
            "echo, 32 clients": partial(load.submit, closed_loop, echo, 32, SECONDS),
        }
        turns = [{name: call().result() for name, call in calls.items()} for _ in range(ROUNDS + 1)]
    rate = {name: max(turn[name] for turn in turns[1:]) for name in calls}
    loop = "loop over the loaded signature, in its process"
    yield Row("predict one LeNet picture by gRPC, 4 clients", rate["gRPC, 4 clients"], loop, rate["direct"], wanted=0.5, unit="/s")
    yield Row("the same, 1 client", rate["gRPC, 1 client"], loop, rate["direct"], unit="/s")
    yield Row("the same, batching, 32 clients", rate["batching, 32 clients"], loop, rate["direct"], wanted=0.9, unit="/s")
    yield Row("by REST, 4 clients", rate["REST, 4 clients"], "by gRPC, 4 clients", rate["gRPC, 4 clients"], wanted=0.5, unit="/s")
    rest, batched = rate["REST, batching, 32 clients"], rate["batching, 32 clients"]
    yield Row("by REST, batching, 32 clients", rest, "by gRPC, batching, 32 clients", batched, wanted=0.5, unit="/s")
    yield Row("by gRPC, batching, 32 clients", batched, "bare grpc.aio echo, 32 clients", rate["echo, 32 clients"], unit="/s")
    yield Row("by gRPC, 1 client", rate["gRPC, 1 client"], "bare grpc.aio echo, 1 client", rate["echo, 1 client"], unit="/s")


_loaded: dict[str, Any] = {}


def direct_rate(path: str, seconds: float) -> float:
    """Return how often per second a process can call a loaded SavedModel's signature on one picture, array to array."""
    import numpy as np
    import tensorflow as tf

    if path not in _loaded:
        _loaded[path] = tf.saved_model.load(path)
    signature = _loaded[path].signatures["serving_default"]
    picture = np.random.default_rng(0).random((1, 28, 28, 1), np.float32)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        signature(picture=tf.constant(picture))["probabilities"].numpy()
        count += 1
    return count / (time.perf_counter() - began)


@contextlib.contextmanager
def _echo(payload: bytes) -> Iterator[Query]:
    """Yield the query of a grpc.aio server that gives back what it gets: the most that a server in Python can do."""
    process = subprocess.Popen([sys.executable, "-m", "tests.benchmarks.echo"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield Query(f"127.0.0.1:{process.stdout.readline().strip()}", payload)
    finally:
        process.kill()
        process.wait()


def _start(home: Path) -> Row:
    """From nothing to the first answer, against what TensorFlow alone takes to be imported and to load the model."""
    config = ServerConfig((ModelConfig("lenet", str(home / "lenet"), (1,)),))
    file = home / "start.config"
    file.write_text(protos.text_format.MessageToString(config.to_proto()))
    picture = json.loads((home / "picture.json").read_text())

    def ours() -> float:
        server, began = EmbeddedServer(file), time.perf_counter()
        server.start(wait=False)
        try:
            with server.client(1.0) as client:
                while True:
                    with contextlib.suppress(Exception):  # not there yet, or not loaded yet
                        client.predict("lenet", picture)
                        return time.perf_counter() - began
                    time.sleep(0.01)
        finally:
            server.kill()

    code = f"import tensorflow as tf; tf.saved_model.load({str(home / 'lenet' / '1')!r})"

    def alone() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        return time.perf_counter() - began

    pairs = [(ours(), alone()) for _ in range(3)]
    took, limit = (median(column) for column in zip(*pairs, strict=True))
    return Row("start to first answer", took, "import tensorflow, load the model", limit, allowed=1.3)


def _switches(home: Path) -> Iterator[Row]:
    with _lenet(home) as served, in_process() as load:
        saturation = [load.submit(closed_loop, query, 16, 3.0).result() for query in served.of(label="stable")]
        # Both at once share the machine: together they make the given part of what it can answer.
        rate = LOAD / sum(1 / one for one in saturation)
        seen = switch_under_load(served, rate, 100, 50_500 / rate / 2)
    failed = len(seen.failures) + seen.num_wrong
    yield Row("failed or wrong during 100 label switches", failed, "requests, half by gRPC, half by REST", seen.num_requests, 0.0, unit="")
    yield Row("label move to first answer by the new version, p95", 1e3 * quantiles(seen.moves, n=20)[-1], "allowed", 100, 1.0, unit="ms")


def _large(home: Path) -> Iterator[Row]:
    """p99 while a model of 100 MB loads and takes over, against the rest of the same run, for it and for a model beside it."""
    with _lenet(home) as served, in_process() as load, served.server.client() as client:
        base = home / "large"
        _publish(home / "table", base, 1)
        lenet = ModelConfig("lenet", str(home / "lenet"), (1, 2), {"stable": 1})

        def serve(*versions: int, label: int) -> None:
            client.reload(ServerConfig((lenet, ModelConfig("large", str(base), versions, {"stable": label}))))

        client.reload(ServerConfig((lenet, ModelConfig("large", str(base), (1,)))))
        await_state(client, "large", 1, "AVAILABLE")
        serve(1, label=1)
        other = served.of(label="stable")[0]
        request = protos.predict_pb2.PredictRequest.FromString(other.payload)
        request.model_spec.name = "large"
        queries = [Query(other.url, request.SerializeToString()), other]
        rate = LOAD / sum(1 / load.submit(closed_loop, query, 16, 3.0).result() for query in queries)
        seconds, num = 60.0, 10
        asking = load.submit(open_loop, queries, rate, seconds)
        time.sleep(5.0)
        windows, copying = [], []
        for version in range(2, num + 2):
            _publish(home / "table", base, version)
            time.sleep(2.0)
            began = time.monotonic()
            client.reload(ServerConfig((lenet, ModelConfig("large", str(base), (version - 1, version), {"stable": version - 1}))))
            await_state(client, "large", version, "AVAILABLE")
            serve(version - 1, version, label=version)
            serve(version, label=version)
            time.sleep(0.5)  # the old one goes
            windows.append((began, time.monotonic()))
            time.sleep(0.5)
            copying.append(_copy(windows[-1]))
        samples = asking.result()
    for name, part in zip(("100 MB model", "other model"), samples, strict=True):
        loading, limit, rest = _p99s(part, windows, copying)
        what = f"p99 of the {name} while one of 100 MB loads"
        yield Row(what, 1e3 * loading, "p99 in the rest of the run", 1e3 * rest, allowed=1.5, unit="ms")
        yield Row("the same while an idle-priority process only fills memory", 1e3 * limit, "p99 in the rest of the run", 1e3 * rest, unit="ms")


def _large_requests(home: Path) -> Iterator[Row]:
    """Small requests while 100 MB of JSON rows for the same model are read, run and answered, against the rest of the same run."""
    row = json.dumps(json.loads((home / "picture.json").read_text())[0]).encode()
    body, num = b'{"instances": [' + b",".join([row] * (BODY // len(row))) + b"]}", 3
    with _lenet(home) as served, in_process() as load:
        queries = served.of(label="stable")
        rate = LOAD / sum(1 / load.submit(closed_loop, query, 16, 3.0).result() for query in queries)
        asking, windows = load.submit(open_loop, queries, rate, 60.0), []
        for _ in range(num):
            time.sleep(5.0)
            began = time.monotonic()
            answer = httpx.post(f"{served.server.rest_url}/v1/models/lenet:predict", content=body, timeout=120.0, trust_env=False)
            answer.raise_for_status()
            windows.append((began, time.monotonic()))
        samples = [sample for part in asking.result() for sample in part]
    took = median(end - start for start, end in windows)
    loading, rest = _p99s(samples, windows)
    yield Row("100 MB of rows in one REST request", took, "its deadline", 30.0, allowed=1.0)
    yield Row("small requests that fail meanwhile", sum(sample.answer is None for sample in samples), "small requests", len(samples), 0.0, unit="")
    yield Row("their p99 meanwhile", 1e3 * loading, "p99 in the rest of the run", 1e3 * rest, unit="ms")


def _copy(like: tuple[float, float]) -> tuple[float, float]:
    """Let a process of idle priority fill memory as long as a load took, and return when: what the machine itself makes of a load."""
    took = like[1] - like[0]
    code = f"""if True:
        import os, time
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        end = time.monotonic() + {took - 0.5}
        while time.monotonic() < end:
            bytearray(b"x") * 20_000_000"""
    began = time.monotonic()
    subprocess.run([sys.executable, "-S", "-c", code], check=True)
    time.sleep(max(0.0, began + took - time.monotonic()))
    return began, time.monotonic()


def _p99s(samples: list[Sample], *windows: list[tuple[float, float]]) -> list[float]:
    """Return the 99th percentile of the latencies in each of `windows` and outside of all; a request that failed took for ever."""
    parts: list[list[float]] = [[] for _ in (*windows, None)]
    for sample in samples:
        where = next((n for n, some in enumerate(windows) if any(start <= sample.due <= end for start, end in some)), -1)
        parts[where].append(sample.latency if sample.answer is not None else 1e9)
    return [quantiles(part, n=100)[-1] for part in parts]


def _publish(source: Path, base: Path, version: int) -> None:
    shutil.copytree(source, base / f".{version}")
    (base / f".{version}").rename(base / str(version))


def _memory(home: Path) -> Iterator[Row]:
    """What all processes of the server hold after 100 versions were loaded, switched to and let go."""
    with _lenet(home) as served, served.server.client() as client:
        base = home / "again"
        held: dict[int, float] = {}
        for version in range(1, 101):
            _publish(home / "lenet" / "1", base, version)
            client.reload(ServerConfig((ModelConfig("again", str(base), (version,)),)))
            await_state(client, "again", version, "AVAILABLE")
            client.predict("again", json.loads((home / "picture.json").read_text()))
            if version in (2, 100):
                time.sleep(1.0)
                held[version] = held_bytes(served.server.process.pid)
    yield Row("memory after 100 switches (all processes)", held[100] / 1e6, "after 2", held[2] / 1e6, allowed=1.2, unit="MB")


def build(home: Path) -> None:
    """Write the models: two versions of ``lenet``, and ``table``, a LeNet that looks something up in a table of 100 MB."""
    import keras
    import numpy as np
    import tensorflow as tf

    layers = keras.layers

    def net(seed: int) -> Any:
        keras.utils.set_random_seed(seed)
        convolutions = [layers.Conv2D(6, 5, padding="same", activation="relu"), layers.MaxPooling2D()]
        convolutions += [layers.Conv2D(16, 5, activation="relu"), layers.MaxPooling2D(), layers.Flatten()]
        dense = [layers.Dense(120, activation="relu"), layers.Dense(84, activation="relu"), layers.Dense(10, activation="softmax")]
        return keras.Sequential([keras.Input((28, 28, 1)), *convolutions, *dense])

    def save(model: Any, path: Path, table: Any = None) -> None:
        module = tf.Module()
        module.weights, module.table = [variable.value for variable in model.variables], table

        @tf.function(input_signature=[tf.TensorSpec((None, 28, 28, 1), tf.float32, name="picture")])
        def serve(picture: Any) -> dict[str, Any]:
            bias = 0.0 if table is None else 0.0 * tf.reduce_sum(tf.gather(table, tf.cast(picture[:, 0, 0, 0] * 9, tf.int64)))
            return {"probabilities": model(picture) + bias}

        tf.saved_model.save(module, str(path), signatures={"serving_default": serve})

    save(net(1), home / "lenet" / "1")
    save(net(2), home / "lenet" / "2")
    save(net(3), home / "table", tf.Variable(np.random.default_rng(0).random((TABLE // 50, 50), np.float32)))
    picture = np.random.default_rng(1).random((1, 28, 28, 1)).round(3)
    (home / "picture.json").write_text(json.dumps(picture.tolist()))
    # As the publisher does: what a model does only once, it does before it is AVAILABLE.
    log = protos.prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(_request(picture.tolist()))
    for model in ("lenet/1", "lenet/2", "table"):
        warmup.write(home / model / warmup.WARM_UP, [log])


if __name__ == "__main__":
    build(Path(sys.argv[1]))
