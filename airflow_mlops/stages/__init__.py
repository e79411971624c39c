"""One thin module per stage: spec in, call the core, result out.

A stage module holds `Spec` (a NamedTuple, so that Airflow templates its fields), `Result` and `run`. It must stay light to import, because
DAG files name its spec: the core is imported inside `run`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from airflow_mlops.exceptions import unknown_name
from airflow_mlops.stages import evaluate, repeat, robustness, robustness_shard, train, validate


class Stage(Protocol):
    """What a stage module offers: `run(spec, out_dir)` writes below `out_dir` only and returns a `Result`."""

    Spec: Any
    Result: Any

    def run(self, spec: Any, out_dir: Path) -> Any: ...


STAGES: dict[str, Stage] = {
    "validate": validate,
    "train": train,
    "evaluate": evaluate,
    "robustness_shard": robustness_shard,
    "robustness": robustness,
    "repeat": repeat,
}


def stage(name: str) -> Stage:
    """Return the stage called `name`; raise `SpecError` naming the nearest known one."""
    if name not in STAGES:
        raise unknown_name("stage", name, STAGES)
    return STAGES[name]
