"""Stage ``robustness_shard``: some of a campaign's islands, so that many workers attack one model at once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from airflow_mlops.artifacts import Artifact
from airflow_mlops.stages import robustness
from airflow_mlops.stages.robustness import RobustnessShardResult


class Spec(NamedTuple):
    """Part `shard` (from 0 on) of `num_shards` of a `campaign`; the stage ``robustness`` merges them by the same campaign."""

    campaign: robustness.Spec
    shard: int
    num_shards: int


Result = RobustnessShardResult


def run(spec: Spec, out_dir: Path) -> RobustnessShardResult:
    """Run this shard's islands; what a killed try of the same task had done is not done again."""
    from airflow_mlops.robustness.shards import SHARD_FILE, run_shard

    islands = out_dir / SHARD_FILE
    run_shard(robustness.prepared(spec.campaign), islands, (spec.shard, spec.num_shards), earlier=robustness.left_behind(out_dir))
    return RobustnessShardResult(shard=spec.shard, num_shards=spec.num_shards, islands=Artifact.of(islands))
