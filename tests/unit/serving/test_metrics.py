"""Prometheus' text format, read by a small strict parser (prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlops.serving.embedded.metrics import BOUNDS, Metrics

OK, NOT_FOUND = grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND
_NAME, _LABEL = r"[a-zA-Z_:][a-zA-Z0-9_:]*", r"[a-zA-Z_][a-zA-Z0-9_]*"
_PAIR = re.compile(rf'({_LABEL})="((?:[^"\\\n]|\\[\\"n])*)"')
_LINE = re.compile(rf"({_NAME})\{{(.*)\}} (\S+)")
_TYPE = re.compile(rf"# TYPE ({_NAME}) (counter|histogram)")


class Sample(NamedTuple):
    """One line of the text."""

    name: str
    labels: dict[str, str]
    value: float


class Family(NamedTuple):
    """One metric: what kind it is, and its samples."""

    kind: str
    samples: list[Sample]


def parsed(text: str) -> dict[str, Family]:
    """Return the metrics by name; fail on everything that the format does not allow."""
    assert text.endswith("\n")
    families: dict[str, Family] = {}
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    name = ""
    for line in text.removesuffix("\n").split("\n"):
        if declared := _TYPE.fullmatch(line):
            name = declared[1]
            assert name not in families, f"{name} is declared twice"
            families[name] = Family(declared[2], [])
            continue
        match = _LINE.fullmatch(line)
        assert match, f"no sample: {line!r}"
        suffixes = ("_bucket", "_sum", "_count") if families[name].kind == "histogram" else ("",)
        assert match[1] in [name + suffix for suffix in suffixes], f"{match[1]} stands below {name}"
        sample = Sample(match[1], dict(_pairs(match[2])), float(match[3].replace("Inf", "inf")))
        key = (sample.name, tuple(sorted(sample.labels.items())))
        assert key not in seen, f"{line!r} is there twice"
        seen.add(key)
        families[name].samples.append(sample)
    return families


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(text):
        pair = _PAIR.match(text, place)
        assert pair, f"no label at {text[place:]!r}"
        yield pair[1], re.sub(r"\\(.)", lambda escaped: {"n": "\n"}.get(escaped[1], escaped[1]), pair[2])
        place = pair.end()
        assert place == len(text) or text[place] == ","
        place += 1


def counted(*requests: tuple[str, int | None, grpc.StatusCode, float, int]) -> dict[str, Family]:
    """Return the metrics after requests of (model, version, code, micros, micros of the run) by gRPC."""
    metrics = Metrics()
    for model, version, code, micros, run_micros in requests:
        metrics.count(model, version, code, "Predict", "GRPC", micros, run_micros)
    return parsed(metrics.text())


def histogram(family: Family, **labels: str) -> tuple[dict[float, float], float, float]:
    """Return (values up to each bound, sum, count) of one series."""
    buckets: dict[float, float] = {}
    total: dict[str, float] = {}
    for name, found, value in family.samples:
        bound = found.pop("le", None) if name.endswith("_bucket") else None
        if found == labels:
            if bound is None:
                total[name.rsplit("_", 1)[1]] = value
            else:
                assert float(bound) not in buckets
                buckets[float(bound)] = value
    return buckets, total["sum"], total["count"]


def test_nothing_asked_is_valid_too() -> None:
    families = counted()
    assert families.keys() == {
        ":tensorflow:serving:request_count",
        ":tensorflow:serving:request_latency",
        ":tensorflow:serving:runtime_latency",
        ":airflow_mlops:serving:request_count",
        ":airflow_mlops:serving:request_latency",
    }
    assert all(family.samples == [] for family in families.values())


def test_requests_are_counted_by_model_and_status_and_by_version() -> None:
    families = counted(("m", 1, OK, 5, 1), ("m", 2, OK, 5, 1), ("m", 2, NOT_FOUND, 5, 1), ("m", None, NOT_FOUND, 5, 0), ("b", 1, OK, 5, 1))
    assert {(*sample.labels.values(), sample.value) for sample in families[":tensorflow:serving:request_count"].samples} == {
        ("m", "OK", 2.0),
        ("m", "NOT_FOUND", 2.0),
        ("b", "OK", 1.0),
    }
    assert [sample for sample in families[":airflow_mlops:serving:request_count"].samples if sample.labels["version"] == "2"] == [
        Sample(":airflow_mlops:serving:request_count", {"model_name": "m", "version": "2", "status": "OK"}, 1.0),
        Sample(":airflow_mlops:serving:request_count", {"model_name": "m", "version": "2", "status": "NOT_FOUND"}, 1.0),
    ]


def test_times_are_those_of_requests_that_were_answered() -> None:
    families = counted(("m", 1, OK, 100.0, 40), ("m", 1, NOT_FOUND, 1e6, 7), ("m", None, NOT_FOUND, 1e6, 0))
    latency = histogram(families[":tensorflow:serving:request_latency"], model_name="m", API="Predict", entrypoint="GRPC")
    runtime = histogram(families[":tensorflow:serving:runtime_latency"], model_name="m", API="Predict", runtime="TF1")
    version = histogram(families[":airflow_mlops:serving:request_latency"], model_name="m", version="1", API="Predict")
    assert (latency[1:], runtime[1:], version[1:]) == ((100.0, 1.0), (40.0, 1.0), (100.0, 1.0))


def test_both_interfaces_are_told_apart_but_for_the_run() -> None:
    metrics = Metrics()
    metrics.count("m", 1, OK, "Predict", "GRPC", 1.0, 1)
    metrics.count("m", 1, OK, "predict", "REST", 1.0, 1)
    families = parsed(metrics.text())
    assert histogram(families[":tensorflow:serving:request_latency"], model_name="m", API="predict", entrypoint="REST")[2] == 1
    assert histogram(families[":tensorflow:serving:runtime_latency"], model_name="m", API="Predict", runtime="TF1")[2] == 2


@given(st.lists(st.one_of(st.floats(0, 1e12), st.sampled_from(BOUNDS)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_histogram_has_33_cumulative_buckets_and_one_for_the_rest(values: list[float]) -> None:
    families = counted(*(("m", 1, OK, value, 1) for value in values))
    buckets, total, count = histogram(families[":tensorflow:serving:request_latency"], model_name="m", API="Predict", entrypoint="GRPC")
    bounds = list(buckets)
    assert len(bounds) == 34 and bounds == sorted(bounds) and bounds[-1] == math.inf
    assert bounds[:-1] == pytest.approx([10 * 1.8**k for k in range(33)], rel=1e-5)
    for (bound, found), exact in zip(buckets.items(), (*BOUNDS, math.inf), strict=True):
        assert found == sum(value <= exact for value in values), bound
    assert count == buckets[math.inf] == len(values)
    assert total == pytest.approx(sum(values), rel=1e-5)


def test_the_sum_grows_with_every_request() -> None:
    metrics = Metrics()
    sums = []
    for _ in range(3):
        metrics.count("m", 1, OK, "Predict", "GRPC", 1000.0 if sums else 1e10, 1)
        family = parsed(metrics.text())[":tensorflow:serving:request_latency"]
        sums.append(histogram(family, model_name="m", API="Predict", entrypoint="GRPC")[1])
    assert sums == [1e10, 1e10 + 1000, 1e10 + 2000]


@given(st.text(st.one_of(st.sampled_from('\\"\n{},= #n'), st.characters(exclude_categories=["Cs"])), max_size=12))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_name_of_a_model_is_written_so_that_it_is_read_back(name: str) -> None:
    families = counted((name, 1, OK, 5, 1))
    for family in families.values():
        assert {sample.labels["model_name"] for sample in family.samples} == {name}
