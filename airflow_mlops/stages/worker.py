"""What a worker that is not the chief does in a training of several: it learns, writes nothing that others read, and says that it took part."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_mlops.results import STRICT, StageResult

LOST_CODE = 75  # EX_TEMPFAIL of sysexits.h: the exit code of a worker that failed for no other reason than that it lost another one


@STRICT
@dataclass(frozen=True)
class Participation(StageResult):
    """Worker `index` of `num_workers` learned with the others; `weights_digest` is of the weights it ended with, and all workers' is the same."""

    index: int
    num_workers: int
    weights_digest: str

    def headline(self) -> str:
        return f"took part as worker {self.index} of {self.num_workers}, weights {self.weights_digest[:19]}"


class Unheard:
    """The run of a worker whose metrics nobody keeps, because the chief's are the same."""

    run_id = artifact_uri = ""

    def log_metric(self, name: str, value: float, step: int = 0) -> None:
        """Keep nothing."""
