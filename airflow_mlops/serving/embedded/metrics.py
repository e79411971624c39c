"""Prometheus metrics under the original's names (servables/tensorflow/util.cc), and the same counts by version, which the original lacks."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Mapping

import grpc

# 33 buckets of 10 * 1.8^k microseconds, as the original's.
BOUNDS = tuple(10 * 1.8**k for k in range(33))
Labels = tuple[str, ...]


class Histogram:
    """Counts of values by label values; upper bounds are `BOUNDS`, in microseconds."""

    def __init__(self, name: str, labels: Labels) -> None:
        self._name = name
        self._labels = labels
        self._buckets: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, value: float, labels: Labels) -> None:
        """Count one value."""
        buckets = self._buckets.get(labels)
        if buckets is None:
            buckets = self._buckets[labels] = [0] * (len(BOUNDS) + 1)
            self._sums[labels] = 0.0
        buckets[bisect.bisect_left(BOUNDS, value)] += 1
        self._sums[labels] += value

    def lines(self) -> Iterator[str]:
        """Yield the text format's lines."""
        yield f"# TYPE {self._name} histogram"
        for labels, buckets in self._buckets.items():
            named = _named(self._labels, labels)
            total = 0
            for bound, count in zip((*BOUNDS, float("inf")), buckets, strict=True):
                total += count
                yield f'{self._name}_bucket{{{named},le="{"+Inf" if bound == float("inf") else f"{bound:g}"}"}} {total}'
            yield f"{self._name}_sum{{{named}}} {self._sums[labels]!r}"
            yield f"{self._name}_count{{{named}}} {total}"


class Metrics:
    """What was asked, how it ended, and how long it took; times in microseconds."""

    def __init__(self) -> None:
        self._requests: Counter[Labels] = Counter()
        self._by_version: Counter[Labels] = Counter()
        self._latency = Histogram(":tensorflow:serving:request_latency", ("model_name", "API", "entrypoint"))
        self._runtime = Histogram(":tensorflow:serving:runtime_latency", ("model_name", "API", "runtime"))
        self._version_latency = Histogram(":airflow_mlops:serving:request_latency", ("model_name", "version", "API"))

    def count(self, model: str, version: int | None, code: grpc.StatusCode, api: str, entrypoint: str, micros: float, run_micros: int) -> None:
        """Note one request; `version` is None if it found none."""
        self._requests[model, code.name] += 1
        if version is None:
            return
        self._by_version[model, str(version), code.name] += 1
        if code is grpc.StatusCode.OK:
            self._latency.observe(micros, (model, api, entrypoint))
            self._runtime.observe(run_micros, (model, api[:1].upper() + api[1:], "TF1"))  # one name for both interfaces, as in the original
            self._version_latency.observe(micros, (model, str(version), api))

    def text(self) -> str:
        """Return everything in Prometheus' text format."""
        lines = [
            *_counter(":tensorflow:serving:request_count", ("model_name", "status"), self._requests),
            *self._latency.lines(),
            *self._runtime.lines(),
            *_counter(":airflow_mlops:serving:request_count", ("model_name", "version", "status"), self._by_version),
            *self._version_latency.lines(),
        ]
        return "\n".join(lines) + "\n"


def _counter(name: str, labels: Labels, counts: Mapping[Labels, int]) -> Iterator[str]:
    yield f"# TYPE {name} counter"
    for values, count in counts.items():
        yield f"{name}{{{_named(labels, values)}}} {count}"


def _named(names: Labels, values: Labels) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return ",".join(f'{name}="{escaped(value)}"' for name, value in zip(names, values, strict=True))
