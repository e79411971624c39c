"""What a stage used, what that cost, and what a training ran in: the figures that records have."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from pydantic import ConfigDict, with_config

from airflow_mlops.exceptions import SpecError

_GIB = 2**30


@with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
@dataclass(frozen=True)
class Usage:
    """What one process used from its start on.

    * `cpu_seconds`: of all its threads and of the processes it waited for; `gpu_seconds`: the GPUs it held, times `wall_seconds`.
    * `peak_memory_bytes`: the largest of any one process; `peak_gpu_memory_bytes`: of all GPUs together, 0 where there is none.
    * `num_gpus_asked`: what the pod was given; TensorFlow may see fewer.
    * `earlier_gpu_seconds`: of the attempts that were interrupted before and whose checkpoint this one went on from.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    num_gpus: int = 0
    gpu_seconds: float = 0.0
    peak_gpu_memory_bytes: int = 0
    earlier_gpu_seconds: float = 0.0
    num_gpus_asked: int = 0

    def metrics(self) -> dict[str, float]:
        """Return every figure by its name with ``usage_`` before it, as a run's history keeps them."""
        return {f"usage_{field.name}": float(getattr(self, field.name)) for field in fields(self)}

    def sentence(self, prices: Prices | None = None) -> str:
        """Return the figures for a person, with the cost where there are prices."""
        parts = [f"{self.wall_seconds:.1f} s", f"{self.cpu_seconds:.1f} CPU seconds", f"{self.peak_memory_bytes / _GIB:.2f} GiB of memory"]
        if self.num_gpus:
            parts += [f"{self.gpu_seconds:.1f} GPU seconds on {self.num_gpus}", f"{self.peak_gpu_memory_bytes / _GIB:.2f} GiB of GPU memory"]
        if self.num_gpus < self.num_gpus_asked:
            parts.append(f"{self.num_gpus} of {self.num_gpus_asked} GPUs that were asked for")
        if self.earlier_gpu_seconds:
            parts.append(f"{self.earlier_gpu_seconds:.1f} GPU seconds before interruptions")
        if prices is not None and prices.known:
            parts.append(f"{prices.cost(self):.4f} {prices.currency}".rstrip())
        return ", ".join(parts)


@dataclass(frozen=True)
class Prices:
    """What an hour costs, in `currency`: of a GPU, of a busy CPU, and of a GiB of memory, of which the peak counts for the whole time.

    :raises SpecError: a price is negative or no finite number.
    """

    gpu_hour: float = 0.0
    cpu_hour: float = 0.0
    memory_gib_hour: float = 0.0
    currency: str = ""

    def __post_init__(self) -> None:
        for name in ("gpu_hour", "cpu_hour", "memory_gib_hour"):
            price = getattr(self, name)
            if not (math.isfinite(price) and price >= 0):
                raise SpecError(f"The price of a {name} is {price}; expected a number of 0 or more. Correct [mlops] price_{name}.")

    @property
    def known(self) -> bool:
        """Whether any price is set: without one, nothing is said of costs."""
        return bool(self.gpu_hour or self.cpu_hour or self.memory_gib_hour)

    def cost(self, usage: Usage) -> float:
        """Return what `usage` cost, in the currency's unit."""
        hours, gib = usage.wall_seconds / 3600, usage.peak_memory_bytes / _GIB
        gpu_hours = (usage.gpu_seconds + usage.earlier_gpu_seconds) / 3600
        return self.gpu_hour * gpu_hours + self.cpu_hour * usage.cpu_seconds / 3600 + self.memory_gib_hour * gib * hours


@with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
@dataclass(frozen=True)
class TrainingEnvironment:
    """What a training ran in, as far as its result may depend on it.

    * `reproducible`: whether operations were deterministic; `hash_seed_fixed`: whether the order of sets of texts was.
    * `num_threads`: of TensorFlow for one operation, 0 where it chose by itself; `num_cpus`: that the process might use.
    * `cpu` and `gpus`: the models; `gpu_driver`: its version, None without one.
    """

    reproducible: bool
    hash_seed_fixed: bool
    num_threads: int
    cpu: str
    num_cpus: int
    gpus: tuple[str, ...] = ()
    gpu_driver: str | None = None
