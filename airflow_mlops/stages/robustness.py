"""Stage ``robustness``: attack the model with mutated held-out inputs, and report what breaks it; alone, or from the islands of all shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_mlops.artifacts import Artifact
from airflow_mlops.exceptions import SpecError
from airflow_mlops.records import ResultRef, load
from airflow_mlops.results import STRICT, RobustnessResult, StageResult, TrainingResult
from airflow_mlops.stages.inputs import read_split
from airflow_mlops.stages.models import load_challenger

if TYPE_CHECKING:
    from airflow_mlops.robustness.lab import Lab


class Spec(NamedTuple):
    """`training` refers to the model's result record, which says how its rows were split; `max_mutants` is the budget, `seed` makes it repeatable.

    `options` are further fields of `CampaignConfig` as JSON; `extensions` are modules below `code_path` that are imported first, because they add
    a team's own mutators, criteria, schedules or oracles. `shards` refers to the results of every ``robustness_shard`` of this campaign, whose
    islands are merged; without any, the whole campaign runs in this stage. `unsafe_models_allowed` lets the model file bring code of its own.
    """

    training: ResultRef
    max_mutants: int
    seed: int
    options: Mapping[str, Any] = {}
    code_path: str = ""
    extensions: tuple[str, ...] = ()
    shards: tuple[ResultRef, ...] = ()
    unsafe_models_allowed: bool = False


@STRICT
@dataclass(frozen=True)
class RobustnessShardResult(StageResult):
    """The islands that shard `shard` of `num_shards` has run."""

    shard: int
    num_shards: int
    islands: Artifact

    def headline(self) -> str:
        return f"shard {self.shard + 1} of {self.num_shards} done"


Result = RobustnessResult


def run(spec: Spec, out_dir: Path) -> RobustnessResult:
    """Run one campaign on the held-out rows, or merge that of the shards."""
    from airflow_mlops.robustness.campaign import finish
    from airflow_mlops.robustness.shards import SHARD_FILE, run_shard

    lab = prepared(spec)
    lab.profile.save(out_dir / "profile.npz")
    files = [load(shard, RobustnessShardResult).islands.path for shard in spec.shards]
    if not files:
        files = [out_dir / SHARD_FILE]
        run_shard(lab, files[0], earlier=left_behind(out_dir))
    found = finish(lab, files, out_dir)
    return RobustnessResult(
        num_seeds=found.num_seeds,
        num_mutants=found.num_mutants,
        num_defects=found.num_defects,
        num_distinct_defects=found.num_distinct_defects,
        coverage=found.coverage,
        defect_rates=found.defect_rates,
        sample_rate=found.sample_rate,
        ledger_hash=found.ledger_hash,
        report_page=Artifact.of(found.report),
        recipes=Artifact.of(found.recipes),
        notes=found.notes,
    )


def prepared(spec: Spec) -> Lab:
    """Return everything that the campaign needs: seeds come from the held-out rows, ranges of neurons from those the model learned from."""
    from airflow_mlops.robustness.config import config_of
    from airflow_mlops.robustness.lab import Lab, fitting_micro_batch
    from airflow_mlops.robustness.models import Probe
    from airflow_mlops.robustness.profile import Profile
    from airflow_mlops.training.function import import_all

    if twice := {"max_mutants", "seed"} & set(spec.options):
        raise SpecError(f"options names {', '.join(sorted(twice))}, which the spec has fields for: set them there.")
    import_all(Path(spec.code_path), spec.extensions)
    config = config_of({"sample_mutants": spec.max_mutants, **spec.options, "max_mutants": spec.max_mutants, "seed": spec.seed})
    trained = load(spec.training, TrainingResult)
    split = read_split(trained.dataset, trained.split)
    model = load_challenger(trained, code_allowed=spec.unsafe_models_allowed)
    probe = Probe(model, micro_batch=fitting_micro_batch(split.train.inputs))
    profile = Profile.of(probe, split.train.inputs)
    return Lab.of(model, split.held_out.inputs, split.held_out.labels, config, profile)


def left_behind(out_dir: Path) -> list[Path]:
    """Return the island files that other tries of this task left beside `out_dir`, newest first: a killed try is gone on with."""
    from airflow_mlops.robustness.shards import SHARD_FILE

    files = [path for path in out_dir.parent.glob(f"*/{SHARD_FILE}") if path.parent != out_dir]
    return sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)
