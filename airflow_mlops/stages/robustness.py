"""Stage ``robustness``: attack the model with mutated held-out inputs, steered by coverage."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from airflow_mlops.artifacts import Artifact
from airflow_mlops.data.layout import ArrayLayout
from airflow_mlops.records import ResultRef, load
from airflow_mlops.results import RobustnessResult, TrainingResult
from airflow_mlops.stages.inputs import read_split
from airflow_mlops.stages.models import load_model


class Spec(NamedTuple):
    """`training` refers to the model's result record; `max_mutants` is the campaign's budget, `seed` makes it repeatable."""

    training: ResultRef
    layout: ArrayLayout
    max_mutants: int
    seed: int
    held_out_fraction: float = 0.2


Result = RobustnessResult


def run(spec: Spec, out_dir: Path) -> RobustnessResult:
    """Run one campaign on the held-out rows; the profile of neurons comes from the rows the model learned from."""
    from airflow_mlops.robustness.campaign import CampaignConfig, run_campaign
    from airflow_mlops.robustness.models import Probe
    from airflow_mlops.robustness.profile import Profile

    training = load(spec.training, TrainingResult)
    split = read_split(training.dataset, spec.layout, spec.held_out_fraction)
    model = load_model(training.model.path)
    config = CampaignConfig(max_mutants=spec.max_mutants, sample_mutants=spec.max_mutants, seed=spec.seed)
    profile = Profile.of(Probe(model), split.train.inputs, batch_size=config.batch_size)
    profile.save(out_dir / "profile.npz")
    held_out = split.held_out
    found = run_campaign(model, held_out.inputs, held_out.labels, config=config, out_dir=out_dir, profile=profile)
    return RobustnessResult(
        num_seeds=found.num_seeds,
        num_mutants=found.num_mutants,
        num_defects=found.num_defects,
        num_distinct_defects=found.num_distinct_defects,
        coverage=found.coverage,
        defect_rates=found.defect_rates,
        sample_rate=found.sample_rate,
        report_page=Artifact.of(found.report),
        recipes=Artifact.of(found.recipes),
    )
