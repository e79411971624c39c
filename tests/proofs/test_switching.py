"""100 label switches and 100 loads under load: the full form of tests/unit/serving/test_switching.py."""

from __future__ import annotations

from pathlib import Path
from statistics import quantiles

from tests.switching import switch_under_load
from tests.unit.serving.test_switching import linear


def test_a_hundred_switches_cost_none_of_fifty_thousand_requests(serving_models: Path, tmp_path: Path) -> None:
    with linear(serving_models, tmp_path) as served:
        seen = switch_under_load(served, 300.0, 100, 84.0)
    print(f"{seen.num_requests} requests, p95 of a move {1e3 * quantiles(seen.moves, n=20)[-1]:.1f} ms")
    assert seen.num_requests >= 50_000
    assert seen.failures == [] and seen.num_wrong == 0
    assert max(seen.moves) < float("inf")
