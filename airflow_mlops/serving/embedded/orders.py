"""What the front, the zygote and the model processes tell each other about processes; light, because the front starts with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from airflow_mlops.exceptions import SpecError

MAX_MESSAGE = 1 << 20


@dataclass(frozen=True)
class BatchingParameters:
    """How requests are joined; names are those of the original's ``--batching_parameters_file`` (session_bundle_config.proto).

    Sizes count rows, dimension 0 of every input.

    * `max_batch_size`: most rows of one run; a larger request is refused, or split with `enable_large_batch_splitting` into runs of at most
      `max_execution_batch_size` rows.
    * `batch_timeout_micros`: how long a request waits for others. 0, the default here: never; what arrives while a run is under way makes
      the next batch, so batches grow with the load and a lone request loses no time.
    * `max_enqueued_batches`: how many full batches may wait; further requests are answered UNAVAILABLE.
    * `num_batch_threads`: how many batches run at the same time.
    * `allowed_batch_sizes`: a batch is padded up to the next of these, the last of which is the largest batch.
    * `pad_variable_length_inputs`: inputs of different sizes in other dimensions are padded with zeros to the largest.
    """

    max_batch_size: int = 128
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 100
    num_batch_threads: int = 2
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.batch_timeout_micros < 0 or self.max_execution_batch_size < 0:
            raise SpecError("batch_timeout_micros and max_execution_batch_size must not be negative.")
        sizes = self.allowed_batch_sizes
        if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != self.largest_run):
            raise SpecError(f"allowed_batch_sizes are {list(sizes)}; expected increasing numbers up to {self.largest_run}, the largest batch.")

    @property
    def largest_run(self) -> int:
        """Most rows that the model is given at once."""
        return (self.max_execution_batch_size or self.max_batch_size) if self.enable_large_batch_splitting else self.max_batch_size


class Order(NamedTuple):
    """What a process shall serve, and how: `config` is a serialized `ConfigProto`, `libraries` hold further operations."""

    name: str
    version: int
    path: str
    tags: tuple[str, ...] = ("serve",)
    config: bytes = b""
    libraries: tuple[str, ...] = ()
    batching: BatchingParameters | None = None
    num_threads: int = 4
    warm_up: bool = True
    as_content: bool = False
    run_timeout_seconds: float = 0.0


class Start(NamedTuple):
    """Fork a process that serves `order`; `number` is the front's name for it."""

    number: int
    order: Order


class Kill(NamedTuple):
    """Kill a process, if it still runs."""

    number: int


class Started(NamedTuple):
    """The process runs under `pid`."""

    number: int
    pid: int


class NotStarted(NamedTuple):
    """The system refused the process, for this `reason`."""

    number: int
    reason: str


class Ended(NamedTuple):
    """The process is gone; `status` is its exit code, or minus the signal that killed it."""

    number: int
    status: int
