"""What a stage used and what it cost."""

from __future__ import annotations

import pytest

from airflow_mlops.exceptions import SpecError
from airflow_mlops.usage import Prices, Usage

GIB = 2**30
TRAINING = Usage(7200.0, 3600.0, 4 * GIB, num_gpus=2, gpu_seconds=14400.0, peak_gpu_memory_bytes=GIB, earlier_gpu_seconds=3600.0)


def test_the_cost_counts_gpus_by_the_hour_held_cpus_by_the_hour_busy_and_memory_by_its_peak() -> None:
    assert Prices(gpu_hour=2.0).cost(TRAINING) == pytest.approx(2.0 * 5)  # four hours now, one before the interruptions
    assert Prices(cpu_hour=0.5).cost(TRAINING) == pytest.approx(0.5)
    assert Prices(memory_gib_hour=0.25).cost(TRAINING) == pytest.approx(0.25 * 4 * 2)
    assert Prices(2.0, 0.5, 0.25).cost(TRAINING) == pytest.approx(12.5)


def test_the_sentence_names_gpus_and_costs_only_where_there_are_any() -> None:
    assert Usage(1.25, 2.0, GIB // 2).sentence(Prices()) == "1.2 s, 2.0 CPU seconds, 0.50 GiB of memory"
    said = TRAINING.sentence(Prices(gpu_hour=2.0, currency="EUR"))
    assert said.endswith("14400.0 GPU seconds on 2, 1.00 GiB of GPU memory, 3600.0 GPU seconds before interruptions, 10.0000 EUR")


def test_gpus_that_were_asked_for_and_are_not_there_are_said() -> None:
    assert Usage(1.0, 1.0, GIB, num_gpus_asked=2).sentence().endswith("1.00 GiB of memory, 0 of 2 GPUs that were asked for")
    assert "asked for" not in Usage(1.0, 1.0, GIB, num_gpus=1, num_gpus_asked=1).sentence()


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_an_impossible_price_is_refused_by_its_setting(price: float) -> None:
    with pytest.raises(SpecError, match=r"Correct \[mlops\] price_cpu_hour"):
        Prices(cpu_hour=price)
