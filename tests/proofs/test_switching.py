"""100 label switches and 100 loads under load: the full form of tests/unit/serving/test_switching.py, and what README's table says of them."""

from __future__ import annotations

from pathlib import Path
from statistics import quantiles

from tests.switching import switch_under_load
from tests.unit.serving.test_switching import held_after, linear


def test_a_hundred_switches_cost_none_of_fifty_thousand_requests_and_versions_leave_no_memory(serving_models: Path, tmp_path: Path) -> None:
    with linear(serving_models, tmp_path) as served:
        seen = switch_under_load(served, 300.0, 100, 84.0)
        held = held_after(served, serving_models, tmp_path, 2, 100)
    print(f"{seen.num_requests} requests, p95 of a move {1e3 * quantiles(seen.moves, n=20)[-1]:.1f} ms, memory {held[100] / held[2]:.2f} times")
    assert seen.num_requests >= 50_000
    assert (seen.failures, seen.num_wrong) == ([], 0)
    assert len(seen.moves) == 200  # by gRPC and by REST, and each move was followed by an answer of the new version
    assert max(seen.moves) < float("inf")
    assert held[100] <= 1.2 * held[2]
